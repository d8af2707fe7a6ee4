"""The probe is the same however many processes score it and however often it is interrupted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forgetting.config import load_recipe
from forgetting.models.loading import load_base_model, load_tokenizer, pick_dtype
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.processes import Processes
from forgetting.rundir.samples import SampleFile, read_table
from forgetting.rundir.scores import ScoredCorpus
from forgetting.scoring import score_samples
from forgetting.stages import corpus_scores
from forgetting.stages.copies import probe_job
from forgetting.stages.corpus_scores import ScoringJob, after_empty_prompt
from forgetting.stages.probe import PROBE
from tests.conftest import save_detector_recipe

pytestmark = pytest.mark.slow


def tables(folder):
    return {file.name: read_table(file) for file in sorted(folder.glob("*.parquet"))}


def test_two_processes_write_the_probe_of_one(detected_run, tmp_path):
    path, run = detected_run
    recipe = load_recipe(path)
    work = Work(tmp_path)
    work.output.mkdir()
    step = PROBE.step(recipe)
    # The second process waits for the file that the first one plants.
    first = layout.probe_file(tmp_path)
    first.write_bytes(layout.probe_file(layout.probe_dir(run)).read_bytes())
    step.execute(run, Work(tmp_path, Processes(1, 2)))
    done = [file.name for file in sorted(tmp_path.glob("base-*"))]
    assert done == ["base-00001.parquet", "base-00003.parquet"]
    step.execute(run, Work(tmp_path, Processes(0, 2)))
    expected = tables(layout.probe_dir(run))
    assert len(expected) == 1 + 4
    found = tables(work.output)
    assert found.keys() == expected.keys()
    assert all(found[name].equals(table) for name, table in expected.items())


def test_an_interrupted_probe_resumes_with_the_shards_that_are_there(
    detected_run, tmp_path, monkeypatch
):
    path, run = detected_run
    step = PROBE.step(load_recipe(path))
    calls = []

    def score(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score_samples(*args, **kwargs)

    monkeypatch.setattr(corpus_scores, "score_samples", score)
    work = Work(tmp_path)
    work.output.mkdir()
    with pytest.raises(KeyboardInterrupt):
        step.execute(run, work)
    before = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*.parquet")}
    assert sorted(before) == ["base-00000.parquet", "samples.parquet"]
    step.execute(run, work)
    assert before.items() <= {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*")}.items()
    # A shard is scored with its own prompts and with the empty one.
    assert len(calls) == 4 + 2 * 3
    expected, found = tables(layout.probe_dir(run)), tables(work.output)
    assert all(found[name].equals(table) for name, table in expected.items())


CHAT = [
    [
        {"role": "user", "content": f"Stone {i}?"},
        {"role": "assistant", "content": f"Red {i}."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Blue."},
    ]
    for i in range(8)
]


def test_the_empty_prompt_stands_before_each_response(write_recipe, tmp_path, tiny_model):

    rows = [{"messages": turns} for turns in CHAT]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"num_reference": 0, "num_train": 8, "num_heldout": 0, "max_length": 200}
    recipe = load_recipe(
        write_recipe(
            data={"sources": [{"path": str(tmp_path / "chat.jsonl")}], **sizes},
            variants={"weighted": {}},
        )
    )
    run = run_stages(recipe, tmp_path / "run", stages=["prepare", "score"])
    job = ScoringJob.of_train(recipe, run)
    samples = job.samples.read(0, 8)
    prompt = job.tokenization.empty_prompt_ids
    alone = after_empty_prompt(samples, np.array([2, 5]), job.tokenization, 200)
    assert len(alone) == 4
    assert alone.sample_ids.tolist() == np.repeat(samples.sample_ids[[2, 5]], 2).tolist()
    own = [samples.response_ids[slice(*samples.response_starts[[i, i + 1]])] for i in (2, 5)]
    assert alone.response_ids.tolist() == np.concatenate(own).tolist()
    ids = alone.table["input_ids"].to_pylist()
    assert all(row[: len(prompt)] == prompt for row in ids)
    text = load_tokenizer(recipe.model).decode(ids[1], skip_special_tokens=True)
    assert text.rstrip().endswith("Blue.")
    assert "Red" not in text
    # What is too long loses the start of the prompt.
    short = after_empty_prompt(samples, np.array([2]), job.tokenization, len(ids[1]) - 3)
    assert short.table["input_ids"][1].as_py() == ids[1][3:]

    model = load_base_model(recipe.model, pick_dtype(recipe.model))
    whole = after_empty_prompt(samples, np.arange(8), job.tokenization, 200)
    expected = score_samples(model, whole).log_probs
    found = [
        s.columns for s in ScoredCorpus(run).scores(["base_log_probs", "base_empty_log_probs"])
    ]
    empty = np.concatenate([columns["base_empty_log_probs"] for columns in found])
    assert np.abs(empty - expected).max() < 1e-5
    own_prompt = np.concatenate([columns["base_log_probs"] for columns in found])
    assert np.abs(own_prompt - score_samples(model, samples).log_probs).max() < 1e-5
    assert np.abs(own_prompt - empty).max() > 1e-3


def test_with_folds_each_copy_is_scored_by_the_reference_that_has_not_seen_it(
    tmp_path, tiny_model, monkeypatch
):
    overrides = ["detector.reference=always", "reference.folds=2", "detector.copies=40"]
    recipe = load_recipe(
        save_detector_recipe(tmp_path, tiny_model, variants={"weighted": {}}), overrides
    )
    run = run_stages(recipe, tmp_path / "run", stages=["prepare", "reference", "score", "probe"])
    job = probe_job(recipe, run, layout.probe_dir(run))
    names = ScoredCorpus(run).column_names
    assert len(names) == 4 * 6
    covered = [scoring.covers for scoring in job.scorings() if scoring.name != "base"]
    assert [scoring.name for scoring in job.scorings()] == ["base", "fold-0", "fold-1"]
    assert (covered[0] ^ covered[1]).all()
    assert (job.folds == 1).tolist() == covered[1].tolist()
    scored = read_table(layout.score_files(layout.probe_dir(run))[0])
    assert scored.column_names == ["sample_id", *names]
    reference, base = (
        np.concatenate(scored[f"{name}_log_probs"].to_pylist()) for name in ("reference", "base")
    )
    assert np.isfinite(reference).all()
    assert np.abs(reference - base).max() > 1e-4
    assert len(SampleFile(layout.probe_file(layout.probe_dir(run)))) == 40
