"""The choice against a plain sort, over open inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.selection import (
    quality_threshold,
    select_tokens,
    share_above_zero,
    token_quality,
)

# Few distinct values, so that ties at the threshold are the rule.
qualities = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=60)
shares = st.floats(0.01, 0.99)


def by_sorting(quality, num_positive, num_negative):
    """Best first; of equal ones the earlier is the better."""
    order = sorted(range(len(quality)), key=lambda i: (-quality[i], i))
    polarity = [0] * len(quality)
    for i in order[:num_positive]:
        polarity[i] = 1
    for i in order[len(order) - num_negative :]:
        polarity[i] = -1
    return polarity


@given(qualities, shares)
def test_partition_is_that_of_a_stable_sort(quality, rho):
    num_positive = min(len(quality), math.floor(rho * len(quality) + 0.5))
    expected = by_sorting(quality, num_positive, len(quality) - num_positive)
    assert select_tokens(quality, rho).tolist() == expected


@given(qualities, shares, st.floats(0.01, 0.99))
def test_forget_rate_takes_the_worst_and_ignores_between(quality, rho, forget_rate):
    n = len(quality)
    num_positive, num_negative = (math.floor(share * n + 0.5) for share in (rho, forget_rate))
    if num_positive + num_negative > n:
        with pytest.raises(ValueError, match="forget_rate"):
            select_tokens(quality, rho, forget_rate=forget_rate)
        return
    expected = by_sorting(quality, num_positive, num_negative)
    assert select_tokens(quality, rho, forget_rate=forget_rate).tolist() == expected


@given(qualities)
def test_threshold_zero_is_the_sign(quality):
    polarity = select_tokens(quality, 0.5, threshold="zero")
    assert polarity.tolist() == [1 if q > 0 else -1 for q in quality]


@given(qualities)
def test_auto_takes_the_share_above_zero(quality):
    polarity = select_tokens(quality, "auto")
    assert (polarity > 0).sum() == sum(q > 0 for q in quality)
    assert np.array_equal(polarity > 0, np.asarray(quality) > 0)


@given(
    st.lists(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=5), min_size=1), shares
)
def test_sequences_share_the_fate_of_their_mean(samples, rho):
    quality = [q for sample in samples for q in sample]
    ids = [i for i, sample in enumerate(samples) for _ in sample]
    means = [sum(sample) / len(sample) for sample in samples]
    chosen = select_tokens(means, rho)
    expected = [int(chosen[i]) for i, sample in enumerate(samples) for _ in sample]
    got = select_tokens(quality, rho, granularity="sequence", sample_ids=ids)
    assert got.tolist() == expected


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=60, unique=True), shares)
def test_values_alone_decide_where_no_two_are_equal(quality, rho):
    order = np.random.default_rng(0).permutation(len(quality))
    direct = select_tokens(quality, rho)
    assert np.array_equal(select_tokens(np.asarray(quality)[order], rho), direct[order])


def test_quality_is_reference_minus_base():
    quality = token_quality([-3.0, -1.0], [-1.0, -4.0])
    assert quality.tolist() == [2.0, -3.0]
    assert share_above_zero(quality) == 0.5
    with pytest.raises(ValueError, match="shape"):
        token_quality([1.0], [1.0, 2.0])


def test_threshold_is_the_lowest_positive_quality():
    quality = [3.0, 1.0, 2.0, 0.0]
    assert quality_threshold(quality, select_tokens(quality, 0.5)) == 2.0
    assert quality_threshold(quality, [-1, -1, 0, 0]) is None


def test_result_is_int8_and_empty_input_is_fine():
    assert select_tokens([1.0, 2.0], 0.5).dtype == np.int8
    assert select_tokens([], 0.5).size == 0
    assert select_tokens([], 0.5, granularity="sequence", sample_ids=[]).size == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0.0}, "rho"),
        ({"rho": 1.0}, "rho"),
        ({"rho": 0.5, "granularity": "sequence"}, "sample_ids"),
        ({"rho": 0.5, "granularity": "word"}, "granularity"),
        ({"rho": 0.5, "threshold": "mean"}, "threshold"),
        ({"rho": 0.5, "forget_rate": 0.9}, "forget_rate"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_tokens([0.0, 1.0, 2.0, 3.0], **arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_quality_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="not finite at token 1"):
        select_tokens([0.0, bad], 0.5)
