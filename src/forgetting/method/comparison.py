"""Compares the mean losses of two models on the same samples, with a paired bootstrap.

Input: sums of losses per sample, and the weights that they were summed with. Output: the
difference of the weighted means, and its interval. Pairing removes what makes a sample hard for
both models, which is most of the spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 4000
LEVEL = 0.9
"""Share of resamples inside an interval."""
_VALUES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Difference:
    """A difference of two means, and its bootstrap interval."""

    value: float
    low: float
    high: float


def paired_difference(
    losses: NDArray[np.float64],
    baseline: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    seed: int = 0,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
) -> Difference:
    """The weighted mean loss of a model minus that of a baseline.

    Samples are resampled, not tokens, because the tokens of a response are not independent
    (percentile bootstrap, Efron 1979). Every pair of models is compared on the same resamples.

    Args:
        losses: sum over the tokens of each sample of weight times loss; shape (samples,).
        baseline: the same of the baseline.
        weights: sum of each sample's weights; shape (samples,).
        seed: of the resamples.
        level: share of resamples inside the interval.

    Raises:
        ValueError: there is no sample, or no weight, or the shapes differ.
    """
    if not len(losses) == len(baseline) == len(weights):
        raise ValueError(f"{len(losses)} losses, {len(baseline)} of the baseline, {len(weights)}")
    if not weights.sum() > 0:
        raise ValueError("there is nothing to compare: the weights add up to 0")
    gaps = np.asarray(losses, dtype=np.float64) - baseline
    number = len(gaps)
    rng = np.random.default_rng(seed)
    found = []
    for begin in range(0, num_resamples, step := max(1, _VALUES_AT_ONCE // number)):
        size = min(step, num_resamples - begin)
        counts = rng.multinomial(number, np.full(number, 1 / number), size=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((counts @ gaps) / (counts @ weights))
    means = np.concatenate(found)
    # A resample may hold nothing but samples without weight.
    low, high = np.quantile(means[np.isfinite(means)], [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(gaps.sum() / weights.sum()), float(low), float(high))
