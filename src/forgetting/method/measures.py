"""Measures of token quality: from scores under two models to one number, an entry of `MEASURES`.

Input: scores of each response token from one forward pass per model, such as its log-probability
or the entropy of the prediction. Output: its quality, higher for a better token, finite for all
finite scores. Knows nothing of where scores come from or how tokens are selected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.errors import InputError, did_you_mean
from forgetting.method.columns import COLUMNS, POSTERIOR
from forgetting.registry import Registry

# In nats: a token with a smaller loss (a probability above 99 %) counts as having this one.
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
    """`Q = log p = -loss`: a token is bad if the model finds it improbable."""
    return log_probs


def min_loss(base_log_probs: NDArray, reference_log_probs: NDArray) -> NDArray:
    """`Q = -min(l_base, l_reference)`: a token is bad only if both models find it improbable."""
    return np.maximum(base_log_probs, reference_log_probs)


def relative_change(base_log_probs: NDArray, reference_log_probs: NDArray) -> NDArray[np.float32]:
    """`Q = (l_base - l_reference) / max(l_base, 0.01)`: the relative decrease of the loss."""
    base, reference = (-np.asarray(x, np.float64) for x in (base_log_probs, reference_log_probs))
    change = (base - reference) / np.maximum(base, MIN_BASE_LOSS)
    limit = np.finfo(np.float32).max
    return np.clip(change, -limit, limit).astype(np.float32)


def rank_gap(base_rank: NDArray, reference_rank: NDArray) -> NDArray[np.float32]:
    """`Q = log(1 + rank_base) - log(1 + rank_reference)`: the gain in rank, on a logarithmic scale.

    A token's rank is the number of tokens that the model finds strictly more likely.
    """
    base, reference = (np.log1p(np.asarray(x, np.float64)) for x in (base_rank, reference_rank))
    return (base - reference).astype(np.float32)


def not_bad(posterior: NDArray) -> NDArray[np.float32]:
    """`Q = 1 - posterior`: the detector's probability that a token is good.

    1 for every token if the detector found nothing.
    """
    return (1 - np.asarray(posterior, np.float32)).astype(np.float32, copy=False)


def cautious_weights(posterior: NDArray, caution: float) -> NDArray[np.float32]:
    """`w = (1 - c) / (1 - c + caution c)`: how much a token counts that is bad with probability c.

    1 minus the posterior at odds that are `caution` times as high.

    Args:
        posterior: c, shape (tokens,).
        caution: above 0; 1: `w = 1 - c`, as in `not_bad`, bit for bit.

    Returns:
        Shape (tokens,).
    """
    good = not_bad(posterior)
    if caution == 1:
        return good
    good = good.astype(np.float64)
    return (good / (good + caution * (1 - good))).astype(np.float32)


def entropy_gap(base_log_probs: NDArray, base_entropy: NDArray) -> NDArray:
    """`Q = H_base - l_base`: the expected loss under the base minus the actual loss.

    H is the entropy of the base model's prediction at the position: the expected loss of a token
    drawn from it. So a token at an uncertain position does not count as noise. Locally typical
    sampling (Meister et al., arXiv 2202.00666) uses the absolute value of the same difference.
    """
    return base_entropy + base_log_probs


@dataclass(frozen=True)
class Measure:
    """A measure of token quality."""

    name: str
    formula: str
    """Formula for people; l is a token's loss, its negative log-probability in nats."""
    columns: tuple[str, ...]
    """Scores that the measure needs, in the order of the arguments of `compute`."""
    compute: Callable[..., NDArray]
    """Function from arrays of shape (tokens,) to quality of the same shape, higher for a better
    token."""
    has_zero: bool = False
    """Whether 0 separates better from worse tokens."""
    is_stepped: bool = False
    """Whether the quality takes few distinct values, so that its distribution has no peaks."""


