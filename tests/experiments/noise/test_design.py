"""Which cells there are, and what is trained in them."""

from __future__ import annotations

import copy
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from experiments.noise.design import load_benchmark
from forgetting.demo.noise import NOISE_KINDS
from forgetting.errors import InputError
from forgetting.method import MEASURES
from forgetting.method.terms import TERMS


def test_every_world_rate_reference_and_seed_has_a_cell():
    benchmark = load_benchmark()
    cells = benchmark.cells()
    assert len({cell.name for cell in cells}) == len(cells)
    mixed = {(c.world, c.rate, c.reference, c.seed) for c in cells if c.kind == "all"}
    expected = {
        (world, rate, reference, seed)
        for world in ("known", "unknown")
        for rate in (0.0, 0.05, 0.1, 0.2, 0.4)
        for reference in ("noisy", "clean")
        for seed in (1, 2, 3)
        # Without noise there is no difference between the two.
        if rate or reference == "noisy"
    }
    assert mixed == expected
    single = {(c.world, c.kind, c.seed) for c in cells if c.kind != "all"}
    assert single == {
        (w, k, s) for w in ("known", "unknown") for k in NOISE_KINDS for s in (1, 2, 3)
    }


def test_every_term_is_trained_and_every_measure_scored():
    cells = load_benchmark().cells()
    terms = {v.forgetting.term for cell in cells for v in cell.variants.values()}
    assert terms == set(TERMS)
    for cell in cells:
        assert set(cell.recipe.variants) == set(MEASURES)


def test_a_cell_is_what_its_recipe_says():
    benchmark = load_benchmark(overrides=["training.learning_rate=0.5", "data.num_train=300"])
    for cell in benchmark.cells():
        (source,) = cell.recipe.data.sources
        assert source.world.noise_rate == cell.rate
        assert source.world.num_new_entities == benchmark.worlds[cell.world]
        assert set(source.world.noise_kinds) == (
            set(NOISE_KINDS) if cell.kind == "all" else {cell.kind}
        )
        assert source.world.num_records == cell.recipe.data.num_samples
        assert cell.recipe.seed == cell.seed
        assert cell.recipe.training.learning_rate == 0.5
        assert cell.recipe.data.num_train == 300


def test_what_needs_noise_is_not_trained_without():
    for cell in load_benchmark().cells():
        for name, variant in cell.variants.items():
            assert cell.rate > 0 or not variant.oracle, name
            # As in the paper's code, nothing is stopped because it gets worse.
            assert variant.forgetting.divergence_ratio is None


def test_what_no_reference_model_has_a_part_in_is_trained_once():
    for cell in load_benchmark().cells():
        alone = {"full", "weighted", "corrected", "oracle-ignoring"} & set(cell.variants)
        assert bool(alone) == (cell.reference == "noisy")


def test_quick_is_a_part_of_the_whole():
    quick, whole = load_benchmark(quick=True), load_benchmark()
    assert quick.name != whole.name
    by_name = {cell.name: cell for cell in whole.cells()}
    for cell in quick.cells():
        assert cell.recipe == by_name[cell.name].recipe
        assert set(cell.variants) <= set(by_name[cell.name].variants)
    assert {cell.world for cell in quick.cells()} == {"known", "unknown"}


def test_seeds_take_the_place_of_the_benchmarks():
    assert {cell.seed for cell in load_benchmark(seeds="7,8,7").cells()} == {7, 8}
    for wrong in ("x", "-1", "1.5"):
        with pytest.raises(InputError, match="seed"):
            load_benchmark(seeds=wrong)


def test_a_wrong_override_names_its_field():
    with pytest.raises(InputError, match=r"training\.learning_rate"):
        load_benchmark(overrides=["training.learning_rate=-1"])


def test_a_cell_goes_to_another_process_as_it_is():
    cell = load_benchmark(quick=True).cells()[0]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(copy.copy, cell).result() == cell
