"""How well a detector finds planted noise that it has not seen.

Input: calibrated log-odds and likely kinds out of fold, and the planted kinds. Output:
`DetectorReport`. Knows nothing of classifiers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.method.calibration import calibration_error, calibration_table, sigmoid
from forgetting.method.corruptions import CLEAN

# Tokens of a kind below which a figure about it would be chance.
SMALLEST_KIND = 10


@dataclass(frozen=True)
class KindReport:
    """How well one kind of planted noise is found."""

    num_tokens: int
    auroc: float | None
    """Against clean tokens; None below 10 tokens."""
    recall: float | None
    """Share of its tokens with a posterior of at least 0.5 in the probe."""
    precision: float | None
    """Share of planted noise, of any kind, among the tokens with a posterior of at least 0.5 whose
    likely kind this is; None if there are fewer than 10 of them."""
    auroc_left_out: float | None
    """The same as `auroc`, by a detector that never saw this kind."""


@dataclass(frozen=True)
class DetectorReport:
    """How well planted noise is found, out of fold."""

    num_tokens: int
    share_planted: float
    auroc: float
    average_precision: float
    precision: float | None
    """At a posterior of 0.5; None if no token reaches it."""
    recall: float
    calibration_error: float
    """Expected calibration error over 15 bins of equal width."""
    calibration: tuple[tuple[float, float, float], ...]
    """(mean posterior, share of bad tokens, weight of the tokens) of each bin that is not empty."""
    kinds: dict[str, KindReport]


def auroc_of(
    bad: NDArray[np.bool_], score: NDArray, weights: NDArray[np.float64] | None = None
) -> float | None:
    """AUROC of a score with a weight for each token; None if there are fewer than 10 tokens on
    either side."""
    if bad.sum() < SMALLEST_KIND or (~bad).sum() < SMALLEST_KIND:
        return None
    if weights is not None and not weights[~bad].any():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(bad, score, sample_weight=weights))


def describe(
    names: NDArray,
    kinds: tuple[str, ...],
    log_odds: NDArray,
    kind_probs: NDArray,
    weights: NDArray[np.float64],
    left_out: dict[str, float | None],
) -> DetectorReport:
    """Report on tokens that the detector has not seen.

    Args:
        names: kind of each token, "clean" if nothing was planted, shape (tokens,).
        kinds: the kinds to report on.
        log_odds: calibrated, shape (tokens,).
        kind_probs: probability of each of `kinds` if the token is bad, shape (tokens, kinds).
        weights: how much each token counts, shape (tokens,): 1 if noise was planted, else the
            probability that it is clean.
        left_out: AUROC of each kind by a detector that never saw it.
    """
    from sklearn.metrics import average_precision_score

    bad = names != CLEAN
    posterior = sigmoid(log_odds)
    marked = posterior >= 0.5
    likely = kind_probs.argmax(1)
    by_kind = {}
    for place, kind in enumerate(kinds):
        of_kind = names == kind
        marked_so = marked & (likely == place)
        is_enough = marked_so.sum() >= SMALLEST_KIND
        both = of_kind | ~bad
        by_kind[kind] = KindReport(
            int(of_kind.sum()),
            auroc_of(of_kind[both], log_odds[both], weights[both]),
            float(marked[of_kind].mean()) if of_kind.any() else None,
            _mean(bad[marked_so], weights[marked_so]) if is_enough else None,
            left_out.get(kind),
        )
    table = calibration_table(posterior, bad, weights)
    return DetectorReport(
        num_tokens=len(bad),
        share_planted=float(np.average(bad, weights=weights)),
        auroc=auroc_of(bad, log_odds, weights) or 0.5,
        average_precision=float(average_precision_score(bad, log_odds, sample_weight=weights)),
        precision=_mean(bad[marked], weights[marked]),
        recall=float(marked[bad].mean()),
        calibration_error=calibration_error(table),
        calibration=table,
        kinds=by_kind,
    )


def _mean(values: NDArray, weights: NDArray) -> float | None:
    """None if nothing has a weight."""
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total > 0 else None
