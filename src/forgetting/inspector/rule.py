"""Where a selection divides, for every rho at once: a sketch of the corpus' quality.

Goes in: the quality of all response tokens and how the run selects. Comes out: one threshold for
each thousandth of rho, and how many tokens, noisy ones among them, lie below it. With it a page
marks tokens at any rho without another look at the corpus. Numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

NUM_LEVELS = 1000


@dataclass(frozen=True)
class Rule:
    """How a variant chooses, as far as it matters at another rho than its own."""

    by_sample: bool = False
    """Whole samples are chosen, by their mean quality."""
    by_source: bool = False
    """rho is a share of each source."""
    keep_ends: bool = True
    """End-of-sequence tokens are never negative."""
    forget_rate: float | None = None
    """Share that is negative; what lies between it and the positives is ignored."""

    @classmethod
    def from_recipe(cls, settings: Mapping[str, Any]) -> Rule:
        """From a recipe's section `selection`, whose defaults hold where it is silent."""
        rate = settings.get("forget_rate")
        return cls(
            by_sample=settings.get("granularity") == "sequence",
            by_source=settings.get("balance") == "source",
            keep_ends=bool(settings.get("keep_eos", True)),
            forget_rate=None if rate is None else float(rate),
        )


def thresholds(ordered: Floats) -> Floats:
    """The lowest positive value, for each level 0 to 1000 of the share that is not positive.

    As the selection counts: of n values `round(rho * n)`, halves up, are positive, so values
    below `thresholds(ordered)[level]` are not, where rho is 1 - level / 1000. Equal values at the
    threshold all count as positive here.

    Args:
        ordered: values from low to high, shape (n,).

    Returns:
        Shape (1001,).
    """
    rho = 1 - np.arange(NUM_LEVELS + 1) / NUM_LEVELS
    num_positive = np.minimum(np.floor(rho * len(ordered) + 0.5).astype(np.int64), len(ordered))
    if not len(ordered):
        return np.zeros(NUM_LEVELS + 1)
    nothing = float(ordered[-1]) + 1  # above all: no value is positive
    found = ordered[np.minimum(len(ordered) - num_positive, len(ordered) - 1)].astype(np.float64)
    return np.where(num_positive > 0, found, nothing)


def level_of(rho: float) -> int:
    """The level nearest to a rho."""
    return round((1 - rho) * NUM_LEVELS)


def forget_level(rule: Rule, level: int) -> int:
    """The level below which tokens are negative; between it and `level` they are ignored."""
    if rule.forget_rate is None:
        return level
    return min(level, round(rule.forget_rate * NUM_LEVELS))


@dataclass(frozen=True)
class NoiseCurve:
    """What lies below each level among the tokens whose noise is known; shape (1001,)."""

    num_not_positive: Ints
    num_found: Ints
    """Noisy tokens among them."""


def noise_curve(
    values: Floats, noisy: Bools, is_end: Bools, sketch: Floats, rule: Rule
) -> NoiseCurve:
    """Count tokens, and noisy ones, that are not positive at each level.

    Args:
        values: what decides for each token whose noise is known, shape (tokens,).
        noisy: shape (tokens,).
        is_end: shape (tokens,), tokens that are positive where they would be negative.
        sketch: `thresholds` of the same corpus.
        rule: of the selection.
    """
    negative_below = sketch[[forget_level(rule, level) for level in range(NUM_LEVELS + 1)]]

    def count(chosen: Bools) -> Ints:
        below = np.searchsorted(np.sort(values[chosen]), sketch)
        spared = np.searchsorted(np.sort(values[chosen & is_end]), negative_below)
        return below - spared if rule.keep_ends else below

    return NoiseCurve(count(np.ones(len(values), dtype=bool)), count(noisy))
