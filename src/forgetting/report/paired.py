"""Compares every model of a run with a baseline, item by item, in every metric that can be paired.

Input: a run after `evaluate`. Output: a difference with its interval for each variant and column
of the results. Perplexity has none, because its logarithm, the loss, has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forgetting.method.comparison import (
    Difference,
    mean_difference,
    mean_of_differences,
    ratio_difference,
    share_difference,
)
from forgetting.report.verdict import BASELINE, Verdict
from forgetting.rundir import layout
from forgetting.rundir.heldout_losses import read_heldout_hits, read_heldout_losses
from forgetting.rundir.item_scores import read_item_scores
from forgetting.rundir.reader import RunReader
from forgetting.rundir.results import HELDOUT, Evaluation
from forgetting.rundir.samples import Samples


@dataclass(frozen=True)
class Paired:
    """Differences to a baseline on the same items."""

    baseline: str
    differences: Mapping[tuple[str, str], Difference] = field(default_factory=dict)
    """By variant and `Column.key`; the value of the variant minus that of the baseline."""


def paired_results(
    run: RunReader,
    verdict: Verdict | None = None,
    evaluations: Sequence[Evaluation] | None = None,
) -> Paired | None:
    """Compare the variants of a run, and the base model, with `full`.

    Args:
        run: the run.
        verdict: of this run. If it compares unweighted losses, they are taken from it.
        evaluations: of the run; default: all.

    Returns:
        None if nothing was evaluated. Without `full`, the first variant of the recipe is the
        baseline.

    Raises:
        InputError: an artifact is damaged, or belongs to other tokens.
    """
    by_task: dict[str, dict[str, Evaluation]] = {}
    chosen = run.evaluations if evaluations is None else evaluations
    for each in chosen:
        by_task.setdefault(each.task, {})[each.variant] = each
    measured = dict.fromkeys(each.variant for each in chosen)
    trained = run.recipe.variants if run.recipe is not None else measured
    baseline = next((name for name in (BASELINE, *trained) if name in measured), None)
    if baseline is None:
        return None
    found: dict[tuple[str, str], Difference] = {}
    for task, of_task in by_task.items():
        if baseline in of_task and not of_task[baseline].members:
            found |= _of_task(run, task, [v for v in of_task if v != baseline], baseline)
    if verdict is not None and verdict.baseline == baseline and not verdict.is_weighted:
        found |= {(name, f"{HELDOUT}/loss"): d for name, d in verdict.differences.items()}
    for of_task in by_task.values():
        for variant, suite in of_task.items():
            if variant != baseline:
                found |= _of_suite(variant, suite, found)
    return Paired(baseline, found)


def _of_task(
    run: RunReader, task: str, variants: Iterable[str], baseline: str
) -> dict[tuple[str, str], Difference]:
    if task == HELDOUT:
        return _of_heldout(run, variants, baseline)
    found: dict[tuple[str, str], Difference] = {}
    rival = read_item_scores(layout.evaluation_dir(run.path, baseline), task)
    for variant in variants:
        own = read_item_scores(layout.evaluation_dir(run.path, variant), task)
        if rival is None or own is None or not np.array_equal(own.items, rival.items):
            continue
        for metric in own.scores.keys() & rival.scores.keys():
            one, other = own.scores[metric], rival.scores[metric]
            if not len(one):
                continue
            is_share = np.isin(np.concatenate([one, other]), (0, 1)).all()
            found[variant, f"{task}/{metric}"] = (
                share_difference(one > 0, other > 0) if is_share else mean_difference(one, other)
            )
    return found


def _of_heldout(
    run: RunReader, variants: Iterable[str], baseline: str
) -> dict[tuple[str, str], Difference]:
    """Over all samples and over each source."""
    file = layout.split_file(layout.data_dir(run.path), "heldout")
    if not file.is_file():
        return {}
    samples = Samples.read(file)
    sources = np.asarray(samples.table["source"].to_pylist(), dtype=object)
    groups = {"": np.ones(len(samples), bool)}
    groups |= {str(name): sources == name for name in sorted(set(sources))}
    counts = samples.num_response_tokens.astype(np.float64)
    rivals = _sums(run, baseline, samples)
    found: dict[tuple[str, str], Difference] = {}
    for variant in variants if rivals is not None else ():
        own = _sums(run, variant, samples)
        if own is None or rivals is None:
            continue
        for group, rows in groups.items():
            hits, rival_hits = own.hits[rows], rivals.hits[rows]
            of_group = {
                "exact_match": share_difference(hits == counts[rows], rival_hits == counts[rows]),
                "token_accuracy": ratio_difference(hits, rival_hits, counts[rows]),
            }
            # A model that diverged has losses that are not finite.
            if np.isfinite(own.losses - rivals.losses).all():
                of_group["loss"] = ratio_difference(
                    own.losses[rows], rivals.losses[rows], counts[rows]
                )
            for metric, difference in of_group.items():
                found[variant, "/".join(filter(None, (HELDOUT, metric, group)))] = difference
    return found


@dataclass(frozen=True)
class _Sums:
    """Sums over the response tokens of each held-out sample, shape (samples,)."""

    losses: NDArray[np.float64]
    hits: NDArray[np.float64]


def _sums(run: RunReader, variant: str, samples: Samples) -> _Sums | None:
    folder, each = layout.evaluation_dir(run.path, variant), np.ones(samples.response_ids.size)
    losses = read_heldout_losses(folder, samples, each)
    hits = read_heldout_hits(folder, samples, each)
    return None if losses is None or hits is None else _Sums(losses, hits)


def _of_suite(
    variant: str, suite: Evaluation, found: Mapping[tuple[str, str], Difference]
) -> dict[tuple[str, str], Difference]:
    """The mean over a suite's members, each the mean over its tasks."""
    groups = {}
    for name, tasks in suite.members.items():
        parts = [found.get((variant, key)) for key in tasks]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return {}
        groups[name] = mean_of_differences(known)
    metrics = list(suite.metrics)
    if not groups or len(metrics) != 1:
        return {}
    key = f"{suite.task}/{metrics[0]}"
    of_groups = {(variant, f"{key}/{name}"): each for name, each in groups.items()}
    return {(variant, key): mean_of_differences(list(groups.values()))} | of_groups
