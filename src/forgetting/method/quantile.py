"""Exact quantiles of a set of numbers that does not fit in memory.

Input: the same finite numbers in chunks, in as many passes as needed. Output: the cut with
exactly k of them above it. A radix search: the numbers are read as integers of the same order, and
each pass determines 16 bits of the number at the cut. So float32 takes two passes and float64 four,
and memory is one table of 65,536 counts per cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

DIGIT_BITS = 16
NUM_DIGITS = 1 << DIGIT_BITS
# Temporary arrays of this many numbers stay in the processor's cache.
BLOCK_SIZE = 1 << 18


@dataclass(frozen=True)
class Cut:
    """The best part of a set: all numbers above `value`, and the first `num_equal` equal to it."""

    value: float
    num_equal: int
    num_others: int = field(default=0, compare=False)
    """Numbers equal to `value` that are not in the best part, if they were counted."""


ALL = Cut(-math.inf, 0)
NONE = Cut(math.inf, 0)


def order_keys(values: NDArray) -> NDArray:
    """Unsigned integers in the same order as the floats; 0.0 and -0.0 are equal.

    Args:
        values: float32 or float64, finite.

    Returns:
        uint32 or uint64 of the same shape.
    """
    bits = values.dtype.itemsize * 8
    signed, unsigned = np.dtype(f"i{bits // 8}").type, np.dtype(f"u{bits // 8}").type
    # Adding zero makes -0.0 positive.
    pattern = (values + values.dtype.type(0)).view(signed)
    # The more negative a float, the larger its pattern: flip all bits except the sign.
    ordered = pattern ^ ((pattern >> signed(bits - 1)) & signed(np.iinfo(signed).max))
    return ordered.view(unsigned) ^ unsigned(1 << (bits - 1))


def value_of_key(key: int, dtype: np.dtype) -> float:
    """The float that has this key."""
    bits = dtype.itemsize * 8
    sign = 1 << (bits - 1)
    pattern = key ^ sign if key & sign else key ^ (2 * sign - 1)
    return float(np.array([pattern], f"u{bits // 8}").view(dtype)[0])


class CutFinder:
    """Finds cuts of a set of numbers: `survey` all, `aim`, then `refine` all while `needs_pass`.

    Args:
        dtype: float32 or float64, of all numbers.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._bits = dtype.itemsize * 8
        self._first = np.zeros(NUM_DIGITS, np.int64)
        self._targets: list[_Target] = []
        self.num_values = 0
        self.num_above_zero = 0
        self.low, self.high = math.inf, -math.inf
        """The smallest and the largest number seen."""

    def survey(self, values: NDArray) -> None:
        """The first pass."""
        for block in _blocks(values):
            digits = (order_keys(block) >> (self._bits - DIGIT_BITS)).astype(np.intp)
            self._first += np.bincount(digits, minlength=NUM_DIGITS)
            self.num_above_zero += int(np.count_nonzero(block > 0))
            self.low = min(self.low, float(block.min()))
            self.high = max(self.high, float(block.max()))
        self.num_values += values.size

    def aim(self, counts: Sequence[int]) -> None:
        """Set the number of values in the best part, for each cut."""
        self._targets = [_Target(count, self.num_values) for count in counts]
        for target in self._targets:
            target.settle(self._first, self._bits)

    @property
    def needs_pass(self) -> bool:
        """Whether another pass over all numbers is needed."""
        return any(target.is_open(self._bits) for target in self._targets)

    def refine(self, values: NDArray) -> None:
        """Another pass, completed by `end_pass`."""
        open_targets = [target for target in self._targets if target.is_open(self._bits)]
        for block in _blocks(values):
            keys = order_keys(block)
            for target in open_targets:
                target.count_digits(keys, self._bits)

    def end_pass(self) -> None:
        """Complete a pass of `refine`."""
        for target in self._targets:
            if target.is_open(self._bits):
                target.settle(target.digits, self._bits)

    @property
    def cuts(self) -> list[Cut]:
        """In the order of the counts given to `aim`."""
        return [target.cut(self._dtype) for target in self._targets]


class _Target:
    """The search for one cut: `rank` numbers of those that begin with `prefix` are above it."""

    def __init__(self, count: int, total: int) -> None:
        self.count, self.total = count, total
        self.rank = count
        self.num_equal = 0
        self.prefix, self.settled_bits = 0, 0
        self.digits = np.zeros(0, np.int64)

    def is_open(self, bits: int) -> bool:
        return 0 < self.count < self.total and self.settled_bits < bits

    def count_digits(self, keys: NDArray, bits: int) -> None:
        kind = keys.dtype.type
        left = bits - self.settled_bits
        inside = keys[keys >> kind(left) == kind(self.prefix)]
        digits = (inside >> kind(left - DIGIT_BITS)) & kind(NUM_DIGITS - 1)
        self.digits += np.bincount(digits.astype(np.intp), minlength=NUM_DIGITS)

    def settle(self, digits: NDArray[np.int64], bits: int) -> None:
        if not self.is_open(bits):
            return
        from_above = np.cumsum(digits[::-1])
        place = int(np.searchsorted(from_above, self.rank))
        self.rank -= int(from_above[place - 1]) if place else 0
        self.num_equal = int(digits[NUM_DIGITS - 1 - place])
        self.prefix = (self.prefix << DIGIT_BITS) | (NUM_DIGITS - 1 - place)
        self.settled_bits += DIGIT_BITS
        self.digits = np.zeros(NUM_DIGITS, np.int64)

    def cut(self, dtype: np.dtype) -> Cut:
        if self.count <= 0:
            return NONE
        if self.count >= self.total:
            return ALL
        return Cut(value_of_key(self.prefix, dtype), self.rank, self.num_equal - self.rank)


class CutReader:
    """Applies a cut to chunks in order, which decides ties."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._num_equal_left = cut.num_equal

    def is_above(self, values: NDArray) -> NDArray[np.bool_]:
        """Mask of the next chunk's numbers that are in the best part, shape of `values`."""
        edge = values.dtype.type(self._cut.value)
        mask = values > edge
        if self._num_equal_left:
            equal = np.flatnonzero(values == edge)[: self._num_equal_left]
            mask[equal] = True
            self._num_equal_left -= equal.size
        return mask


def _blocks(values: NDArray) -> Iterator[NDArray]:
    for begin in range(0, values.size, BLOCK_SIZE):
        yield values[begin : begin + BLOCK_SIZE]
