"""What a detector learns from and judges by: planted noise, samples, evidence on tokens.

Arrays only; knows nothing of classifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Probe:
    """Tokens of copies with planted noise."""

    features: NDArray[np.float32]
    """Shape (tokens, features)."""
    names: tuple[str, ...]
    """Names of the features."""
    kinds: NDArray[np.str_]
    """Kind of noise of each token, "clean" if it has none; shape (tokens,)."""
    lengths: NDArray[np.int64]
    """Response tokens of each copy; shape (copies,)."""
    records: NDArray[np.int64]
    """The record that each copy was made from; shape (copies,)."""

    def __post_init__(self) -> None:
        tokens = int(np.sum(self.lengths))
        if self.features.shape != (tokens, len(self.names)) or len(self.kinds) != tokens:
            raise ValueError(
                f"{tokens} tokens, but features of shape {self.features.shape}, "
                f"{len(self.names)} names and {len(self.kinds)} kinds"
            )
        if len(self.lengths) != len(self.records):
            raise ValueError(f"{len(self.lengths)} copies, but {len(self.records)} records")

    @property
    def of_records(self) -> NDArray[np.int64]:
        """The record of each token; shape (tokens,)."""
        return np.repeat(self.records, self.lengths)


@dataclass(frozen=True)
class CorpusSample:
    """Some samples of the corpus as they are."""

    features: NDArray[np.float32]
    """Shape (tokens, features), as in the probe."""
    lengths: NDArray[np.int64]
    """Response tokens of each sample; shape (samples,)."""
    records: NDArray[np.int64]
    """The record of each sample, as numbered in `Probe.records`; shape (samples,)."""


@dataclass(frozen=True)
class Evidence:
    """What a detector says about tokens, before it is known how much of the corpus is bad."""

    log_odds: NDArray[np.float32]
    """Planted noise against clean tokens, at the share of the probe; shape (tokens,)."""
    kind_probs: NDArray[np.float32]
    """Probability of each kind if the token is bad; shape (tokens, kinds)."""


def join_evidence(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of all shards, in their order."""
    return Evidence(
        np.concatenate([part.log_odds for part in parts]),
        np.concatenate([part.kind_probs for part in parts]),
    )
