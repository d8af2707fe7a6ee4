"""Quotas come out exactly, and every stretch of the order holds each source in proportion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.data.quotas import exchanged, interleaved, quotas


@pytest.mark.parametrize(
    ("asked", "shares", "sizes", "expected"),
    [
        ([None, None], [None, None], [30, 10], [15, 5]),
        ([4, None], [None, None], [30, 10], [4, 10]),
        ([None, None], [0.25, None], [30, 100], [5, 15]),
        ([None, None], [0.25, 0.75], [30, 100], [5, 15]),
        ([3, None, None], [None, 0.5, None], [9, 30, 100], [3, 10, 7]),
        # A third of twenty each: the largest remainders, earlier sources first.
        ([None] * 3, [None] * 3, [50, 50, 50], [7, 7, 6]),
        # Not enough: all there is.
        ([None, None], [None, None], [5, 3], [5, 3]),
    ],
)
def test_each_source_gives_what_is_asked_of_it(asked, shares, sizes, expected):
    assert quotas(20, asked, shares, sizes) == expected


@given(st.integers(1, 200), st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_open_sources_give_in_proportion_and_never_more_than_they_hold(total, sizes):
    given_ = quotas(total, [None] * len(sizes), [None] * len(sizes), sizes)
    assert sum(given_) == min(total, sum(sizes))
    for number, size in zip(given_, sizes, strict=True):
        assert number <= size
        assert abs(number - size * sum(given_) / max(sum(sizes), 1)) < 1


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 200), st.integers(0, 200)
)
def test_every_stretch_holds_each_source_in_proportion(counts, start, length):
    order = interleaved(counts)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    stretch = order[start : start + length]
    for source, count in enumerate(counts):
        expected = len(stretch) * count / max(len(order), 1)
        assert abs((stretch == source).sum() - expected) <= len(counts)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_outside_of_d_train_a_source_gives_only_what_it_has_to_learn(sources, begin, length):
    counts = [learned + forgotten for learned, forgotten in sources]
    slots = interleaved(counts)
    is_train = np.zeros(len(slots), bool)
    is_train[begin : begin + length] = True
    positives = [learned for learned, _ in sources]
    moved = exchanged(slots, is_train, positives)
    assert np.bincount(moved, minlength=len(counts)).tolist() == counts
    outside = np.bincount(moved[~is_train], minlength=len(counts))
    if sum(positives) >= (~is_train).sum():
        assert (outside <= positives).all()
    enough = np.bincount(slots[~is_train], minlength=len(counts)) <= positives
    if enough.all():
        assert np.array_equal(moved, slots)
