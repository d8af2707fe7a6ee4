"""How good a token is, by several measures: from scores under two models to one number.

Goes in: for each response token what one pass over a model yields: its log-probability, the
entropy of the prediction, the rank of the token in it. Comes out: its quality, higher for a
better token, finite for all finite scores. A measure is an entry of `MEASURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

QualityName = Literal[
    "influence",
    "base_loss",
    "reference_loss",
    "min_loss",
    "relative",
    "rank_gap",
    "entropy_gap",
]

# In nats: a token of which the base is surer than this (99 % probability) counts as this sure.
MIN_BASE_LOSS = 0.01


def token_quality(base_log_probs: ArrayLike, reference_log_probs: ArrayLike) -> NDArray:
    """Quality of each token (equations 4 and 5): `Q = log p_reference - log p_base`, in nats.

    Args:
        base_log_probs: log-probabilities under the base model, shape (tokens,).
        reference_log_probs: the same tokens under the reference model, shape (tokens,).

    Returns:
        Quality, shape (tokens,): above 0 where fine-tuning on D_ref made the token more likely.
    """
    base, reference = np.asarray(base_log_probs), np.asarray(reference_log_probs)
    if base.shape != reference.shape:
        raise ValueError(
            f"base and reference scores differ in shape: {base.shape} and {reference.shape}"
        )
    return reference - base


def log_prob(log_probs: NDArray) -> NDArray:
    """`Q = log p = -loss`: a token is bad where one model finds it improbable."""
    return log_probs


def min_loss(base_log_probs: NDArray, reference_log_probs: NDArray) -> NDArray:
    """`Q = -min(l_base, l_reference)`: a token is bad only where both find it improbable."""
    return np.maximum(base_log_probs, reference_log_probs)


def relative_change(base_log_probs: NDArray, reference_log_probs: NDArray) -> NDArray[np.float32]:
    """`Q = (l_base - l_reference) / max(l_base, 0.01)`: the share of its loss that a token lost."""
    base, reference = (-np.asarray(x, np.float64) for x in (base_log_probs, reference_log_probs))
    change = (base - reference) / np.maximum(base, MIN_BASE_LOSS)
    limit = np.finfo(np.float32).max
    return np.clip(change, -limit, limit).astype(np.float32)


def rank_gap(base_rank: NDArray, reference_rank: NDArray) -> NDArray[np.float32]:
    """`Q = log(1 + rank_base) - log(1 + rank_reference)`: places won, on a logarithmic scale.

    A rank is the number of tokens that the model finds strictly more probable, 0 for its first.
    """
    base, reference = (np.log1p(np.asarray(x, np.float64)) for x in (base_rank, reference_rank))
    return (base - reference).astype(np.float32)


def entropy_gap(base_log_probs: NDArray, base_entropy: NDArray) -> NDArray:
    """`Q = H_base - l_base`: the loss that the base expected minus the loss that it had.

    H is the entropy of its prediction at that position, the loss that a token drawn from it has
    on average; so an uncertain position does not count as noise. The same difference, without
    its sign, is what locally typical sampling looks at (Meister et al., arXiv 2202.00666).
    """
    return base_entropy + base_log_probs


@dataclass(frozen=True)
class Measure:
    """A measure of quality."""

    formula: str
    """For people; l is the loss of a token, the negative log-probability, in nats."""
    columns: tuple[str, ...]
    """The scores that it needs, in the order of the arguments of `compute`."""
    compute: Callable[..., NDArray]
    """Arrays of shape (tokens,) to quality of the same shape."""
    has_zero: bool
    """Whether 0 divides better from worse; else the measure never is above 0."""


_LOG_PROBS = ("base_log_probs", "reference_log_probs")
MEASURES: Mapping[QualityName, Measure] = {
    "influence": Measure("l base − l reference", _LOG_PROBS, token_quality, True),
    "base_loss": Measure("−l base", ("base_log_probs",), log_prob, False),
    "reference_loss": Measure("−l reference", ("reference_log_probs",), log_prob, False),
    "min_loss": Measure("−min(l base, l reference)", _LOG_PROBS, min_loss, False),
    "relative": Measure("(l base − l reference) / l base", _LOG_PROBS, relative_change, True),
    "rank_gap": Measure(
        "log(1 + rank base) − log(1 + rank reference)",
        ("base_rank", "reference_rank"),
        rank_gap,
        True,
    ),
    "entropy_gap": Measure(
        "entropy base − l base", ("base_log_probs", "base_entropy"), entropy_gap, True
    ),
}
