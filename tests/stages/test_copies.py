"""Copies with planted noise: of the right records, with exact labels, the same every time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forgetting.config import load_recipe
from forgetting.models.tokenization import load_tokenization
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.samples import SampleFile, Samples, list_column, read_table
from forgetting.stages.copies import plant_copies, probe_job
from forgetting.stages.reference import fold_of_samples
from tests.conftest import save_detector_recipe


@pytest.fixture
def planted(tmp_path, tiny_model):
    """Prepares a recipe with some overrides and plants; gives recipe, run, table and samples."""

    def do(*overrides, **sections):
        recipe = load_recipe(save_detector_recipe(tmp_path, tiny_model, **sections), overrides)
        run = run_stages(recipe, tmp_path / "run", stages=["prepare"])
        file = layout.probe_file(tmp_path)
        plant_copies(recipe, run, file)
        return recipe, run, read_table(file), SampleFile(file).read(0, len(SampleFile(file)))

    return do


def texts(samples, recipe):
    """The response of each sample."""
    tokenizer = load_tokenization(recipe).tokenizer
    responses = np.split(samples.response_ids, samples.response_starts[1:-1])
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]


def test_copies_are_of_train_records_and_a_third_is_clean(planted):
    recipe, run, table, samples = planted()
    train = Samples.read(layout.train_file(run))
    assert len(table) == 80
    assert table["sample_id"].to_pylist() == list(range(80))
    assert set(table["copy_of"].to_pylist()) == set(train.sample_ids.tolist())
    kinds = table["noise_kind"].to_pylist()
    assert kinds.count(None) == round(80 / 3)
    assert set(kinds) - {None} <= set(recipe.detector.corruptions)
    assert samples.lengths.max() <= recipe.data.max_length


def test_clean_copies_are_the_samples_of_d_train_and_only_noise_is_flagged(planted):
    _, run, table, samples = planted()
    train = Samples.read(layout.train_file(run))
    place = {sample: index for index, sample in enumerate(train.sample_ids.tolist())}
    flags, starts = list_column(table, "noise")
    assert starts.tolist() == samples.response_starts.tolist()
    for row, (kind, of) in enumerate(
        zip(table["noise_kind"].to_pylist(), table["copy_of"].to_pylist(), strict=True)
    ):
        own = flags[starts[row] : starts[row + 1]]
        ids = table["input_ids"][row].as_py()
        original = train.table["input_ids"][place[of]].as_py()
        if kind is None:
            assert ids == original
            assert not own.any()
        elif kind == "substitute":
            # Nothing outside the noise is new.
            response = samples.response_ids[starts[row] : starts[row + 1]]
            assert own.any()
            assert not own.all()
            rest = iter(original)
            assert all(token in rest for token in response[own == 0].tolist())


def test_equal_seeds_plant_equal_noise(planted):
    _, _, first, _ = planted()
    _, _, same, _ = planted()
    _, _, other, _ = planted("seed=7")
    assert first.equals(same)
    assert not first.equals(other)


def test_only_the_kinds_that_are_asked_for_are_planted(planted):
    _, _, table, _ = planted("detector.corruptions=[garble]", "detector.copies=30")
    assert set(table["noise_kind"].to_pylist()) == {None, "garble"}
    assert len(table) == 30


def test_records_that_the_reference_has_seen_are_not_copied(planted):
    overrides = ["data.duplicates_in_reference=true", "detector.reference=always"]
    _, run, table, _ = planted(*overrides)
    known = Samples.read(layout.split_file(layout.data_dir(run), "reference")).sample_ids
    train = Samples.read(layout.train_file(run)).sample_ids
    assert np.isin(train, known).any()
    copied = set(table["copy_of"].to_pylist())
    assert copied == set(train.tolist()) - set(known.tolist())
    # The detector that does not look through the reference may use all of them.
    _, _, table, _ = planted("data.duplicates_in_reference=true")
    assert set(table["copy_of"].to_pylist()) == set(train.tolist())


def test_copies_of_a_fold_know_only_its_records(planted):
    recipe, run, table, samples = planted(
        "reference.folds=3", "detector.reference=always", "detector.corruptions=[swap]"
    )
    train = Samples.read(layout.train_file(run))
    folds = dict(
        zip(train.sample_ids.tolist(), fold_of_samples(recipe, len(train)).tolist(), strict=True)
    )
    copied = [folds[sample] for sample in table["copy_of"].to_pylist()]
    job = probe_job(recipe, run, layout.probe_file(run.parent).parent)
    assert job.folds.tolist() == copied
    given = json.loads((run.parent / "records.json").read_text())
    fold_of_text = {given[sample]["output"]: fold for sample, fold in folds.items()}
    for text, fold in zip(texts(samples, recipe), copied, strict=True):
        assert fold_of_text[text] == fold
