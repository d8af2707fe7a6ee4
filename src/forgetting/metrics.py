"""How well a quality score finds tokens that are known to be noise.

Goes in: quality, polarity and the known noise of the same tokens. Comes out: detection figures.
Knows nothing of where any of them come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score


@dataclass(frozen=True)
class NoiseDetection:
    """Detection of known noise; a figure is None where it is undefined (an empty set)."""

    num_noisy: int
    share_noisy: float
    auroc: float | None
    """Chance that a noisy token scores below a clean one; 0.5 is chance, below it misleads."""
    average_precision: float | None
    """Area under precision over recall, worst tokens first; chance is `share_noisy`."""
    precision: float | None
    """Share of the tokens that are not positive which are noisy."""
    recall: float | None
    """Share of the noisy tokens that are not positive."""


def noise_detection(quality: ArrayLike, polarity: ArrayLike, noisy: ArrayLike) -> NoiseDetection:
    """Measure how well low quality predicts noise, and what the selection made of it.

    Args:
        quality: shape (tokens,).
        polarity: shape (tokens,); the set that is measured is `polarity != +1`.
        noisy: shape (tokens,), true where the token is known to be noise.
    """
    quality, noisy = np.asarray(quality), np.asarray(noisy).astype(bool)
    dropped = np.asarray(polarity) != 1
    both_classes = bool(noisy.any()) and not bool(noisy.all())
    found = int(np.count_nonzero(dropped & noisy))
    return NoiseDetection(
        num_noisy=int(noisy.sum()),
        share_noisy=float(noisy.mean()) if noisy.size else 0.0,
        auroc=float(roc_auc_score(noisy, -quality)) if both_classes else None,
        average_precision=float(average_precision_score(noisy, -quality)) if both_classes else None,
        precision=found / int(dropped.sum()) if dropped.any() else None,
        recall=found / int(noisy.sum()) if noisy.any() else None,
    )
