"""How well a detector finds planted noise that it has not seen.

Input: calibrated log-odds out of fold, and the planted kinds. Output: `DetectorReport`. Knows
nothing of classifiers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.method.calibration import calibration_error, calibration_table, sigmoid
from forgetting.method.corruptions import CLEAN
from forgetting.method.shares import auroc

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
    calibration: tuple[tuple[float, float, int], ...]
    """(mean posterior, share of bad tokens, tokens) of each bin that is not empty."""
    kinds: dict[str, KindReport]


def auroc_of(bad: NDArray[np.bool_], score: NDArray) -> float | None:
    """AUROC of a score; None if there are fewer than 10 tokens on either side."""
    if bad.sum() < SMALLEST_KIND or (~bad).sum() < SMALLEST_KIND:
        return None
    return auroc(score[bad], score[~bad])


def describe(
    names: NDArray, kinds: tuple[str, ...], log_odds: NDArray, left_out: dict[str, float | None]
) -> DetectorReport:
    """Report on tokens that the detector has not seen.

    Args:
        names: kind of each token, "clean" if nothing was planted, shape (tokens,).
        kinds: the kinds to report on.
        log_odds: calibrated, shape (tokens,).
        left_out: AUROC of each kind by a detector that never saw it.
    """
    from sklearn.metrics import average_precision_score

    bad = names != CLEAN
    posterior = sigmoid(log_odds)
    marked = posterior >= 0.5
    by_kind = {}
    for kind in kinds:
        of_kind = names == kind
        both = of_kind | ~bad
        by_kind[kind] = KindReport(
            int(of_kind.sum()),
            auroc_of(of_kind[both], log_odds[both]),
            float(marked[of_kind].mean()) if of_kind.any() else None,
            left_out.get(kind),
        )
    table = calibration_table(posterior, bad)
    return DetectorReport(
        num_tokens=len(bad),
        share_planted=float(bad.mean()),
        auroc=auroc_of(bad, log_odds) or 0.5,
        average_precision=float(average_precision_score(bad, log_odds)),
        precision=float(bad[marked].mean()) if marked.any() else None,
        recall=float(marked[bad].mean()),
        calibration_error=calibration_error(table),
        calibration=table,
        kinds=by_kind,
    )
