"""What is measured of a cell, against other ways to compute it; a small cell from start to end."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock

from experiments.known_noise import KnownNoise
from experiments.noise import cell as cells
from experiments.noise.cell import (
    is_done,
    learned_by,
    missing_results,
    read_detection,
    read_outcome,
    run_cell,
)
from experiments.noise.design import load_benchmark
from experiments.noise.training import evaluate, load_base
from forgetting.errors import DivergenceError, InputError
from forgetting.evaluation import evaluate_heldout
from forgetting.method import MEASURES
from forgetting.method import detector as mathematics
from forgetting.rundir.samples import Samples, list_column, read_table
from forgetting.stages import detect, probe
from tests.conftest import few_trees

pytestmark = pytest.mark.slow

SMALL = ["data.num_train=300", "data.num_reference=100", "data.num_heldout=90"]
WITHOUT_NEGATIVES = ("base", "full", "weighted", "corrected")
SHORT = ["training.epochs=0.1"]
VARIANTS = ("full", "weighted", "corrected", "oracle-forgetting", "forgetting-npo")


def small_cell(world="unknown"):
    """A cell with few samples, few steps and few variants."""
    benchmark = load_benchmark(overrides=[*SMALL, *SHORT], seeds="1")
    chosen = {name: benchmark.variants[name] for name in VARIANTS}
    update = {"variants": chosen, "rates": [0.4], "references": ["noisy"]}
    benchmark = benchmark.model_copy(update={**update, "rate_of_single_kinds": None})
    return next(cell for cell in benchmark.cells() if cell.world == world)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small cell that was interrupted in its second variant and run again."""
    cell, path = small_cell(), tmp_path_factory.mktemp("cell")
    trained = []
    train = cells.train

    def interrupted(recipe, variant, *args):
        trained.append(next(name for name, v in cell.variants.items() if v is variant))
        if trained.count("oracle-forgetting") == 1 and trained[-1] == "oracle-forgetting":
            raise KeyboardInterrupt
        return train(recipe, variant, *args)

    estimate = mathematics.estimate_shares

    def much(*args, **kwargs):
        found = estimate(*args, **kwargs)
        each = (0.2 / len(found.by_kind),) * len(found.by_kind)
        return replace(found, share=0.2, by_kind=each, priors=each, shift=0.0)

    with pytest.MonkeyPatch.context() as patch, few_trees():
        patch.setattr(cells, "train", interrupted)
        # So few samples are too few to be sure.
        patch.setattr(mathematics, "_verdict", lambda *args: (True, "Bad."))
        patch.setattr(mathematics, "estimate_shares", much)
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
        "full",
        "weighted",
        "corrected",
        "oracle-forgetting",
        "oracle-forgetting",
        "forgetting-npo",
    ]


def test_results_of_other_settings_are_missing(finished):
    cell, path, _ = finished
    training = cell.recipe.training.model_copy(update={"learning_rate": 0.5})
    other = replace(cell, recipe=cell.recipe.model_copy(update={"training": training}))
    assert missing_results(other, path) == ["detection", "base", *VARIANTS]
    changed = cell.variants["full"].model_copy(update={"objective": "ignoring"})
    other = replace(cell, variants={**cell.variants, "full": changed})
    assert missing_results(other, path) == ["full"]
    # Where a variant is trained makes no difference to what comes of it.
    elsewhere = cell.variants["full"].model_copy(update={"rates": [0.4]})
    assert is_done(replace(cell, variants={**cell.variants, "full": elsewhere}), path)


@pytest.mark.parametrize("stage", [probe, detect])
def test_results_of_an_older_detector_are_missing(finished, monkeypatch, stage):
    cell, path, _ = finished
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    assert missing_results(cell, path) == ["detection", "weighted", "corrected"]


def test_a_damaged_result_is_missing(finished, tmp_path):
    cell, path, _ = finished
    copy = tmp_path / "cell"
    shutil.copytree(path, copy)
    (copy / "outcomes" / "full.json").write_text("{")
    (copy / "detection.json").write_text("[]")
    assert missing_results(cell, copy) == ["detection", "full"]


def test_two_processes_do_not_work_on_one_cell(finished):
    cell, path, _ = finished
    with FileLock(path / ".lock"), pytest.raises(InputError, match="another process works on"):
        run_cell(cell, path)


