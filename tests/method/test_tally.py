"""Counts against loops over tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from forgetting.method.tally import NUM_POSITION_BINS, SelectionTally


def test_counts_are_those_of_a_loop_over_tokens():
    random = np.random.default_rng(0)
    lengths = np.array([1, 9, 40, 0, 3])
    sources = np.array([1, 0, 1, 1, 2])
    quality = random.normal(size=lengths.sum()).astype(np.float32)
    polarity = random.integers(-1, 2, quality.size).astype(np.int8)
    tally = SelectionTally(4, float(quality.min()), float(quality.max()))
    # In two parts, cut between samples.
    tally.add(quality[:10], polarity[:10], lengths[:2], sources[:2])
    tally.add(quality[10:], polarity[10:], lengths[2:], sources[2:])

    tokens = [
        (source, position)
        for source, length in zip(sources, lengths, strict=True)
        for position in range(length)
    ]
    for source, counts in enumerate(tally.by_source):
        chosen = [p for (s, _), p in zip(tokens, polarity, strict=True) if s == source]
        got = (counts.num_positive, counts.num_negative, counts.num_ignored)
        assert got == (chosen.count(1), chosen.count(-1), chosen.count(0))
    seen = 0
    for start, stop, counts in tally.by_position:
        chosen = [p for (_, i), p in zip(tokens, polarity, strict=True) if start <= i < stop]
        assert counts.num_tokens == len(chosen)
        assert counts.num_positive == chosen.count(1)
        seen += len(chosen)
    assert seen == quality.size == tally.total.num_tokens
    expected = [int(((quality >= a) & (quality < b)).sum()) for a, b in pairwise(tally.edges)]
    expected[-1] += 1  # the largest closes the last bin
    assert tally.counts.tolist() == expected


def test_the_last_bin_of_positions_is_open():
    length = 1 << (NUM_POSITION_BINS + 1)
    tally = SelectionTally(1, 0.0, 1.0)
    tally.add(np.ones(length), np.ones(length, np.int8), np.array([length]), np.array([0]))
    *_, (start, stop, counts) = tally.by_position
    assert stop is None
    assert counts.num_tokens == length - start


def test_nothing_is_counted_of_an_empty_corpus():
    tally = SelectionTally(0, 0.0, 1.0)
    tally.add(np.zeros(0), np.zeros(0, np.int8), np.zeros(0, int), np.zeros(0, int))
    assert tally.total.num_tokens == 0
    assert list(tally.by_position) == []
