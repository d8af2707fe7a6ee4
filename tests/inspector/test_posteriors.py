"""Counts by threshold, worst spans and likely kinds, against loops over every token."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.inspector.posteriors import (
    STEPS,
    PosteriorCounts,
    highest_of,
    likely_kinds,
    worst_spans,
)

# Exact steps among them: 0.3 is at or above 0.3.
values = st.sampled_from([0.0, 0.01, 0.29, 0.3, 0.5, 0.57, 0.99, 1.0]) | st.floats(0, 1, width=32)
corpora = st.lists(st.lists(values, max_size=6), min_size=1, max_size=8)


def flat(corpus: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *(len(sample) for sample in corpus)])
    return np.array([p for sample in corpus for p in sample], np.float32), starts


@settings(max_examples=50)
@given(corpora)
def test_a_step_flags_what_is_at_or_above_it(corpus: list[list[float]]) -> None:
    posterior, starts = flat(corpus)
    counts = PosteriorCounts.of(posterior, highest_of(posterior, starts))
    samples = np.split(posterior, starts[1:-1])
    for place, step in enumerate(STEPS):
        flagged = [bool((sample >= step).any()) for sample in samples]
        assert counts.tokens[place] == (posterior >= step).sum()
        assert counts.samples[place] == sum(flagged)
    assert counts.histogram.sum() == len(posterior)


@settings(max_examples=50)
@given(corpora)
def test_the_worst_span_is_the_one_with_the_largest_sum(corpus: list[list[float]]) -> None:
    posterior, starts = flat(corpus)
    begins = np.zeros(len(posterior), bool)
    begins[starts[:-1][np.diff(starts) > 0]] = True
    found = worst_spans(posterior, begins, starts, 0.5)
    for place, sample in enumerate(corpus):
        sums, now = [0.0], 0.0
        for p in np.float32(sample):
            now = now + float(p) if p >= 0.5 else 0.0
            sums.append(now)
        wanted = max(sums) or float(max(np.float32(sample), default=0))
        assert abs(found[place] - wanted) < 1e-5


def test_a_span_ends_where_a_response_ends() -> None:
    posterior, begins = np.float32([0.9, 0.9]), np.array([True, True])
    assert worst_spans(posterior, begins, np.array([0, 2]), 0.5).tolist() == [np.float32(0.9)]


def test_the_likely_kind_is_that_of_most_expected_bad_tokens() -> None:
    posterior = np.float32([0.9, 0.5, 0.5, 0.4, 0.0, 0.3])
    kind = np.array([0, 1, 1, -1, 1, 0], np.int8)
    starts = np.array([0, 3, 4, 5, 5, 6])
    assert likely_kinds(posterior, kind, starts, 2).tolist() == [1, -1, -1, -1, 0]
    assert likely_kinds(posterior, kind, starts, 0).tolist() == [-1] * 5
