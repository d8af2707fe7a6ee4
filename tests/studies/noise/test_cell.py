"""What is measured of a cell, against other ways to compute it; a small cell from start to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forgetting.evaluation import evaluate_heldout
from forgetting.method import MEASURES
from forgetting.models.loading import load_base_model, pick_dtype
from forgetting.rundir.directory import Work
from forgetting.rundir.samples import Samples, list_column, read_table
from forgetting.studies.noise import cell as cells
from forgetting.studies.noise.cell import (
    choose,
    describe_negatives,
    detect,
    is_done,
    read_detection,
    read_outcome,
    run_cell,
)
from forgetting.studies.noise.design import load_benchmark
from forgetting.training import fit

SMALL = ["data.num_train=300", "data.num_reference=100", "data.num_heldout=90"]
SHORT = ["training.epochs=0.1"]
VARIANTS = ("full", "oracle-forgetting", "min-loss-forgetting-twice", "forgetting-npo")


def small_cell(world="unknown"):
    """A cell with few samples, few steps and few variants."""
    benchmark = load_benchmark(overrides=[*SMALL, *SHORT], seeds="1")
    chosen = {name: benchmark.variants[name] for name in VARIANTS}
    update = {"variants": chosen, "rates": [0.1], "references": ["noisy"]}
    benchmark = benchmark.model_copy(update={**update, "rate_of_single_kinds": None})
    return next(cell for cell in benchmark.cells() if cell.world == world)


def test_detection_is_what_counting_pairs_gives():
    random = np.random.default_rng(0)
    noisy = random.random(60) < 0.3
    kinds = np.where(noisy, random.choice(["a", "b"], 60), "")
    quality = random.integers(0, 12, 60).astype(np.float32)  # with ties
    answers = random.random(60) < 0.5
    found = detect({"q": quality}, noisy, kinds, {"answers": answers})["q"]
    assert set(found) == {"all", "a", "b", "answers"}
    members = {"all": noisy | True, "answers": answers}
    for name in found:
        inside = members.get(name, ~noisy | (kinds == name))
        bad, good = quality[inside & noisy], quality[inside & ~noisy]
        pairs = [float(g > b) + 0.5 * float(g == b) for b in bad for g in good]
        assert found[name].auroc == pytest.approx(np.mean(pairs))
        # Precision at every threshold, weighted by the noise that it adds.
        precision = 0.0
        for value in np.unique(bad):
            below = quality[inside] <= value
            share = (noisy[inside] & below).sum() / below.sum()
            precision += share * (bad == value).sum() / bad.size
        assert found[name].average_precision == pytest.approx(precision)


def test_nothing_is_found_where_nothing_is():
    quality, clean = np.arange(4.0), np.zeros(4, bool)
    (found,) = detect({"q": quality}, clean, np.full(4, ""))["q"].values()
    assert (found.auroc, found.average_precision) == (None, None)


def test_negatives_are_counted_against_the_noise():
    polarity = np.array([-1, -1, -1, 0, 1, 1, 1, -1], np.int8)
    noisy = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool)
    kinds = np.array(["a", "b", "", "b", "a", "a", "", ""])
    found = describe_negatives(polarity, noisy, kinds)
    assert found.share == 4 / 8
    assert found.share_ignored == 1 / 8
    assert found.precision == 2 / 4
    assert found.recall == 2 / 4
    assert found.recall_by_kind == {"a": 1 / 2, "b": 1 / 2}
    none = describe_negatives(np.ones(8, np.int8), np.zeros(8, bool), kinds)
    assert (none.precision, none.recall, none.recall_by_kind) == (None, None, {})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small cell that was interrupted in its second variant and run again."""
    cell, path = small_cell(), tmp_path_factory.mktemp("cell")
    trained = []
    fine_tune = fit.fine_tune

    def interrupted(*args, **kwargs):
        trained.append(args[4])
        if trained[-1] == "oracle-forgetting" and trained.count("oracle-forgetting") == 1:
            raise KeyboardInterrupt
        fine_tune(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "fine_tune", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, path)
        assert not is_done(cell, path)
        run_cell(cell, path)
        assert is_done(cell, path)
        run_cell(cell, path)
    return cell, path, trained


def test_what_was_done_before_a_kill_is_not_done_again(finished):
    _, _, trained = finished
    assert trained == [
        "Reference model",
        "full",
        "oracle-forgetting",
        "oracle-forgetting",
        "min-loss-forgetting-twice",
        "forgetting-npo",
    ]


