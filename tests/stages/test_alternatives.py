"""What is expected in the place of bad tokens, against the logits of the models in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from forgetting.config import load_recipe
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.processes import Processes
from forgetting.rundir.samples import Samples, read_table
from forgetting.rundir.token_alternatives import read_alternatives
from forgetting.stages import corpus_alternatives
from forgetting.stages.reference import fold_of_samples
from tests.conftest import save_detector_recipe, save_findings

KEPT = 6
CHANGES = ["variants={corrected: {}}", f"detector.alternatives={KEPT}"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_model):
    """A recipe and a run with two folds of reference models and made-up findings."""
    from forgetting.pipeline import run

    folder = tmp_path_factory.mktemp("alternatives")
    path = save_detector_recipe(
        folder,
        tiny_model,
        reference={"folds": 2},
        detector={"copies": 80, "reference": "always"},
        variants={"corrected": {}},
    )
    done = run(path, folder / "run", stages=["prepare", "reference"])
    samples = Samples.read(layout.train_file(done))
    posterior = np.random.default_rng(3).random(samples.response_ids.size).astype(np.float32)
    # Some samples have no bad token, among them all of the last shard.
    row = np.repeat(np.arange(len(samples)), samples.num_response_tokens)
    posterior[(row % 3 == 0) | (row >= 50)] = 0.049
    save_findings(done, posterior)
    return load_recipe(path, CHANGES), done, samples, posterior


def find(recipe, run, folder, count=1):
    work = Work(folder)
    work.output.mkdir(parents=True)
    job = corpus_alternatives.job_of_alternatives(recipe, run)
    for index in range(count):
        corpus_alternatives.find_in_shards(job, Work(folder, Processes(index, count)))
    corpus_alternatives.join_found(job, work)
    return work


def all_found(work, samples):
    """Tokens, ids and log-probabilities over all shards."""
    found, begin = [], 0
    for file, size in zip(layout.alternatives_files(work.output), (25, 25, 10), strict=True):
        part = Samples(samples.table.slice(begin, size))
        shard = read_alternatives(file, part, samples.fingerprint)
        found.append((shard.tokens + samples.response_starts[begin], shard))
        begin += size
    assert found[-1][1].ids.shape[0] == 0
    tokens = np.concatenate([tokens for tokens, _ in found])
    ids, log_probs = (
        np.concatenate([getattr(shard, name) for _, shard in found[:2]])
        for name in ("ids", "log_probs")
    )
    return tokens, ids, log_probs


def check_against(models, folds, samples, tokens, ids, log_probs):
    """Compare with models in float64; sample i belongs to `models[folds[i]]`."""
    place = np.flatnonzero(samples.is_response)
    for token, kept, found in zip(tokens, ids, log_probs, strict=True):
        row = int(np.searchsorted(samples.response_starts, token, side="right")) - 1
        begin = samples.token_starts[row]
        own = torch.tensor(samples.input_ids[begin : place[token]].astype(np.int64))[None]
        with torch.no_grad():
            q = models[folds[row]](own).logits[0, -1].softmax(0).numpy()
        q[samples.input_ids[place[token]]] = 0
        q /= q.sum()
        assert kept.tolist() == np.argsort(-q)[:KEPT].tolist()
        assert found[:KEPT] == pytest.approx(np.log(q[kept]), abs=0.01)
        assert found[KEPT] == pytest.approx(np.log(1 - q[kept].sum()), abs=0.01)


def in_float64(path):
    return AutoModelForCausalLM.from_pretrained(path).double().eval()


def test_each_sample_is_read_by_the_reference_that_has_not_seen_it(prepared, tmp_path):
    from peft import PeftModel

    recipe, run, samples, posterior = prepared
    work = find(recipe, run, tmp_path / "work")
    tokens, ids, log_probs = all_found(work, samples)
    assert np.array_equal(tokens, np.flatnonzero(posterior >= 0.05))
    assert work.details == {"corrected_tokens": len(tokens)}
    models = [
        PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path),
            str(layout.reference_dir(run, fold)),
        )
        .double()
        .eval()
        for fold in recipe.fold_names
    ]
    folds = fold_of_samples(recipe, len(samples))
    chosen = np.random.default_rng(0).permutation(len(tokens))[:60]
    check_against(models, folds, samples, tokens[chosen], ids[chosen], log_probs[chosen])


@pytest.fixture(scope="module")
def of_base(prepared, tmp_path_factory):
    recipe, run, *_ = prepared
    plain = {"detector": recipe.detector.model_copy(update={"reference": "never"})}
    folder = tmp_path_factory.mktemp("of-base")
    return recipe.model_copy(update=plain), find(
        recipe.model_copy(update=plain), run, folder / "work"
    )


def test_without_a_reference_the_base_is_asked(prepared, of_base):
    recipe, work = of_base
    _, _, samples, _ = prepared
    tokens, ids, log_probs = all_found(work, samples)
    base = in_float64(recipe.model.name_or_path)
    nobody = np.zeros(len(samples), dtype=int)
    chosen = np.random.default_rng(1).permutation(len(tokens))[:60]
    check_against([base], nobody, samples, tokens[chosen], ids[chosen], log_probs[chosen])


def test_batches_change_nothing(prepared, of_base, tmp_path):
    recipe, work = of_base
    _, run, samples, _ = prepared
    small = {"scoring": recipe.scoring.model_copy(update={"tokens_per_batch": 40})}
    other = find(recipe.model_copy(update=small), run, tmp_path / "work")
    first, second = all_found(work, samples), all_found(other, samples)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert np.abs(first[2] - second[2]).max() < 0.02


def test_processes_share_the_shards(prepared, of_base, tmp_path):
    recipe, work = of_base
    _, run, _, _ = prepared
    other = find(recipe, run, tmp_path / "work", count=2)
    files = layout.alternatives_files(work.output)
    assert len(files) == 3
    for file in files:
        assert read_table(file) == read_table(other.output / file.name)
    assert work.details == other.details


def test_an_interrupted_stage_goes_on_with_what_is_missing(
    prepared, of_base, tmp_path, monkeypatch
):
    recipe, work = of_base
    _, run, _, _ = prepared
    write = corpus_alternatives.write_alternatives
    written = []

    def failing(path, *arguments):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(corpus_alternatives, "write_alternatives", failing)
    with pytest.raises(KeyboardInterrupt):
        find(recipe, run, tmp_path / "work")
    monkeypatch.setattr(
        corpus_alternatives,
        "write_alternatives",
        lambda path, *arguments: (written.append(path.name), write(path, *arguments)),
    )
    job = corpus_alternatives.job_of_alternatives(recipe, run)
    again = Work(tmp_path / "work")
    corpus_alternatives.find_in_shards(job, again)
    corpus_alternatives.join_found(job, again)
    assert written == [f"base-{index:05d}.parquet" for index in range(3)]
    for file in layout.alternatives_files(work.output):
        assert read_table(file) == read_table(again.output / file.name)
