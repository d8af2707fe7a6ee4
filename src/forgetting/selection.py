"""The mathematics of the choice: from log-probabilities to polarity.

Goes in: log-probabilities of the response tokens under two models, in (sample, position) order.
Comes out: one int8 per token, +1 learn, -1 forget, 0 ignore. Equations 4 to 7 of
arXiv 2508.04329. This module knows nothing of models, samples' texts or files.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Granularity = Literal["token", "sequence"]
Threshold = Literal["quantile", "zero"]


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


def share_above_zero(quality: ArrayLike) -> float:
    """The share of tokens with quality above 0: the rho that `rho: auto` takes."""
    quality = np.asarray(quality)
    return float(np.mean(quality > 0)) if quality.size else 0.0


def select_tokens(
    quality: ArrayLike,
    rho: float | Literal["auto"],
    *,
    granularity: Granularity = "token",
    sample_ids: ArrayLike | None = None,
    forget_rate: float | None = None,
    threshold: Threshold = "quantile",
) -> NDArray[np.int8]:
    """Divide tokens into those to learn, to forget and to ignore (equations 6 and 7).

    Args:
        quality: shape (tokens,), in (sample, position) order; finite.
        rho: share of all tokens (with `granularity="sequence"`: of all samples) that is
            positive, strictly between 0 and 1; exactly `round(rho * n)` of them, halves up.
            `"auto"` takes the share whose quality is above 0. Not read with `threshold="zero"`.
        granularity: `"token"`, or `"sequence"`: a sample's tokens share one fate, decided by
            their mean quality.
        sample_ids: shape (tokens,), the sample of each token; needed for `"sequence"`.
        forget_rate: only this share of worst tokens (or samples) is negative; those between it
            and the positives are ignored. Default: all that are not positive are negative.
        threshold: `"quantile"` as above, or `"zero"`: positive where quality is above 0.

    Returns:
        int8 array of shape (tokens,): +1 learn, -1 forget, 0 ignore. Equal qualities at a
        threshold are divided in order of (sample, position), the earlier ones being the better,
        so that the partition depends on the values alone.

    Raises:
        ValueError: an argument outside its range, or a quality that is not finite.
    """
    quality = np.asarray(quality)
    if quality.ndim != 1:
        raise ValueError(f"quality must have shape (tokens,), got {quality.shape}")
    if not np.all(np.isfinite(quality)):
        where = int(np.flatnonzero(~np.isfinite(quality))[0])
        raise ValueError(f"quality is not finite at token {where}: {quality[where]}")
    if granularity not in get_args(Granularity) or threshold not in get_args(Threshold):
        raise ValueError(f"unknown granularity {granularity!r} or threshold {threshold!r}")
    if rho != "auto" and not 0 < rho < 1:
        raise ValueError(f"rho must lie strictly between 0 and 1, got {rho}")

    if granularity == "sequence":
        if sample_ids is None:
            raise ValueError("granularity='sequence' needs sample_ids")
        sample_ids = np.asarray(sample_ids)
        if sample_ids.shape != quality.shape:
            raise ValueError(f"sample_ids has shape {sample_ids.shape}, quality {quality.shape}")
        sequence_of, sequence_quality = _mean_by_run(quality, sample_ids)
        polarity = select_tokens(
            sequence_quality, rho, forget_rate=forget_rate, threshold=threshold
        )
        return polarity[sequence_of]

    if threshold == "zero":
        num_positive = int(np.count_nonzero(quality > 0))
    else:
        num_positive = _count(share_above_zero(quality) if rho == "auto" else rho, quality.size)
    num_negative = quality.size - num_positive
    if forget_rate is not None:
        # Counts are rounded one by one, so the bound is on counts, not on the shares.
        wanted = _count(forget_rate, quality.size)
        if not 0 <= forget_rate <= 1 or wanted > num_negative:
            raise ValueError(
                f"forget_rate {forget_rate} asks for {wanted} negative tokens, but only "
                f"{num_negative} of {quality.size} are not positive"
            )
        num_negative = wanted
    polarity = np.zeros(quality.size, dtype=np.int8)
    polarity[_top(quality, num_positive)] = 1
    # The worst are the best of the reversed order, so that a tie makes the later token negative.
    polarity[::-1][_top(-quality[::-1], num_negative)] = -1
    return polarity


def quality_threshold(quality: ArrayLike, polarity: ArrayLike) -> float | None:
    """The lowest quality among the positive tokens; None where none is positive."""
    positive = np.asarray(quality)[np.asarray(polarity) > 0]
    return float(positive.min()) if positive.size else None


def _count(share: float, total: int) -> int:
    return min(total, math.floor(share * total + 0.5))


def _top(values: NDArray, count: int) -> NDArray[np.bool_]:
    """Mask of the `count` largest values; of equal ones at the edge, the first in order."""
    if count <= 0:
        return np.zeros(values.size, dtype=bool)
    if count >= values.size:
        return np.ones(values.size, dtype=bool)
    edge = np.partition(values, values.size - count)[values.size - count]
    mask = values > edge
    equal = np.flatnonzero(values == edge)
    mask[equal[: count - int(np.count_nonzero(mask))]] = True
    return mask


def _mean_by_run(values: NDArray, run_ids: NDArray) -> tuple[NDArray[np.int64], NDArray]:
    """Mean of each run of equal, neighbouring ids, and the run of every element."""
    if values.size == 0:
        return np.zeros(0, dtype=np.int64), values
    starts = np.flatnonzero(np.r_[True, run_ids[1:] != run_ids[:-1]])
    run_of = np.cumsum(np.r_[0, run_ids[1:] != run_ids[:-1]])
    sums = np.add.reduceat(values.astype(np.float64), starts)
    return run_of, sums / np.bincount(run_of)