def test_everything_of_a_cell_is_measured(finished):
    cell, path, _ = finished
    assert list(cell.trained) == ["base", *VARIANTS]
    for name in cell.trained:
        outcome = read_outcome(path, name)
        assert set(outcome.accuracy) >= {"all", "known", "new", "fact", "new_fact"}
        assert outcome.loss > 0
        assert (outcome.negatives is None) == (name in WITHOUT_NEGATIVES)
    oracle = read_outcome(path, "oracle-forgetting").negatives
    assert (oracle.precision, oracle.recall) == (1.0, 1.0)
    assert set(oracle.recall_by_kind.values()) == {1.0}
    # The models are measured and thrown away; the reference model stays.
    weights = {file.parent.name for file in path.rglob("*.safetensors")}
    assert weights == {"reference"}


def test_the_accuracy_is_that_of_the_evaluation(finished):
    cell, path, _ = finished
    base = load_base(cell.recipe)
    samples = Samples.read(path / "questions" / "data" / "train.parquet")
    result = evaluate_heldout(base, samples).result
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


def test_a_response_is_exact_if_greedy_decoding_gives_it(finished):
    cell, path, _ = finished
    samples = Samples.read(path / "questions" / "data" / "train.parquet")
    rows = np.split(samples.input_ids, samples.token_starts[1:-1])
    # The base knows how some words go on, and not how a chat does.
    labels = [np.where(np.arange(len(ids)) >= len(ids) - 2, ids, -100) for ids in rows]
    some = Samples.from_lists([ids.tolist() for ids in rows], [own.tolist() for own in labels])
    base = load_base(cell.recipe)
    is_exact, loss = evaluate(base, some)
    result = evaluate_heldout(base, some).result
    assert loss == pytest.approx(result.metrics["loss"].value, rel=1e-5)
    assert is_exact.mean() == pytest.approx(result.metrics["exact_match"].value)
    with torch.no_grad():
        for row, ids in enumerate(rows):
            best = base(input_ids=torch.tensor([ids.tolist()])).logits[0].argmax(-1).numpy()
            assert is_exact[row] == np.array_equal(best[-3:-1], ids[-2:])


def test_detection_is_of_the_scores_of_the_cell(finished):
    _, path, _ = finished
    detection = read_detection(path)
    noise, starts = list_column(read_table(path / "run" / "data" / "train.parquet"), "noise")
    assert detection.num_tokens == noise.size
    assert detection.num_noisy["all"] == noise.sum()
    assert sum(detection.num_noisy.values()) == 2 * noise.sum()
    (shard,) = (path / "run" / "scores").glob("*.parquet")
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


def test_the_verdict_is_that_of_the_detector(finished):
    _, path, _ = finished
    verdict = read_detection(path).verdict
    noise = KnownNoise.read(path / "run")
    (file,) = (path / "run" / "detector").glob("posterior.parquet")
    posterior, _ = list_column(read_table(file), "posterior")
    marked = posterior >= 0.5
    assert verdict.true_share == noise.noisy.mean()
    assert verdict.marked == marked.mean()
    assert verdict.recall == (marked & noise.noisy).sum() / noise.noisy.sum()
    if marked.any():
        assert verdict.precision == (marked & noise.noisy).sum() / marked.sum()


def test_each_variant_learns_what_its_objective_says(finished):
    cell, path, _ = finished
    noise = KnownNoise.read(path / "run")

    def learned(name):
        table = learned_by(cell.variants[name], name, noise, path / "run")
        return {
            column: np.concatenate(table[column].to_pylist())[noise.samples.is_response]
            for column in ("polarity", "token_weights")
            if column in table.column_names
        }

    assert (learned("full")["polarity"] == 1).all()
    assert np.array_equal(learned("oracle-forgetting")["polarity"] < 0, noise.noisy)
    (file,) = (path / "run" / "detector").glob("posterior.parquet")
    posterior, _ = list_column(read_table(file), "posterior")
    assert posterior.any()
    good = 1 - posterior.astype(np.float64)
    expected = good / (good + 4 * (1 - good))
    np.testing.assert_allclose(learned("weighted")["token_weights"], expected, rtol=1e-6)


def test_a_variant_that_diverges_has_an_outcome_that_says_so(finished, tmp_path, monkeypatch):
    cell, path, _ = finished
    copy = tmp_path / "cell"
    shutil.copytree(path, copy)
    (copy / "outcomes" / "forgetting-npo.json").unlink()

    def diverges(*args):
        raise DivergenceError("training diverged at step 3")

    monkeypatch.setattr(cells, "train", diverges)
    run_cell(cell, copy)
    outcome = read_outcome(copy, "forgetting-npo")
    assert outcome.accuracy == {}
    assert outcome.negatives is not None
    assert "step 3" in outcome.diverged
