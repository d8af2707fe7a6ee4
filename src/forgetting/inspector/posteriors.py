"""Counts over the detector's posterior: how much a threshold flags, the worst span, the kind.

Input: arrays over all response tokens. Output: arrays over the steps of the page's slider, or over
samples. Numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forgetting.inspector.thresholds import Bools, Floats, Ints

STEPS: npt.NDArray[np.float32] = (np.arange(1, 100) / 100).astype(np.float32)
"""The steps of the slider. In float32, as the posterior is: 0.3 is at or above 0.3."""
NUM_BINS = 50


@dataclass(frozen=True)
class PosteriorCounts:
    """Tokens and samples that each step flags, and a histogram of the tokens."""

    tokens: Ints
    """Tokens at or above each step, shape (99,)."""
    samples: Ints
    """Samples with such a token, shape (99,)."""
    histogram: Ints
    """Tokens in bins of equal width from 0 to 1, shape (50,)."""

    @classmethod
    def of(cls, posterior: Floats, highest: Floats) -> PosteriorCounts:
        """Count.

        Args:
            posterior: shape (response tokens,).
            highest: the highest of each sample, shape (samples,).
        """

        def at_or_above(values: Floats) -> Ints:
            return len(values) - np.searchsorted(np.sort(values), STEPS)

        histogram, _ = np.histogram(posterior, bins=NUM_BINS, range=(0, 1))
        return cls(at_or_above(posterior), at_or_above(highest), histogram)


def highest_of(values: Floats, starts: Ints) -> Floats:
    """The highest value of each sample, 0 for one without tokens.

    Args:
        values: not negative, shape (response tokens,).
        starts: sample i has the tokens [starts[i], starts[i + 1]).
    """
    # One value more, where samples without tokens at the end begin.
    found = np.maximum.reduceat(np.append(values, values.dtype.type(0)), starts[:-1])
    return np.where(np.diff(starts) > 0, found, 0)


def worst_spans(posterior: Floats, begins: Bools, starts: Ints, least: float) -> Floats:
    """Expected bad tokens of each sample's worst span of flagged tokens.

    For a sample without a flagged token, its highest posterior. Both compare as suspicion does: a
    flagged span has at least `least`, other tokens have less.

    Args:
        begins: tokens that do not continue the token before them, shape (response tokens,).
        starts: as in `highest_of`.
        least: posterior from which a token is flagged.
    """
    flagged = posterior >= least
    edges = begins | np.r_[True, flagged[1:] != flagged[:-1]][: len(flagged)]
    span = np.cumsum(edges) - 1
    sums = np.bincount(span, weights=np.where(flagged, posterior, 0))
    per_token = np.where(flagged, sums[span], posterior) if len(posterior) else posterior
    return highest_of(per_token, starts)


def likely_kinds(posterior: Floats, kind: Ints, starts: Ints, num_kinds: int) -> Ints:
    """The kind that most bad tokens of each sample are expected to be, or -1.

    Args:
        kind: of each token if it is bad, or -1; shape (response tokens,).
        starts: as in `highest_of`.
        num_kinds: may be 0.

    Returns:
        Shape (samples,).
    """
    num = len(starts) - 1
    if not num_kinds:
        return np.full(num, -1)
    row = np.repeat(np.arange(num), np.diff(starts))
    known = kind >= 0
    sums = np.bincount(
        row[known] * num_kinds + kind[known],
        weights=posterior[known],
        minlength=num * num_kinds,
    ).reshape(num, num_kinds)
    return np.where(sums.any(axis=1), sums.argmax(axis=1), -1)
