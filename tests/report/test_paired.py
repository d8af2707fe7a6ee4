"""Differences to `full`, item by item: which are compared, and that they are those of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from forgetting.method.comparison import share_difference
from forgetting.report.paired import paired_results
from forgetting.report.verdict import run_verdict
from forgetting.rundir import layout
from forgetting.rundir.heldout_losses import read_heldout_hits, write_heldout
from forgetting.rundir.item_scores import ItemScores, write_item_scores
from forgetting.rundir.reader import RunReader
from forgetting.rundir.results import Group, TaskResult, write_result
from forgetting.rundir.samples import Samples
from tests.written_run import metric, write_evaluation

EXACT = "heldout/exact_match"


def compare(run_dir: Path):
    run = RunReader(run_dir)
    return paired_results(run, run_verdict(run))


def folder(run_dir: Path, variant: str) -> Path:
    return layout.evaluation_dir(run_dir, variant)


def write_scores(run_dir: Path, variant: str, task: str, items: np.ndarray) -> None:
    scores = {"acc": (items % 2).astype(float)}
    write_item_scores(folder(run_dir, variant), task, ItemScores(items, scores))


def heldout(run_dir: Path) -> Samples:
    return Samples.read(layout.split_file(layout.data_dir(run_dir), "heldout"))


def hits(run_dir: Path, variant: str) -> np.ndarray:
    """Right tokens of each sample."""
    samples = heldout(run_dir)
    each = np.ones(samples.response_ids.size)
    return read_heldout_hits(folder(run_dir, variant), samples, each)


def write_losses(run_dir: Path, **losses) -> None:
    samples = heldout(run_dir)
    for variant, values in losses.items():
        write_heldout(folder(run_dir, variant), samples, -values, np.zeros(values.size, bool))


def test_exact_match_is_compared_over_all_samples_and_over_each_source(run_dir: Path) -> None:
    found = compare(run_dir)
    assert found.baseline == "full"
    samples = heldout(run_dir)
    counts = samples.num_response_tokens
    own, rival = (hits(run_dir, v) == counts for v in ("forgetting", "full"))
    assert own.sum() == 50
    assert found.differences["forgetting", EXACT] == share_difference(own, rival)
    sources = np.array(samples.table["source"].to_pylist())
    for name in ("addition", "world"):
        wanted = share_difference(own[sources == name], rival[sources == name])
        assert found.differences["forgetting", f"{EXACT}/{name}"] == wanted
    assert ("base", EXACT) in found.differences
    assert not [key for key in found.differences if key[0] == "full"]
    # The share of right tokens, by hand.
    gap = (hits(run_dir, "forgetting").sum() - hits(run_dir, "full").sum()) / counts.sum()
    tokens = found.differences["forgetting", "heldout/token_accuracy"]
    assert tokens.value == pytest.approx(gap)
    assert tokens.low < gap < tokens.high


def test_the_loss_is_compared_by_the_sums_of_samples(run_dir: Path) -> None:
    rng = np.random.default_rng(0)
    samples = heldout(run_dir)
    number = samples.response_ids.size
    full = rng.exponential(1, number)
    own = full + rng.normal(0.1, 0.2, number)
    write_losses(run_dir, full=full, forgetting=own, base=full * np.nan)
    found = compare(run_dir)
    # Two groups by hand: the ratio of sums, and the verdict's interval for the whole.
    sources = np.array(samples.table["source"].to_pylist())
    of_token = np.repeat(sources, samples.num_response_tokens)
    for name in ("addition", "world"):
        gaps = (own - full)[of_token == name]
        difference = found.differences["forgetting", f"heldout/loss/{name}"]
        assert difference.value == pytest.approx(gaps.mean(), rel=1e-5)
        assert difference.num_pairs == (sources == name).sum()
    verdict = run_verdict(RunReader(run_dir))
    assert found.differences["forgetting", "heldout/loss"] == verdict.differences["forgetting"]
    # A model that diverged has no difference.
    assert ("base", "heldout/loss/world") not in found.differences


def test_other_items_are_not_paired(run_dir: Path) -> None:
    write_scores(run_dir, "full", "boolq", np.arange(5))
    write_scores(run_dir, "forgetting", "boolq", np.arange(4))
    write_scores(run_dir, "base", "boolq", np.arange(5))
    layout.heldout_file(folder(run_dir, "ignoring")).unlink()
    found = compare(run_dir).differences
    assert {variant for variant, key in found if key == "boolq/acc"} == {"base"}
    assert {variant for variant, key in found if key == EXACT} == {"base", "forgetting"}


def test_scores_between_0_and_1_have_the_interval_of_the_t_test(run_dir: Path) -> None:
    rng = np.random.default_rng(1)
    values = {v: rng.random(30) for v in ("full", "forgetting")}
    for variant, f1 in values.items():
        scores = ItemScores(np.arange(30), {"f1": f1})
        write_item_scores(folder(run_dir, variant), "boolq", scores)
    found = compare(run_dir).differences["forgetting", "boolq/f1"]
    wanted = stats.ttest_rel(values["forgetting"], values["full"]).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_a_suite_is_compared_if_all_its_tasks_are(run_dir: Path) -> None:
    rng = np.random.default_rng(2)
    for variant in ("full", "forgetting", "ignoring"):
        for task in ("a", "b1", "b2"):
            write_evaluation(run_dir, variant, task, {"acc": metric(0.5, 0.1)})
            if (variant, task) != ("ignoring", "b2"):
                right = rng.integers(0, 2, 40).astype(float)
                scores = ItemScores(np.arange(40), {"acc": right})
                write_item_scores(folder(run_dir, variant), task, scores)
        average = {"average": metric(0.5, 0.1)}
        groups = {name: Group(num_items=40, metrics=average) for name in ("A", "B")}
        suite = TaskResult(
            task="mine",
            num_items=120,
            metrics=average,
            groups=groups,
            members={"A": ["a/acc"], "B": ["b1/acc", "b2/acc"]},
        )
        write_result(folder(run_dir, variant), variant, suite)
    found = compare(run_dir).differences
    part = {key: found["forgetting", f"{key}/acc"].value for key in ("a", "b1", "b2")}
    of_b = (part["b1"] + part["b2"]) / 2
    assert found["forgetting", "mine/average/B"].value == pytest.approx(of_b)
    assert found["forgetting", "mine/average"].value == pytest.approx((part["a"] + of_b) / 2)
    assert found["forgetting", "mine/average"].num_pairs == 120
    assert ("ignoring", "mine/average") not in found


def test_without_evaluations_there_is_no_baseline(run_dir: Path) -> None:
    for file in run_dir.glob("evaluation/*/*.json"):
        file.unlink()
    assert compare(run_dir) is None
