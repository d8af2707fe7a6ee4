"""Keys are ordered as floats are, and cuts are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.method import quantile as order
from forgetting.method.quantile import Cut, CutFinder, CutReader, order_keys, value_of_key

WIDTHS = {np.float32: 32, np.float64: 64}


def finite(width):
    return st.floats(width=width, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("dtype", WIDTHS)
@given(st.data())
def test_keys_are_ordered_as_floats_are(dtype, data):
    a, b = (dtype(data.draw(finite(WIDTHS[dtype]))) for _ in range(2))
    first, second = (int(order_keys(np.array([x]))[0]) for x in (a, b))
    assert (first < second) == (a < b)
    assert (first == second) == (a == b)
    assert value_of_key(first, np.dtype(dtype)) == a


def find(chunks, counts, dtype=np.float32):
    finder = CutFinder(np.dtype(dtype))
    for chunk in chunks:
        finder.survey(chunk)
    finder.aim(counts)
    passes = 1
    while finder.needs_pass:
        for chunk in chunks:
            finder.refine(chunk)
        finder.end_pass()
        passes += 1
    return finder, passes


def test_a_cut_far_into_many_ties_leaves_exactly_so_many_above(monkeypatch):
    monkeypatch.setattr(order, "BLOCK_SIZE", 7)
    values = np.random.default_rng(0).integers(-5, 5, 1000).astype(np.float32)
    chunks = np.split(values, [13, 500, 501])
    finder, passes = find(chunks, [0, 1, 333, 999, 1000])
    assert passes == 2
    assert (finder.num_values, finder.num_above_zero) == (1000, int((values > 0).sum()))
    assert (finder.low, finder.high) == (-5.0, 4.0)
    for count, cut in zip([0, 1, 333, 999, 1000], finder.cuts, strict=True):
        reader = CutReader(cut)
        above = np.concatenate([reader.is_above(chunk) for chunk in chunks])
        assert above.sum() == count
        # Of the equal ones, the first.
        expected = np.zeros(1000, bool)
        expected[np.argsort(-values, kind="stable")[:count]] = True
        assert np.array_equal(above, expected)


def test_float64_is_cut_where_float32_sees_ties():
    values = 1 + np.arange(10) * 2.0**-52
    finder, passes = find([values], [3], np.float64)
    assert passes == 4
    assert finder.cuts == [Cut(float(values[7]), 1)]
