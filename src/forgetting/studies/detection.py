"""How well measures of quality find tokens that are known to be noise.

In: the quality of each response token by several measures, and which tokens are noise. Out: AUROC
and average precision of each measure. Exact, for corpora whose scores fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from sklearn.metrics import average_precision_score, roc_auc_score

from forgetting.method import MEASURES
from forgetting.rundir.scores import ScoredCorpus

ALL_KINDS = "all"


class DetectionScore(BaseModel):
    """How well a measure finds noise. None if there is no noise, or nothing else."""

    auroc: float | None
    """Probability that a noisy token has a lower quality than a clean one; 0.5 is chance."""
    average_precision: float | None
    """Area under precision over recall, worst tokens first; the share of noise is chance."""


def measures(has_reference: bool) -> list[str]:
    """The measures that can be computed."""
    return [
        name
        for name, measure in MEASURES.items()
        if has_reference or not any(column.startswith("reference_") for column in measure.columns)
    ]


def detect_noise(
    qualities: Mapping[str, NDArray],
    noisy: NDArray[np.bool_],
    kinds: NDArray | None = None,
    subsets: Mapping[str, NDArray[np.bool_]] | None = None,
) -> dict[str, dict[str, DetectionScore]]:
    """Score each measure on all noise, on each kind of noise, and within subsets of the tokens.

    Args:
        qualities: quality by measure, shape (tokens,), higher is better.
        noisy: which tokens are noise, shape (tokens,).
        kinds: name of each token's kind of noise, shape (tokens,); read where `noisy` is true. Each
            kind is compared with all clean tokens. None: kinds are not told apart.
        subsets: tokens to look at, by name, shape (tokens,).

    Returns:
        By measure, then by `all`, kind and subset.
    """
    wanted = {ALL_KINDS: np.ones(noisy.size, bool)}
    if kinds is not None:
        wanted |= {str(kind): ~noisy | (kinds == kind) for kind in np.unique(kinds[noisy])}
    wanted |= subsets or {}
    return {
        name: {
            kind: _score(noisy[members], -quality[members].astype(np.float64))
            for kind, members in wanted.items()
        }
        for name, quality in qualities.items()
    }


def _score(noisy: NDArray[np.bool_], badness: NDArray[np.float64]) -> DetectionScore:
    if not noisy.any() or noisy.all():
        return DetectionScore(auroc=None, average_precision=None)
    return DetectionScore(
        auroc=float(roc_auc_score(noisy, badness)),
        average_precision=float(average_precision_score(noisy, badness)),
    )


def read_qualities(run: Path, names: Iterable[str]) -> dict[str, NDArray]:
    """Quality of every response token of a run's D_train, by measure.

    Args:
        run: a run directory with scores.
        names: measures, of `forgetting.method.MEASURES`.

    Returns:
        Arrays of shape (response tokens,), all in memory.

    Raises:
        InputError: scores are missing, broken, or belong to other tokens.
    """
    measures = {name: MEASURES[name] for name in names}
    columns = sorted({column for measure in measures.values() for column in measure.columns})
    scores = read_scores(run, columns)
    return {
        name: measure.compute(*(scores[column] for column in measure.columns))
        for name, measure in measures.items()
    }


def read_scores(run: Path, columns: Iterable[str]) -> dict[str, NDArray]:
    """Scores of every response token of a run's D_train, by column; as `read_qualities`."""
    names = list(columns)
    shards = list(ScoredCorpus(run).scores(names))
    return {name: np.concatenate([shard.columns[name] for shard in shards]) for name in names}
