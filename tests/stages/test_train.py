"""What `train` and `reference` hand to the trainer: polarity and weights of every token."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from forgetting.config import load_recipe
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.findings import posterior_parts
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, read_table, write_table
from forgetting.rundir.stats import DataSummary
from forgetting.stages.reference import REFERENCE
from forgetting.stages.select import SELECT
from forgetting.stages.train import TRAIN
from forgetting.training import fit
from tests.conftest import save_scored_run

VARIANTS = {
    "full": {},
    "ignoring": {"selection": {"rho": 0.5}},
    "forgetting": {"selection": {"rho": 0.5, "keep_eos": False}},
    "weighted": {"objective": "weighted"},
}


def mark(run, *, weights=True):
    """Every third sample is to forget, and every other one has weights."""
    table = read_table(layout.train_file(run))
    rows = table.to_pylist()
    count = 0
    for index, row in enumerate(rows):
        row["is_negative"] = index % 3 == 0 or None
        if weights and index % 2:
            number = sum(label != -100 for label in row["labels"][1:])
            row["weights"] = [0.5 + place % 3 / 4 for place in range(number)]
            count += sum(weight != 1 for weight in row["weights"])
    write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), layout.train_file(run))
    data = layout.data_dir(run)
    summary = DataSummary.load(data)
    summary.splits["train"].weighted_tokens = count
    summary.save(data)
    return Samples.read(layout.train_file(run))


@pytest.fixture
def trained(monkeypatch, write_recipe, tmp_path):
    """Runs a stage on a run directory; gives the columns that the trainer gets, as flat arrays of
    the response tokens."""

    def do(run, stage, part, *overrides):
        recipe = load_recipe(write_recipe(variants=VARIANTS), list(overrides))
        found = []

        def fine_tune(recipe, training, variant, tables, *rest):
            found.extend(tables)

        monkeypatch.setattr(fit, "fine_tune", fine_tune)
        monkeypatch.setattr("forgetting.stages.train._write_card", lambda *rest: None)
        work = Work(tmp_path / f"work-{stage.name}-{part}")
        if stage is TRAIN and recipe.variants[part].selects:
            selecting = Work(tmp_path / f"selecting-{part}")
            selecting.output.mkdir(parents=True)
            SELECT.step(recipe, part).execute(run, selecting)
            folder = layout.selection_dir(run, part)
            folder.parent.mkdir(exist_ok=True)
            selecting.output.rename(folder)
        stage.step(recipe, part).execute(run, work)
        table = pa.concat_tables(found)
        is_response = Samples.from_lists(
            table["input_ids"].to_pylist(), table["labels"].to_pylist()
        ).is_response
        return {
            name: np.concatenate([np.asarray(row) for row in table[name].to_pylist()])[is_response]
            for name in table.column_names
        }

    return do


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_turns_multiply_what_the_variant_gives(tmp_path, trained, variant):
    run = save_scored_run(tmp_path / "run")
    samples = mark(run)
    given = samples.weights
    if variant == "weighted":
        (part,) = posterior_parts(run, samples.fingerprint, [len(samples)])
        good = 1 - part.posterior.astype(np.float64)
        given = given * good / (good + 4 * (1 - good))
    columns = trained(run, TRAIN, variant)
    assert columns["token_weights"] == pytest.approx(given, rel=1e-6)
    assert len(set(samples.weights.tolist())) == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_to_forget_is_never_learned(tmp_path, trained, variant):
    run = save_scored_run(tmp_path / "run")
    samples = mark(run, weights=False)
    is_forgotten = samples.per_response_token(samples.is_negative)
    columns = trained(run, TRAIN, variant)
    expected = {"full": 0, "weighted": 0, "forgetting": -1}
    polarity = columns["polarity"][is_forgotten]
    # Where a variant ignores negative tokens, lambda is 0.
    assert (polarity == expected[variant]).all() if variant in expected else (polarity <= 0).all()
    assert (columns["polarity"][~is_forgotten] > 0).any()
    assert ("token_weights" in columns) == (variant == "weighted")


def test_a_corpus_without_weights_has_no_column_for_them(tmp_path, trained):
    assert "token_weights" not in trained(save_scored_run(tmp_path / "run"), TRAIN, "full")


@pytest.mark.parametrize("weights", [False, True])
def test_a_cross_fitted_reference_learns_with_weights_and_never_what_is_to_forget(
    tmp_path, trained, weights
):
    run = save_scored_run(tmp_path / "run")
    samples = mark(run, weights=weights)
    columns = trained(run, REFERENCE, "fold-0", "reference.folds=3")
    folds = np.random.default_rng(42).permutation(len(samples)) % 3
    kept = samples.per_response_token(folds != 0)
    learned = samples.per_response_token(~samples.is_negative)[kept]
    assert np.array_equal(columns["polarity"], learned.astype(int))
    if weights:
        assert columns["token_weights"] == pytest.approx(samples.weights[kept])
    else:
        assert "token_weights" not in columns
