"""The probe is the same however many processes score it and however often it is interrupted."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.models.loading import load_base_model, load_tokenizer, pick_dtype
from forgetting.pipeline import plan
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.planted import copies_of, planted_file, scored_copies
from forgetting.rundir.processes import Processes
from forgetting.rundir.samples import SampleFile, Samples, read_table, write_table
from forgetting.rundir.scores import ScoredCorpus, ScoredSamples
from forgetting.scoring import score_samples
from forgetting.stages import corpus_scores
from forgetting.stages.copies import probe_job
from forgetting.stages.corpus_scores import ScoringJob, after_contrast, other_records, prompts_of
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
    alone = after_contrast(samples, np.array([2, 5]), job.tokenization, 200)
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
    short = after_contrast(samples, np.array([2]), job.tokenization, len(ids[1]) - 3)
    assert short.table["input_ids"][1].as_py() == ids[1][3:]

    model = load_base_model(recipe.model, pick_dtype(recipe.model))
    whole = after_contrast(samples, np.arange(8), job.tokenization, 200)
    expected = score_samples(model, whole).log_probs
    found = [
        s.columns for s in ScoredCorpus(run).scores(["base_log_probs", "base_empty_log_probs"])
    ]
    empty = np.concatenate([columns["base_empty_log_probs"] for columns in found])
    assert np.abs(empty - expected).max() < 1e-5
    own_prompt = np.concatenate([columns["base_log_probs"] for columns in found])
    assert np.abs(own_prompt - score_samples(model, samples).log_probs).max() < 1e-5
    assert np.abs(own_prompt - empty).max() > 1e-3


def prompt_of(samples, row):
    """Token ids of a sample up to its first response."""
    labels = samples.table["labels"][row].as_py()
    first = next(place for place, label in enumerate(labels) if label != -100)
    return samples.table["input_ids"][row].as_py()[:first]


def log_probs_after(model, prompt, response):
    """Log-probabilities of a response, straight from the logits of both in a row."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.inference_mode():
        log_probs = model(ids).logits[0].double().log_softmax(-1)
    places = range(len(prompt), ids.shape[1])
    return [float(log_probs[place - 1, ids[0, place]]) for place in places]


@pytest.fixture(scope="module")
def after_others(detected_run, tmp_path_factory):
    """A run whose responses are scored after the prompts of other records as well."""
    run = shutil.copytree(detected_run[1], tmp_path_factory.mktemp("others") / "run")
    overrides = ["detector.prompt=other"]
    run_stages(detected_run[0], run, stages=["score", "probe"], overrides=overrides)
    return load_recipe(detected_run[0], overrides), run


def test_each_response_is_scored_after_the_prompt_of_another_record(after_others):
    recipe, run = after_others
    train = Samples.read(layout.train_file(run))
    heldout_file = layout.split_file(layout.data_dir(run), "heldout")
    fingerprint = SampleFile(heldout_file).fingerprint
    folder = layout.heldout_scores_dir(layout.scores_dir(run))
    row_of = {sample_id: row for row, sample_id in enumerate(train.sample_ids.tolist())}
    copied = copies_of(planted_file(layout.probe_dir(run), train.fingerprint))
    own = {
        "train": (ScoredCorpus(run), range(len(train))),
        "heldout": (ScoredSamples(heldout_file, folder, fingerprint, "score"), range(4)),
        "copies": (scored_copies(run, train.fingerprint), [row_of[i] for i in copied.tolist()]),
    }
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path)
    lenders = {}
    for name, (scored, rows) in own.items():
        samples = Samples.read(scored.path)
        shards = list(scored.scores(["base_empty_log_probs"]))
        found = np.concatenate([shard.columns["base_empty_log_probs"] for shard in shards])
        others = other_records(np.array(rows), len(train), recipe.seed)
        lenders[name] = others
        for place in range(0, len(samples), 4):
            tokens = slice(samples.response_starts[place], samples.response_starts[place + 1])
            response = samples.response_ids[tokens].tolist()
            prompt = prompt_of(train, int(others[place]))
            # What is too long loses the start of its prompt.
            left_out = max(len(prompt) + len(response) - recipe.data.max_length, 0)
            expected = log_probs_after(model, prompt[left_out:], response)
            assert found[tokens] == pytest.approx(expected, abs=2e-5)
    assert sorted(lenders["train"].tolist()) == list(range(len(train)))
    assert (lenders["train"] != np.arange(len(train))).all()
    # A copy has the prompt that its record has.
    assert (lenders["copies"] == lenders["train"][own["copies"][1]]).all()


def test_the_prompt_is_part_of_what_scores_depend_on(detected_run, after_others):
    recipe, run = after_others
    before, after = (
        {step.key: step.settings() for step in plan(each) if step.key in ("score", "probe")}
        for each in (load_recipe(detected_run[0]), recipe)
    )
    assert before != after
    for key, settings in after.items():
        assert {**before[key], "prompt": "other", "prompt_seed": recipe.seed} == settings
    plain, other = (read_manifest(each).stages for each in (detected_run[1], run))
    assert plain["prepare"] == other["prepare"]
    assert plain["score"].fingerprint != other["score"].fingerprint


@given(st.integers(2, 40), st.integers(0, 5))
def test_no_record_gets_its_own_prompt_and_each_lends_once(size, seed):
    others = other_records(np.arange(size), size, seed)
    assert sorted(others.tolist()) == list(range(size))
    assert (others != np.arange(size)).all()


def test_one_record_has_no_other():
    with pytest.raises(InputError, match=r"D_train has 1\. Set detector.prompt to empty"):
        other_records(np.array([0]), 1, 0)


def test_a_text_lends_the_empty_prompt(tmp_path):
    samples = Samples.from_lists([[0, 5, 6], [0, 7, 8, 9]], [[-100, 5, 6], [-100, -100, 8, 9]])
    write_table(samples.table, tmp_path / "train.parquet")
    train = SampleFile(tmp_path / "train.parquet")
    assert prompts_of(train, np.array([1, 0, 1])) == [[0, 7], None, [0, 7]]


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
