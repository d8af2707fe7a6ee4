"""Estimates how much of a corpus is bad from how a detector of planted noise sees it.

Goes in: evidence on tokens with planted noise and on the corpus. Comes out: the share of bad
tokens and samples with 90 % intervals, and the posterior of each token of the corpus.

The detector tells planted noise from the corpus as it is, real noise included. Let
`r_k(x) = p_k(x) / p_corpus(x)` be the ratio of two densities: of planted kind k, and of the corpus.
If a share `a_k` of the corpus looks like kind k, then `a_k p_k(x) <= p_corpus(x)` for every x. So
`a_k` is at most the smallest ratio of "corpus tokens above a score" to "planted tokens above it"
over all scores (the best bin of Garg et al. 2021, arXiv 2111.00980). With equality, the posterior
of a token is `sum_k a_k r_k(x)`, at most 1. Nothing here fits a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0.05, 0.95, 19)
"""Shares of the planted tokens of a kind above the scores that are looked at."""
NUM_RESAMPLES = 200
LEVEL = 0.9
# Pseudo-counts that keep the ratio of small counts from being 0.
_PRIOR = 1.0


@dataclass(frozen=True)
class Shares:
    """How much of a corpus is bad."""

    share: float
    """Share of bad tokens."""
    interval: tuple[float, float]
    """90 % interval of `share`, by bootstrap over probe samples and corpus samples."""
    share_samples: float
    """Share of samples with a token whose posterior is at least 0.5."""
    interval_samples: tuple[float, float]
    by_kind: tuple[float, ...]
    """Share of tokens of each kind, in the detector's order of kinds."""
    posterior: NDArray[np.float32]
    """Probability that a token is bad; shape (tokens,)."""