def test_everything_of_a_cell_is_measured(finished):
    cell, path, _ = finished
    assert list(cell.trained) == ["base", *VARIANTS]
    for name in cell.trained:
        outcome = read_outcome(path, name)
        assert set(outcome.accuracy) >= {"all", "known", "new", "fact", "new_fact"}
        assert outcome.loss > 0
        assert (outcome.negatives is None) == (name in ("base", "full"))
    oracle = read_outcome(path, "oracle-forgetting").negatives
    assert (oracle.precision, oracle.recall) == (1.0, 1.0)
    assert set(oracle.recall_by_kind.values()) == {1.0}
    # The models are measured and thrown away; the reference model stays.
    weights = {file.parent.name for file in path.rglob("*.safetensors")}
    assert weights == {"reference"}


def test_the_accuracy_is_that_of_the_evaluation(finished):
    cell, path, _ = finished
    base = load_base_model(cell.recipe.model, pick_dtype(cell.recipe.model))
    samples = Samples.read(path / "data" / "heldout.parquet")
    result = evaluate_heldout(base, samples)
    outcome = read_outcome(path, "base")
    assert outcome.loss == pytest.approx(result.metrics["loss"].value)
    new = np.array([s.startswith("new_") for s in samples.table["source"].to_pylist()])
    exact = {
        name: group.metrics["exact_match"].value * group.num_items
        for name, group in result.groups.items()
    }
    num_exact = sum(value for name, value in exact.items() if name.startswith("new_"))
    assert outcome.accuracy["new"] == pytest.approx(num_exact / new.sum())
    weighted = outcome.accuracy["new"] * new.mean() + outcome.accuracy["known"] * (~new).mean()
    assert outcome.accuracy["all"] == pytest.approx(weighted)


def test_detection_is_of_the_scores_of_the_cell(finished):
    _, path, _ = finished
    detection = read_detection(path)
    noise, starts = list_column(read_table(path / "data" / "train.parquet"), "noise")
    assert detection.num_tokens == noise.size
    assert detection.num_noisy["all"] == noise.sum()
    assert sum(detection.num_noisy.values()) == 2 * noise.sum()
    (shard,) = (path / "scores").glob("*.parquet")
    log_probs, _ = list_column(read_table(shard), "base_log_probs")
    bad, good = log_probs[noise == 1], log_probs[noise == 0]
    auroc = ((good > bad[:, None]) + 0.5 * (good == bad[:, None])).mean()
    assert detection.found["base_loss"]["all"].auroc == pytest.approx(auroc)
    assert "answers about new" in detection.found["base_loss"]
    groups = detection.groups
    assert sum(group.share for group in groups.values()) == pytest.approx(1)
    total = sum(group.share * group.base_loss for group in groups.values())
    assert total == pytest.approx(-log_probs.mean(), rel=1e-4)
    for measure in MEASURES:
        worst = sum(group.share * group.among_worst[measure] for group in groups.values())
        assert worst == pytest.approx(0.3, abs=1e-3)
    ends = noise[np.r_[starts[1:] - 1]] == 0
    assert groups["ends"].share == pytest.approx(ends.sum() / noise.size)


def test_negatives_are_as_many_times_the_noise_as_asked_for(finished, tmp_path):
    cell, path, _ = finished
    noisy = Samples.read(path / "data" / "train.parquet").noise()
    benchmark = load_benchmark()
    for name, times in (("min-loss-forgetting", 1), ("min-loss-forgetting-twice", 2)):
        variant = benchmark.variants[name]
        assert variant.times_noise == times
        all_tokens = variant.selection.model_copy(update={"keep_eos": False})
        variant = variant.model_copy(update={"selection": all_tokens})
        polarity = choose(variant, noisy, path, Work(tmp_path), seed=1)
        assert (polarity < 0).sum() == pytest.approx(times * noisy.sum(), abs=1)
    oracle = benchmark.variants["oracle-ignoring"]
    polarity = choose(oracle, noisy, path, Work(tmp_path), seed=1)
    assert np.array_equal(polarity < 0, noisy)
    assert cell.recipe.seed == 1


def test_a_variant_that_diverges_has_an_outcome_that_says_so(finished, tmp_path, monkeypatch):
    from forgetting.errors import DivergenceError

    cell, path, _ = finished

    def diverges(*args):
        raise DivergenceError("training diverged at step 3")

    monkeypatch.setattr(fit, "fine_tune", diverges)
    work = Work(tmp_path)
    work.output.mkdir()
    cells._measure(cell, "forgetting-npo", path, work)
    outcome = json.loads((work.output / "outcome.json").read_text())
    assert outcome["accuracy"] == {}
    assert "step 3" in outcome["diverged"]
