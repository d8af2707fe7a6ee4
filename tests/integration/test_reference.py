"""Where the reference model can come from: trusted samples, or the other folds of D_train."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.models.adapters import load_variant
from forgetting.pipeline import describe_plan, run
from forgetting.rundir.samples import Samples, list_column, read_table
from forgetting.scoring import score_samples
from forgetting.stages.reference import REFERENCE, fold_of_samples
from forgetting.training import fit
from tests.conftest import alpaca_records, byte_tokenizer, small_model

pytestmark = pytest.mark.slow

STAGES = ["prepare", "reference", "score", "select"]


def reference_log_probs(path):
    tables = [read_table(file) for file in sorted((path / "scores").iterdir())]
    return np.concatenate([list_column(table, "reference_log_probs")[0] for table in tables])


def scored_by(recipe, adapter, samples):
    model = load_variant(recipe.model, torch.float32, adapter)
    return np.split(score_samples(model, samples).log_probs, samples.response_starts[1:-1])


def test_every_sample_is_scored_by_the_model_that_has_not_seen_it(write_recipe, tmp_path):
    recipe = load_recipe(write_recipe(), ["reference.folds=3", "data.num_reference=0"])
    keys = [step.key for step in describe_plan(recipe, tmp_path / "run")]
    assert keys[1:4] == ["reference:fold-0", "reference:fold-1", "reference:fold-2"]
    path = run(recipe, tmp_path / "run", stages=STAGES)
    samples = Samples.read(path / "data" / "train.parquet")
    assert len(samples) == 24
    folds = fold_of_samples(recipe, len(samples))
    assert np.bincount(folds).tolist() == [8, 8, 8]
    got = np.split(reference_log_probs(path), samples.response_starts[1:-1])
    by_fold = [scored_by(recipe, path / "reference" / f"fold-{fold}", samples) for fold in range(3)]
    for index, fold in enumerate(folds):
        assert got[index] == pytest.approx(by_fold[fold][index], abs=1e-4)
        other = by_fold[(fold + 1) % 3][index]
        assert np.abs(got[index] - other).max() > 1e-3


def test_a_fold_is_trained_on_the_others_alone(write_recipe, tmp_path, monkeypatch):
    seen = []

    def note(recipe, training, variant, tables, *rest):
        seen.append([row for table in tables for row in table["input_ids"].to_pylist()])

    recipe = load_recipe(write_recipe(), ["reference.folds=3"])
    path = run(recipe, tmp_path / "run", stages=["prepare"])
    monkeypatch.setattr(fit, "fine_tune", note)
    for fold in recipe.fold_names:
        REFERENCE.step(recipe, fold).execute(path, None)
    ids = Samples.read(path / "data" / "train.parquet").table["input_ids"].to_pylist()
    folds = fold_of_samples(recipe, len(ids))
    for fold in range(3):
        assert seen[fold] == [row for row, own in zip(ids, folds, strict=True) if own != fold]


def test_folds_that_are_done_are_kept_and_the_rest_resumes(write_recipe, tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(), ["reference.folds=2"])
    whole = run(recipe, tmp_path / "whole", stages=STAGES)
    train, calls = fit.fine_tune, []

    def fail_at_the_second(*arguments):
        calls.append(arguments[4])
        if len(calls) == 2:
            raise KeyboardInterrupt
        train(*arguments)

    monkeypatch.setattr(fit, "fine_tune", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", stages=STAGES)
    cut = run(recipe, tmp_path / "cut", stages=STAGES)
    assert [label[-6:] for label in calls] == ["fold-0", "fold-1", "fold-1"]
    assert reference_log_probs(cut) == pytest.approx(reference_log_probs(whole), abs=1e-5)


@pytest.fixture
def trusted(tmp_path):
    """A file of trusted records, of which half are in the corpus too."""
    file = tmp_path / "trusted.json"
    file.write_text(json.dumps(alpaca_records(90)[30:]), encoding="utf-8")
    return file


def test_trusted_samples_train_the_reference_and_the_corpus_gives_none(
    write_recipe, tmp_path, trusted
):
    changes = [
        f"reference.sources=[{{path: {trusted}}}]",
        "data.num_reference=40",
        "data.num_train=50",
        "data.num_heldout=10",
    ]
    recipe = load_recipe(write_recipe(), changes)
    path = run(recipe, tmp_path / "run", stages=STAGES)
    tables = {
        name: read_table(path / "data" / f"{name}.parquet")
        for name in ("reference", "train", "heldout")
    }
    # The corpus has 60 records, all of which are needed for the other two splits.
    assert (tables["train"].num_rows, tables["heldout"].num_rows) == (50, 10)
    assert set(tables["reference"]["source"].to_pylist()) == {"trusted"}
    rows = {name: {tuple(r) for r in t["input_ids"].to_pylist()} for name, t in tables.items()}
    assert not rows["reference"] & (rows["train"] | rows["heldout"])
    summary = json.loads((path / "data" / "summary.json").read_text())
    account = {source["name"]: source for source in summary["sources"]}["trusted (trusted)"]
    assert account["used"] == tables["reference"].num_rows
    assert account["used"] + account["duplicates"] == 40
    assert account["duplicates"] > 0
    assert (path / "reference" / "adapter_model.safetensors").is_file()


def test_trusted_samples_that_are_all_in_the_corpus_are_refused(write_recipe, tmp_path):
    records = write_recipe().parent / "records.json"
    changes = [f"reference.sources=[{{path: {records}}}]", "data.num_train=55"]
    changes += ["data.num_heldout=5", "data.num_reference=20"]
    with pytest.raises(InputError, match=r"reference\.sources: all samples are in the corpus"):
        run(load_recipe(write_recipe(), changes), tmp_path / "run", stages=["prepare"])


def test_what_a_reference_is_made_of_is_in_its_fingerprint(write_recipe, tmp_path, trusted):
    path = tmp_path / "run"
    folds = ["reference.folds=2"]
    run(load_recipe(write_recipe(), folds), path, stages=STAGES[:3])

    def done(*changes):
        steps = describe_plan(load_recipe(write_recipe(), list(changes)), path)
        return [step.key for step in steps if step.is_done]

    assert done(*folds) == ["prepare", "reference:fold-0", "reference:fold-1", "score"]
    assert done("reference.folds=3") == ["prepare"]
    assert done() == []
    assert done(f"reference.sources=[{{path: {trusted}}}]") == []


def test_a_reference_of_another_architecture_gives_its_own_scores(write_recipe, tmp_path):
    small_model("gemma2", 300).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    recipe = load_recipe(write_recipe(), [f"reference.name_or_path={tmp_path / 'other'}"])
    path = run(recipe, tmp_path / "run", stages=["prepare", "score"])
    samples = Samples.read(path / "data" / "train.parquet")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    expected = []
    for row in samples.table.to_pylist():
        labels = torch.tensor(row["labels"])[1:].long()
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        log_probs = logits.log_softmax(-1)[labels != -100]
        expected += log_probs.gather(1, labels[labels != -100, None])[:, 0].tolist()
    assert reference_log_probs(path) == pytest.approx(np.array(expected), abs=1e-4)
