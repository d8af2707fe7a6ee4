"""How many samples each source gives, and in which order they come.

Input: sizes of sources and what the recipe asks of them. Output: counts, and a sequence of
sources in which every stretch holds each of them in proportion. Knows nothing of records.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def quotas(
    total: int, asked: Sequence[int | None], shares: Sequence[float | None], sizes: Sequence[int]
) -> list[int]:
    """Samples of each source, which come to `total` where the sources hold as many, and to more
    where more is asked of them.

    A source gives the number that is asked of it, or its share of the total; the others give what
    is left, in proportion to their sizes and never more than they hold. What does not come out
    even goes to the largest remainders, earlier sources first.
    """
    pairs = list(zip(asked, shares, strict=True))
    fixed = [number is not None or share is not None for number, share in pairs]
    wanted = [
        Fraction(number) if number is not None else Fraction(str(share or 0)) * total
        for number, share in pairs
    ]
    given = _rounded(wanted, round(sum(wanted)))
    left = max(total - sum(given), 0)
    open_sizes = [0 if is_fixed else size for is_fixed, size in zip(fixed, sizes, strict=True)]
    available = sum(open_sizes)
    if available:
        left = min(left, available)
        parts = _rounded([Fraction(size * left, available) for size in open_sizes], left)
        given = [g + p for g, p in zip(given, parts, strict=True)]
    return given


def _rounded(exact: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers nearest to `exact` that come to `total`, by largest remainders."""
    whole = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for index in by_remainder[: total - sum(whole)]:
        whole[index] += 1
    return whole


def interleaved(counts: Sequence[int]) -> NDArray[np.int64]:
    """Each source as often as its count, evenly spread, shape (sum of counts,).

    Any stretch holds of each source what is its part, to within one sample for each source.
    """
    source = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) for count in counts] or [np.arange(0)])
    size = np.repeat(np.asarray(counts, dtype=np.int64), counts)
    position = (2 * number + 1) / (2 * np.maximum(size, 1))
    return source[np.lexsort((source, position))]


def exchanged(
    slots: NDArray[np.int64], is_train: NDArray[np.bool_], positives: Sequence[int]
) -> NDArray[np.int64]:
    """The slots with sources that lack samples to learn moved into D_train.

    Outside of D_train, a source gives only samples to learn. A slot that it cannot fill there goes
    to a source that can, in exchange for one of that source's slots in D_train, as far as there are
    any. Where every source has enough, nothing moves.

    Args:
        slots: source of each sample of the corpus.
        is_train: whether each of them is in D_train, of the same shape.
        positives: samples to learn of each source.
    """
    outside = np.flatnonzero(~is_train)
    spare = np.asarray(positives) - np.bincount(slots[outside], minlength=len(positives))
    lacking = [
        place
        for source in np.flatnonzero(spare < 0)
        for place in outside[slots[outside] == source][spare[source] :]
    ]
    inside = np.flatnonzero(is_train)
    giving = [
        place
        for source in np.flatnonzero(spare > 0)
        for place in inside[slots[inside] == source][: spare[source]]
    ]
    number = min(len(lacking), len(giving))
    moved = slots.copy()
    moved[lacking[:number]], moved[giving[:number]] = (
        slots[giving[:number]],
        slots[lacking[:number]],
    )
    return moved
