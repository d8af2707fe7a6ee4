"""Shards of scores are the same however many processes write them, and hold what is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.processes import Processes
from forgetting.rundir.samples import Samples, read_table
from forgetting.rundir.scores import ScoredSamples
from forgetting.scoring import score_samples
from forgetting.stages import corpus_scores
from tests.conftest import all_scores, save_tiny_model


@pytest.fixture
def scored(finished_run, tmp_path):
    """Runs the pieces of the score stage on a finished run's corpus; gives its work folder."""
    path, run = finished_run
    recipe = load_recipe(path)

    def do(world_size, name, recipe=recipe):
        work = Work(tmp_path / name)
        work.output.mkdir(parents=True)
        job = corpus_scores.ScoringJob.of_train(recipe, run)
        for rank in range(world_size):
            corpus_scores.score_shards(job, as_process(work, rank, world_size))
        corpus_scores.join_shards(job, work)
        return work

    do.recipe, do.run = recipe, run
    return do


def as_process(work, index, count):
    """The same work folder as one process of several has it."""
    return Work(work.path, Processes(index, count))


def test_shards_do_not_depend_on_the_number_of_processes(scored):
    alone, shared = scored(1, "alone"), scored(2, "shared")
    files = sorted(file.name for file in alone.output.iterdir())
    assert files == [f"scores-{index:05d}-of-00003.parquet" for index in range(3)]
    for file in files:
        assert read_table(alone.output / file) == read_table(shared.output / file)
    assert alone.details == shared.details


def test_each_process_does_its_own_shards(scored, tmp_path):
    work = Work(tmp_path / "work")
    work.output.mkdir(parents=True)
    job = corpus_scores.ScoringJob.of_train(scored.recipe, scored.run)
    corpus_scores.score_shards(job, as_process(work, 1, 2))
    done = sorted(file.name for file in work.path.glob("*.parquet"))
    assert done == ["base-00001.parquet", "reference-00001.parquet"]
    with pytest.raises(InputError, match=r"base-00000.parquet cannot be read"):
        corpus_scores.join_shards(job, work)


@pytest.mark.parametrize("damage", [b"", None])
def test_a_shard_that_is_empty_or_damaged_is_scored_again(scored, tmp_path, damage):
    work = Work(tmp_path / "work")
    work.output.mkdir(parents=True)
    job = corpus_scores.ScoringJob.of_train(scored.recipe, scored.run)
    corpus_scores.score_shards(job, work)
    file = work.path / "base-00001.parquet"
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    file.write_bytes(flipped if damage is None else damage)
    times = {each.name: each.stat().st_mtime_ns for each in work.path.glob("*.parquet")}
    corpus_scores.score_shards(job, work)
    assert file.read_bytes() == content
    changed = [
        each.name
        for each in work.path.glob("*.parquet")
        if each.stat().st_mtime_ns != times[each.name]
    ]
    assert changed == [file.name]


def test_a_process_without_shards_loads_no_model(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_base_model", None)
    work = Work(tmp_path / "work")
    work.output.mkdir(parents=True)
    job = corpus_scores.ScoringJob.of_train(scored.recipe, scored.run)
    corpus_scores.score_shards(job, as_process(work, 3, 4))
    assert not list(work.path.glob("*.parquet"))


def test_entropy_and_rank_are_stored_when_asked_for(scored, finished_run, tmp_path):
    measures = [
        "variants.ignoring.selection.quality=rank_gap",
        "variants.forgetting.selection.quality=entropy_gap",
    ]
    output = scored(1, "more", load_recipe(finished_run[0], measures)).output
    (tmp_path / "run").mkdir()
    output.rename(tmp_path / "run" / "scores")
    plain = all_scores(scored.run)
    names = ["base_log_probs", "base_entropy", "base_rank", "reference_rank"]
    found = all_scores(tmp_path / "run")
    assert np.abs(found["base_log_probs"] - plain["base_log_probs"]).max() < 1e-5
    assert sorted(found) == sorted(names)
    assert {found[name].dtype for name in names} == {np.dtype("float32"), np.dtype("int32")}
    # A greedy token is at least as likely as any other: -log p is at most the entropy.
    greedy = found["base_rank"] == 0
    assert (-found["base_log_probs"] <= found["base_entropy"] + 1e-5)[greedy].all()


def test_a_reference_of_whole_weights_is_never_in_memory_with_the_base(
    scored, tmp_path, monkeypatch
):
    import gc
    import weakref

    alive = weakref.WeakSet()
    most = []
    load = loading.load_base_model

    def watched(*args):
        gc.collect()
        most.append(len(alive))
        model = load(*args)
        alive.add(model)
        return model

    monkeypatch.setattr(loading, "load_base_model", watched)
    other = save_tiny_model(tmp_path / "reference", seed=3)
    recipe = load_recipe(scored.run.parent / "recipe.yaml", [f"reference.name_or_path={other}"])
    scored(1, "whole", recipe)
    assert most == [0, 0]


def test_held_out_samples_are_scored_by_all_folds(write_recipe, detected_run, tmp_path):
    variants = {"weighted": {}}
    recipe = load_recipe(
        write_recipe(variants=variants, reference={"folds": 3}), ["detector.reference=always"]
    )
    job = corpus_scores.ScoringJob.of_heldout(recipe, detected_run[1])
    folds = job.models()["reference"]
    covered = np.stack([scoring.covers for scoring in folds])
    assert covered.sum(0).tolist() == [1] * 4
    assert covered.any(1).all()
    assert [s.path.name for s in folds] == ["fold-0", "fold-1", "fold-2"]


def test_scores_of_held_out_samples_are_their_own_files(detected_run):
    recipe, run = load_recipe(detected_run[0]), detected_run[1]
    file = layout.split_file(layout.data_dir(run), "heldout")
    samples = Samples.read(file)
    folder = layout.heldout_scores_dir(layout.scores_dir(run))
    scored = ScoredSamples(file, folder, samples.fingerprint, "score")
    (shard,) = scored.scores(["base_log_probs"])
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path)
    expected = score_samples(model, samples)
    assert np.allclose(shard.columns["base_log_probs"], expected.log_probs, atol=1e-5)
    counts = read_manifest(run).stages["score"].details["response_tokens"]
    train = Samples.read(layout.train_file(run))
    assert counts == samples.response_ids.size + train.response_ids.size
