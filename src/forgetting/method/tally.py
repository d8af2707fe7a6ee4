"""Statistics of a selection, accumulated over chunks of samples.

Input: quality and polarity of response tokens, sample by sample. Output: counts by source
and by position in the response, and a histogram of quality. Memory does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HISTOGRAM_BINS = 80
# Positions 0, 1, 2-3, 4-7, ... of a response; the last bin is open.
NUM_POSITION_BINS = 16


@dataclass(frozen=True)
class PolarityCounts:
    """Numbers of response tokens by polarity."""

    num_tokens: int
    num_positive: int
    num_negative: int
    num_ignored: int


class SelectionTally:
    """Counts a selection.

    Args:
        num_sources: number of sources.
        low: the smallest quality of all tokens.
        high: the largest.
    """

    def __init__(self, num_sources: int, low: float, high: float) -> None:
        # Source, bin of the position, polarity -1, 0, +1.
        self._table = np.zeros((num_sources, NUM_POSITION_BINS, 3), np.int64)
        self._range = (low, high)
        self.edges = np.histogram_bin_edges([], HISTOGRAM_BINS, self._range)
        """Bin edges of the histogram, shape (bins + 1,)."""
        self.counts = np.zeros(HISTOGRAM_BINS, np.int64)
        """Tokens in each bin."""

    def add(
        self,
        quality: NDArray,
        polarity: NDArray[np.int8],
        lengths: NDArray[np.integer],
        sources: NDArray[np.integer],
    ) -> None:
        """Count the tokens of some samples.

        Args:
            quality: shape (tokens,).
            polarity: shape (tokens,).
            lengths: tokens of each sample, shape (samples,).
            sources: number of each sample's source, shape (samples,).
        """
        starts = np.cumsum(lengths) - lengths
        # The exponent of a whole number is its length in bits: 0, 1, 2, 2, 3, 3, 3, 3, ...
        _, bits = np.frexp(np.arange(lengths.max(initial=0)))
        bin_of = np.minimum(bits, NUM_POSITION_BINS - 1)
        position = np.arange(quality.size) - np.repeat(starts, lengths)
        cell = np.repeat(NUM_POSITION_BINS * sources, lengths) + bin_of[position]
        counts = np.bincount(3 * cell + (polarity + 1), minlength=self._table.size)
        self._table += counts.reshape(self._table.shape)
        self.counts += np.histogram(quality, HISTOGRAM_BINS, self._range)[0]

    @property
    def total(self) -> PolarityCounts:
        """Counts of all tokens."""
        return _as_counts(self._table.sum((0, 1)))

    @property
    def by_source(self) -> list[PolarityCounts]:
        """Counts of each source, in order of their numbers."""
        return [_as_counts(row) for row in self._table.sum(1)]

    @property
    def by_position(self) -> Iterator[tuple[int, int | None, PolarityCounts]]:
        """(first position, position after the last or None, counts) of each bin with tokens."""
        for number, row in enumerate(self._table.sum(0)):
            if row.any():
                stop = 1 << number if number < NUM_POSITION_BINS - 1 else None
                yield (1 << number) >> 1, stop, _as_counts(row)


def _as_counts(row: NDArray[np.int64]) -> PolarityCounts:
    negative, ignored, positive = (int(count) for count in row)
    return PolarityCounts(positive + negative + ignored, positive, negative, ignored)
