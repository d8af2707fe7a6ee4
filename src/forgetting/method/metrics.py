"""Metrics: how well quality detects known noise, and mean and deviation over seeds.

Input: quality, polarity and known noise of the same tokens, in chunks. Output: AUROC, average
precision, precision and recall. Knows nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.method.quantile import order_keys

# Sign, exponent and 13 bits of the fraction: qualities that agree in all of them count as equal.
KEY_BITS = 22


@dataclass(frozen=True)
class NoiseDetection:
    """Detection of known noise. A metric of an empty set is undefined and None."""

    num_noisy: int
    share_noisy: float
    auroc: float | None
    """Probability that a noisy token has a lower quality than a clean one; 0.5 is chance level."""
    average_precision: float | None
    """Area under the precision-recall curve, worst tokens first; chance level is `share_noisy`."""
    precision: float | None
    """Share of noisy tokens among those that are not positive."""
    recall: float | None
    """Share of the noisy tokens that are not positive."""
    precision_negative: float | None
    """Share of noisy tokens among the negative ones."""
    recall_negative: float | None
    """Share of the noisy tokens that are negative."""


class NoiseTally:
    """Measures how well low quality predicts noise, and how the selection treats the noise.

    Memory is constant: qualities fall into bins with a relative width of 1/8192, and qualities in
    one bin count as ties in the areas under curves. All counts are exact.
    """

    def __init__(self) -> None:
        self._clean = np.zeros(1 << KEY_BITS, np.int64)
        self._noisy = np.zeros(1 << KEY_BITS, np.int64)
        # Rows: clean, noisy. Columns: polarity -1, 0, +1.
        self._counts = np.zeros((2, 3), np.int64)
        self._by_kind: dict[str, NDArray[np.int64]] = {}

    def add(
        self,
        quality: NDArray,
        polarity: NDArray[np.int8],
        noisy: NDArray[np.bool_],
        kinds: NDArray | None = None,
    ) -> None:
        """Count some tokens.

        Args:
            quality: shape (tokens,), finite.
            polarity: shape (tokens,).
            noisy: shape (tokens,), true where the token is known to be noise.
            kinds: shape (tokens,), name of the kind of noise; read where `noisy` is true.
        """
        keys = (order_keys(quality.astype(np.float32)) >> np.uint32(32 - KEY_BITS)).astype(np.intp)
        for table, members in ((self._clean, ~noisy), (self._noisy, noisy)):
            np.add.at(table, keys[members], 1)
        column = polarity.astype(np.intp) + 1
        self._counts += np.bincount(3 * noisy + column, minlength=6).reshape(2, 3)
        if kinds is not None:
            for kind in np.unique(kinds[noisy]):
                counts = np.bincount(column[noisy & (kinds == kind)], minlength=3)
                self._by_kind[str(kind)] = self._by_kind.get(str(kind), 0) + counts

    @property
    def detection(self) -> NoiseDetection:
        """Metrics over all tokens so far."""
        clean, noisy = (int(total) for total in self._counts.sum(1))
        dropped, negative = self._counts[:, :2].sum(1), self._counts[:, 0]
        both = bool(clean and noisy)
        return NoiseDetection(
            num_noisy=noisy,
            share_noisy=noisy / (clean + noisy) if clean + noisy else 0.0,
            auroc=self._auroc() if both else None,
            average_precision=self._average_precision() if both else None,
            precision=_share(dropped[1], dropped.sum()),
            recall=_share(dropped[1], noisy),
            precision_negative=_share(negative[1], negative.sum()),
            recall_negative=_share(negative[1], noisy),
        )

    @property
    def by_kind(self) -> Mapping[str, tuple[int, float]]:
        """Tokens of each kind of noise, and the share of them that is not positive."""
        return {
            kind: (int(counts.sum()), float(counts[:2].sum() / counts.sum()))
            for kind, counts in sorted(self._by_kind.items())
        }

    def _auroc(self) -> float:
        num_clean, num_noisy = float(self._clean.sum()), float(self._noisy.sum())
        # For each noisy token: the clean ones above it, and half of those in its bin.
        above = num_clean - np.cumsum(self._clean) + self._clean / 2
        return float(self._noisy @ above) / (num_clean * num_noisy)

    def _average_precision(self) -> float:
        bins = np.flatnonzero(self._noisy)
        all_below = np.cumsum(self._clean + self._noisy)[bins]
        found = self._noisy[bins]
        precision = np.cumsum(found) / all_below
        return float((precision * found).sum() / found.sum())


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the deviation of a single value is None."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation
