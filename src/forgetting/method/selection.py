"""Turns token quality into polarity: learn, ignore or forget.

Input: quality of the response tokens in (sample, position) order, all at once or in chunks.
Output: one int8 per token, +1 learn, -1 forget, 0 ignore. Equations 6 and 7 of
arXiv 2508.04329. Knows nothing of how quality is measured, nor of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.method.mixture import Mixture, Sketch, fit_mixture
from forgetting.method.quantile import ALL, Cut, CutFinder, CutReader

Granularity = Literal["token", "sequence"]
Threshold = Literal["quantile", "zero", "mixture", "posterior"]

Chunk = tuple[NDArray, NDArray[np.integer] | None]
"""Quality of consecutive tokens, float32 or float64, and the group of each; None: group 0."""
Chunks = Callable[[], Iterable[Chunk]]
"""Function that returns all chunks in order, from the start, each time it is called."""


def share_above_zero(quality: ArrayLike) -> float:
    """The share of tokens with quality above 0, which `rho: auto` uses as rho."""
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
    posterior: float = 0.9,
    groups: ArrayLike | None = None,
) -> NDArray[np.int8]:
    """Divide tokens into those to learn, to forget and to ignore (equations 6 and 7).

    Args:
        quality: shape (tokens,), in (sample, position) order; finite.
        rho: share of tokens that are positive, strictly between 0 and 1: exactly
            `round(rho * n)` of them, halves rounded up. With `granularity="sequence"`, the share
            of samples. `"auto"` uses the share with a quality above 0. Ignored with
            all other thresholds than `"quantile"`.
        granularity: `"token"`, or `"sequence"` to select whole samples by their mean quality.
        sample_ids: shape (tokens,), the sample of each token; required for `"sequence"`.
        forget_rate: share of the worst tokens (or samples) that are negative. Those between them
            and the positive ones are ignored. Default: all that are not positive are negative.
        threshold: `"quantile"`: the best `rho` are positive. `"zero"`: a quality above 0 is
            positive. `"mixture"`: two components are fitted to the quality; a token is negative
            if its posterior of the lower one is at least `posterior`, positive if it is below
            1/2, and ignored in between. If there is only one component, all are positive.
            `"posterior"`: the same for a quality that is 1 minus a posterior. `"mixture"` and
            `"posterior"` ignore forget_rate and do not accept groups.
        posterior: from 1/2 to 1; used with `threshold="mixture"` and `"posterior"`.
        groups: shape (tokens,), small integers from 0, for example the source of each token. All
            shares then apply within each group. A sample belongs to the group of its first token.
            Default: one group.

    Returns:
        int8 array of shape (tokens,): +1 learn, -1 forget, 0 ignore. Ties at a threshold are
        broken by (sample, position), earlier tokens first, so the result depends on the values
        alone.

    Raises:
        ValueError: an argument is out of range, or a quality is not finite.
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
    if quality.dtype != np.float32:
        quality = quality.astype(np.float64)
    group_of = None if groups is None else np.asarray(groups)
    if group_of is not None and (
        group_of.shape != quality.shape or group_of.dtype.kind not in "ui"
    ):
        raise ValueError(f"groups must be integers of shape {quality.shape}, one a token")

    if granularity == "token":
        return divide_whole(quality, group_of, rho, forget_rate, threshold, posterior)
    if sample_ids is None:
        raise ValueError("granularity='sequence' needs sample_ids")
    sample_ids = np.asarray(sample_ids)
    if sample_ids.shape != quality.shape:
        raise ValueError(f"sample_ids has shape {sample_ids.shape}, quality {quality.shape}")
    starts = np.flatnonzero(np.r_[True, sample_ids[1:] != sample_ids[:-1]][: quality.size])
    lengths = np.diff(np.r_[starts, quality.size])
    of_sample = divide_whole(
        mean_quality(quality, lengths),
        None if group_of is None else group_of[starts],
        rho,
        forget_rate,
        threshold,
        posterior,
    )
    return np.repeat(of_sample, lengths)


def mean_quality(quality: NDArray, lengths: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean quality of each sample, shape (samples,).

    Args:
        quality: of all tokens of the samples, shape (tokens,).
        lengths: response tokens of each sample; they add up to `tokens`. The mean of a sample
            without response tokens is 0.
    """
    means = np.zeros(len(lengths))
    counted = lengths > 0
    if counted.any():
        starts = (np.cumsum(lengths) - lengths)[counted]
        means[counted] = np.add.reduceat(quality.astype(np.float64), starts) / lengths[counted]
    return means


def rho_thresholds(
    ordered: NDArray, rhos: ArrayLike, forget_rate: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where `select_tokens` divides at several rho: quality values that a page can compare with.

    Tokens of equal quality cannot be told apart by a value: at a threshold all of them are in the
    better part, while `select_tokens` divides them by their order.

    Args:
        ordered: quality of all tokens (or samples), ascending, shape (n,).
        rhos: shares that are positive, shape (k,).
        forget_rate: as in `select_tokens`; where it and rho add up to more than 1, all tokens that
            are not positive are negative.

    Returns:
        The lowest quality that is positive and the lowest that is not negative at each rho, both
        of shape (k,); infinity where there is none.
    """
    total = len(ordered)
    num_positive = np.array([_count(rho, total) for rho in np.asarray(rhos).tolist()], np.int64)
    num_negative = total - num_positive
    if forget_rate is not None:
        num_negative = np.minimum(num_negative, _count(forget_rate, total))
    values = np.r_[np.asarray(ordered, np.float64), np.inf]
    return values[total - num_positive], values[num_negative]


@dataclass(frozen=True)
class Division:
    """Thresholds of each group: tokens in `positive` are learned, tokens outside `kept` are
    forgotten, tokens in between are ignored."""

    positive: tuple[Cut, ...]
    kept: tuple[Cut, ...]
    num_values: int = 0
    """Tokens that were counted."""
    is_flat: bool = False
    """Whether there are several, and all have the same quality."""

    def threshold(self, group: int = 0) -> float | None:
        """The lowest quality among a group's positive tokens; None if none or all are positive."""
        value = self.positive[group].value
        return value if math.isfinite(value) else None

    @property
    def num_tied(self) -> int:
        """The number of tokens with the quality of a threshold that divides them by their order."""
        # Where nothing is ignored, both thresholds of a group are the same.
        cuts = [cut for pair in zip(self.positive, self.kept, strict=True) for cut in set(pair)]
        return sum(
            cut.num_equal + cut.num_others for cut in cuts if cut.num_equal and cut.num_others
        )

    def polarity(self, chunks: Iterable[Chunk]) -> Iterator[NDArray[np.int8]]:
        """Polarity of each chunk. Pass all chunks, in order."""
        positive, kept = ([CutReader(cut) for cut in cuts] for cuts in (self.positive, self.kept))
        for quality, groups in chunks:
            polarity = np.empty(quality.size, np.int8)
            for group, members in _members(groups):
                values = quality[members]
                above = positive[group].is_above(values).view(np.int8)
                polarity[members] = above + kept[group].is_above(values).view(np.int8) - np.int8(1)
            yield polarity


def divide(
    chunks: Chunks,
    rho: float | Literal["auto"],
    *,
    forget_rate: float | None = None,
    threshold: Threshold = "quantile",
    num_groups: int = 1,
    dtype: np.dtype | type = np.float32,
) -> Division:
    """Find the thresholds of tokens that come in chunks, in bounded memory.

    Arguments and result are those of `select_tokens`, independent of the chunks. Takes two passes
    over the chunks if quality is float32, four if it is float64.

    Args:
        num_groups: number of groups.
        dtype: dtype of the quality in all chunks.

    Raises:
        ValueError: `forget_rate` asks for more tokens than are not positive.
    """
    finders = [CutFinder(np.dtype(dtype)) for _ in range(num_groups)]
    for quality, groups in chunks():
        for group, members in _members(groups):
            finders[group].survey(quality[members])
    for finder in finders:
        total = finder.num_values
        if threshold == "zero" or rho == "auto":
            num_positive = finder.num_above_zero
        else:
            num_positive = _count(rho, total)
        num_negative = total - num_positive
        if forget_rate is not None:
            num_negative = _num_negative(forget_rate, num_positive, total)
        finder.aim([num_positive, total - num_negative])
    while any(finder.needs_pass for finder in finders):
        for quality, groups in chunks():
            for group, members in _members(groups):
                finders[group].refine(quality[members])
        for finder in finders:
            finder.end_pass()
    cuts = [finder.cuts for finder in finders]
    total = sum(finder.num_values for finder in finders)
    low, high = min(f.low for f in finders), max(f.high for f in finders)
    return Division(
        tuple(cut[0] for cut in cuts),
        tuple(cut[1] for cut in cuts),
        total,
        is_flat=total > 1 and low == high,
    )


def divide_by_mixture(chunks: Chunks, posterior: float) -> tuple[Division, Mixture | str]:
    """Find the thresholds by fitting two components, in one pass over the chunks.

    Args:
        posterior: posterior probability of the lower component from which a token is negative.

    Returns:
        The division, and the fit. If there is no fit, all tokens are positive and a text says
        why.
    """
    sketch = Sketch()
    for quality, _ in chunks():
        sketch.add(quality)
    mixture = fit_mixture(sketch.values)
    if isinstance(mixture, str):
        return Division((ALL,), (ALL,)), mixture
    # Values equal to a threshold are on its upper side.
    cuts = (Cut(mixture.threshold(share), np.iinfo(np.int64).max) for share in (0.5, posterior))
    positive, kept = ((cut,) for cut in cuts)
    return Division(positive, kept), mixture


def divide_by_posterior(posterior: float) -> Division:
    """Where to divide a quality that is 1 minus the posterior of being bad.

    Args:
        posterior: from which on a token is negative, at least 1/2. Below 1/2 it is positive.
    """
    # All that equal a threshold are on its lower side.
    positive, kept = (Cut(1 - share, 0) for share in (0.5, posterior))
    return Division((positive,), (kept,))


def spare_ends(
    polarity: NDArray[np.int8],
    response_ids: NDArray[np.integer],
    is_negative: NDArray[np.bool_],
    end_token_ids: Collection[int],
) -> None:
    """Take end-of-sequence tokens out of the negative ones, in place.

    Args:
        polarity: of response tokens, shape (tokens,).
        response_ids: their ids.
        is_negative: whether the data says that the sample of each is one to forget. There, end
            tokens are ignored; elsewhere, they are positive.
        end_token_ids: the end tokens.
    """
    if end_token_ids:
        is_end = (polarity < 0) & np.isin(response_ids, list(end_token_ids))
        polarity[is_end] = np.where(is_negative[is_end], 0, 1)


def divide_whole(
    quality: NDArray,
    groups: NDArray[np.integer] | None,
    rho: float | Literal["auto"],
    forget_rate: float | None,
    threshold: Threshold,
    posterior: float,
) -> NDArray[np.int8]:
    """Polarity of tokens in memory, as a single chunk."""
    if threshold in ("mixture", "posterior"):
        if groups is not None or not 0.5 <= posterior <= 1:
            raise ValueError(
                f"threshold={threshold!r} takes no groups, and a posterior from 1/2 to 1"
            )
        if threshold == "posterior":
            division = divide_by_posterior(posterior)
        else:
            division, _ = divide_by_mixture(lambda: [(quality, None)], posterior)
        return next(division.polarity([(quality, None)]))
    division = divide(
        lambda: [(quality, groups)],
        rho,
        forget_rate=forget_rate,
        threshold=threshold,
        num_groups=1 if groups is None else int(groups.max(initial=0)) + 1,
        dtype=quality.dtype,
    )
    return next(division.polarity([(quality, groups)]))


def _num_negative(forget_rate: float, num_positive: int, total: int) -> int:
    wanted, left = _count(forget_rate, total), total - num_positive
    # Two shares that add up to 1 may both have been rounded up, one token too many.
    if not 0 <= forget_rate <= 1 or wanted > left + 1:
        raise ValueError(
            f"forget_rate {forget_rate} asks for {wanted} negative tokens, but only "
            f"{left} of {total} are not positive"
        )
    return min(wanted, left)


def _count(share: float, total: int) -> int:
    return min(total, math.floor(share * total + 0.5))


def _members(
    groups: NDArray[np.integer] | None,
) -> Iterator[tuple[int, slice | NDArray[np.bool_]]]:
    """Each group of a chunk with the positions of its tokens."""
    if groups is None:
        yield 0, slice(None)
        return
    for group in np.flatnonzero(np.bincount(groups)):
        yield int(group), groups == group
