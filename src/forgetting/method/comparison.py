"""Compares two models on the same samples or over the same seeds, and shares with few items.

Input: values in pairs, one of each model. Output: the difference of their means, its interval and
the number of pairs. Pairing removes what makes a sample or a seed hard for both models, which is
most of the spread. `wilson_interval` is for one share. Knows no files and no metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 4000
LEVEL = 0.9
"""Confidence level of an interval; of a bootstrap, the share of resamples inside it."""
_VALUES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Difference:
    """A difference of two means, and its interval."""

    value: float
    low: float
    """NaN, as is `high`, if there are too few pairs for an interval."""
    high: float
    num_pairs: int
    """Samples or seeds that were compared."""

    @property
    def has_interval(self) -> bool:
        """Whether there are enough pairs for an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def is_apart(self) -> bool:
        """Whether the interval excludes 0."""
        return self.has_interval and not self.low <= 0 <= self.high


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
    return Difference(float(gaps.sum() / weights.sum()), float(low), float(high), number)


def mean_difference(
    values: NDArray[np.floating] | Sequence[float],
    baseline: NDArray[np.floating] | Sequence[float],
    *,
    level: float = LEVEL,
) -> Difference:
    """The mean of `values - baseline`, with the interval of the paired t-test.

    Args:
        values: one per pair, finite.
        baseline: the same of the baseline.
        level: confidence level.

    Returns:
        Without an interval if there is only one pair.

    Raises:
        ValueError: there is no pair, or the lengths differ.
    """
    return ratio_difference(values, baseline, np.ones(len(values)), level=level)


def ratio_difference(
    losses: NDArray[np.floating] | Sequence[float],
    baseline: NDArray[np.floating] | Sequence[float],
    weights: NDArray[np.floating],
    *,
    level: float = LEVEL,
) -> Difference:
    """The weighted mean loss of a model minus that of a baseline, with a t interval.

    The standard error is that of a ratio over samples (linearized), because the tokens of one
    response are not independent. With equal weights it is that of the paired t-test.

    Args:
        losses: sum over each sample of weight times loss, shape (samples,).
        baseline: the same of the baseline.
        weights: sum of each sample's weights, shape (samples,).
        level: confidence level.

    Returns:
        Without an interval if there is only one sample.

    Raises:
        ValueError: there is no weight, or the lengths differ.
    """
    from scipy.special import stdtrit

    if not len(losses) == len(baseline) == len(weights):
        raise ValueError(f"{len(losses)} values, {len(baseline)} of the baseline, {len(weights)}")
    number, total = len(weights), float(weights.sum())
    if not total > 0:
        raise ValueError("there is nothing to compare")
    gaps = np.asarray(losses, np.float64) - np.asarray(baseline, np.float64)
    value = float(gaps.sum()) / total
    if number < 2:
        return Difference(value, math.nan, math.nan, number)
    squares = float(((gaps - value * weights) ** 2).sum())
    error = math.sqrt(number / (number - 1) * squares) / total
    margin = float(stdtrit(number - 1, (1 + level) / 2)) * error
    return Difference(value, value - margin, value + margin, number)


def wilson_interval(share: float, number: int, *, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a share of `number` items (Wilson 1927).

    It lies within 0 and 1, and does not shrink to a point at shares of 0 and 1.

    Args:
        share: from 0 to 1.
        number: at least 1.
        level: confidence level.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    spread = math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
    margin = z * spread / (1 + z * z / number)
    # Rounding could exclude the share itself.
    return max(0.0, min(share, middle - margin)), min(1.0, max(share, middle + margin))


def share_difference(
    hits: NDArray[np.bool_], baseline: NDArray[np.bool_], *, level: float = LEVEL
) -> Difference:
    """The share of hits of a model minus that of a baseline on the same items.

    The interval combines the Wilson intervals of both shares, with their correlation (method 10 of
    Newcombe 1998, Statistics in Medicine 17, 2635-2650). Its width is above 0 even if both models
    give the same answers.

    Args:
        hits: shape (items,).
        baseline: the same of the baseline.
        level: confidence level.

    Raises:
        ValueError: there is no item, or the lengths differ.
    """
    if len(hits) != len(baseline) or not len(hits):
        raise ValueError(f"{len(hits)} items, {len(baseline)} of the baseline")
    number = len(hits)
    both, own = int((hits & baseline).sum()), int((hits & ~baseline).sum())
    others = int((~hits & baseline).sum())
    neither = number - both - own - others
    share, rival = (both + own) / number, (both + others) / number
    low, high = wilson_interval(share, number, level=level)
    rival_low, rival_high = wilson_interval(rival, number, level=level)
    phi = _correlation(both, own, others, neither)
    value = share - rival
    below, above = share - low, high - share
    rival_below, rival_above = rival - rival_low, rival_high - rival
    return Difference(
        value,
        value - math.sqrt(max(0, below**2 - 2 * phi * below * rival_above + rival_above**2)),
        value + math.sqrt(max(0, rival_below**2 - 2 * phi * rival_below * above + above**2)),
        number,
    )


def _correlation(both: int, own: int, others: int, neither: int) -> float:
    """Correlation of two shares, with Newcombe's correction for continuity."""
    product = (both + own) * (others + neither) * (both + others) * (own + neither)
    if not product:
        return 0.0
    excess = float(both * neither - own * others)
    if excess > 0:
        excess = max(excess - (both + own + others + neither) / 2, 0)
    return excess / math.sqrt(product)


def mean_of_differences(differences: Sequence[Difference]) -> Difference:
    """The unweighted mean of independent differences, such as those of a suite's tasks.

    The distances to the limits of the intervals are added in squares (Zou and Donner 2008).

    Raises:
        ValueError: there is none.
    """
    number = len(differences)
    if not number:
        raise ValueError("there is nothing to compare")
    value = math.fsum(each.value for each in differences) / number
    below = math.hypot(*(each.value - each.low for each in differences)) / number
    above = math.hypot(*(each.high - each.value for each in differences)) / number
    return Difference(value, value - below, value + above, sum(d.num_pairs for d in differences))