_LOG_PROBS = ("base_log_probs", "reference_log_probs")
DEFAULT_MEASURE = "influence"
"""The paper's."""
DETECTOR = "detector"
"""Measure by the posterior of the planted-noise detector."""
MEASURES: Registry[Measure] = Registry(
    "measure",
    "forgetting.measures",
    [
        Measure(DEFAULT_MEASURE, "l base − l reference", _LOG_PROBS, token_quality, has_zero=True),
        Measure("base_loss", "−l base", ("base_log_probs",), log_prob),
        Measure("reference_loss", "−l reference", ("reference_log_probs",), log_prob),
        Measure("min_loss", "−min(l base, l reference)", _LOG_PROBS, min_loss),
        Measure(
            "relative",
            "(l base − l reference) / l base",
            _LOG_PROBS,
            relative_change,
            has_zero=True,
        ),
        Measure(
            "rank_gap",
            "log(1 + rank base) − log(1 + rank reference)",
            ("base_rank", "reference_rank"),
            rank_gap,
            has_zero=True,
            is_stepped=True,
        ),
        Measure(
            "entropy_gap",
            "entropy base − l base",
            ("base_log_probs", "base_entropy"),
            entropy_gap,
            has_zero=True,
        ),
        Measure(DETECTOR, "1 − posterior of the detector", (POSTERIOR,), not_bad),
    ],
)
"""How good a token is."""


def usable_measures(columns: Container[str]) -> dict[str, Measure]:
    """The measures that some scores allow, by name.

    Args:
        columns: scores that there are.
    """
    return {
        name: measure
        for name, measure in MEASURES.items()
        if all(column in columns for column in measure.columns)
    }


def usable_measure(name: str, columns: Container[str], where: str) -> Measure:
    """A measure that a user asks for by name.

    Args:
        name: of the measure.
        columns: scores that there are.
        where: what has these scores, for the message.

    Raises:
        InputError: there is no such measure, or it needs other scores. The message lists the
            measures that can be used.
    """
    usable = usable_measures(columns)
    if name in usable:
        return usable[name]
    if name in MEASURES:
        missing = next(column for column in MEASURES[name].columns if column not in columns)
        problem = f"it needs {missing}, which {where} does not have"
    else:
        hint = did_you_mean(name, usable)
        problem = f"there is no such measure. {hint}".strip()
    end = "" if problem.endswith((".", "?")) else "."
    raise InputError(f"quality {name}: {problem}{end} Choose from {', '.join(usable)}")


def register_measure(
    name: str,
    compute: Callable[..., NDArray],
    *,
    columns: tuple[str, ...] = ("base_log_probs",),
    formula: str = "",
    has_zero: bool = False,
) -> None:
    """Add a measure of token quality, which recipes then accept as `selection.quality`.

    Args:
        name: lowercase letters, digits and underscores.
        compute: function of one array per column, each of shape (tokens,), that returns the
            quality of each token, higher for a better one.
        columns: scores that `compute` takes, in its order: a pass (`base`, `base_empty`,
            `reference` or `reference_empty`), an underscore, and `log_probs` (nats), `entropy`
            (nats), `surprise_std` (nats), `best_other_log_prob` (nats), `rank` (0 for the most
            likely token) or `sum_squares`. Or `posterior`, the detector's probability that the
            token is bad.
        formula: for people; default: the name.
        has_zero: whether a quality above 0 means a good token, so that `rho: auto` and
            `threshold: zero` make sense.

    Raises:
        ValueError: the name is malformed or taken, or a column does not exist.

    Example:
        >>> register_measure("likely", lambda log_probs: log_probs, formula="log p base")
    """
    columns = (columns,) if isinstance(columns, str) else tuple(columns)
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown or not columns:
        raise ValueError(
            f"the measure {name} asks for {unknown[0] if unknown else 'no column'}. The columns "
            f"are {', '.join(COLUMNS)}"
        )
    checked = functools.partial(_checked, name, compute)
    MEASURES.register(Measure(name, formula or name, columns, checked, has_zero))


def _checked(name: str, compute: Callable[..., NDArray], *scores: NDArray) -> NDArray:
    quality = np.asarray(compute(*scores))
    if quality.shape != scores[0].shape:
        raise InputError(
            f"the measure {name} returned an array of shape {quality.shape} for "
            f"{scores[0].shape[0]} tokens. It must return one value per token"
        )
    if quality.dtype.kind not in "fiub" or not np.isfinite(quality).all():
        raise InputError(
            f"the measure {name} returned a value that is not a finite number. Fix its function"
        )
    return quality
