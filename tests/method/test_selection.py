"""The choice against a plain sort, over open inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.method import select_tokens, share_above_zero
from forgetting.method.selection import divide, mean_quality

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
    # Both shares may round up; one token less is negative then.
    if num_positive + num_negative == n + 1:
        num_negative -= 1
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


def test_share_above_zero_is_a_count():
    assert share_above_zero([2.0, -3.0, 0.0, 1.0]) == 0.5
    assert share_above_zero([]) == 0.0


@given(
    st.lists(st.tuples(st.integers(-3, 3).map(float), st.integers(0, 2)), min_size=1),
    shares,
    st.one_of(st.none(), st.floats(0.01, 0.3)),
)
def test_shares_are_taken_within_each_group(rows, rho, forget_rate):
    quality, groups = (np.array([row[i] for row in rows]) for i in range(2))
    if forget_rate is not None:
        rho = min(rho, 0.5)
    polarity = select_tokens(quality, rho, groups=groups, forget_rate=forget_rate)
    for group in set(groups.tolist()):
        alone = select_tokens(quality[groups == group], rho, forget_rate=forget_rate)
        assert polarity[groups == group].tolist() == alone.tolist()


def test_a_sample_belongs_to_the_group_of_its_tokens():
    quality, ids = [5.0, 6.0, 1.0, 2.0, -1.0, -2.0], [0, 0, 1, 1, 2, 3]
    polarity = select_tokens(
        quality, 0.5, granularity="sequence", sample_ids=ids, groups=[0, 0, 0, 0, 1, 1]
    )
    assert polarity.tolist() == [1, 1, -1, -1, 1, -1]


# Ties, both zeros, denormals, the largest floats.
floats = st.one_of(
    st.integers(-2, 2).map(float),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-40, 3.4e38, -3.4e38]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(
    st.lists(st.lists(st.tuples(floats, st.integers(0, 2)), max_size=9), min_size=1, max_size=6),
    st.one_of(shares, st.just("auto")),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_chunks_are_divided_as_the_whole_is_by_a_sort(parts, rho, grouped, dtype):
    chunks = [
        (np.array([q for q, _ in part], dtype), np.array([g for _, g in part], np.int64))
        for part in parts
    ]
    if not grouped:
        chunks = [(quality, None) for quality, _ in chunks]
    division = divide(lambda: chunks, rho, num_groups=3, dtype=dtype)
    got = np.concatenate(list(division.polarity(chunks)))
    quality = np.concatenate([quality for quality, _ in chunks])
    groups = np.concatenate([np.zeros(len(q), int) if g is None else g for q, g in chunks])
    for group in range(3):
        inside = quality[groups == group].tolist()
        share = share_above_zero(inside) if rho == "auto" else rho
        num_positive = math.floor(share * len(inside) + 0.5)
        expected = by_sorting(inside, num_positive, len(inside) - num_positive)
        assert got[groups == group].tolist() == expected
        if 0 < num_positive < len(inside):
            assert division.threshold(group) == sorted(inside)[-num_positive]


def test_mean_quality_of_a_sample_without_tokens_is_zero():
    means = mean_quality(np.array([1.0, 2.0, 6.0], np.float32), np.array([2, 0, 1, 0]))
    assert means.tolist() == [1.5, 0.0, 6.0, 0.0]


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
        ({"rho": 0.5, "groups": [0, 1]}, "groups"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_tokens([0.0, 1.0, 2.0, 3.0], **arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_quality_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="not finite at token 1"):
        select_tokens([0.0, bad], 0.5)


@given(
    st.lists(st.tuples(st.integers(-2, 2).map(float), st.integers(0, 2)), min_size=1),
    shares,
    st.one_of(st.none(), st.floats(0.01, 0.3)),
)
def test_ties_are_counted_where_a_threshold_divides_them(rows, rho, forget_rate):
    quality, groups = (np.array([row[i] for row in rows]) for i in range(2))
    if forget_rate is not None:
        rho = min(rho, 0.5)
    division = divide(
        lambda: [(quality.astype(np.float32), groups)], rho, forget_rate=forget_rate, num_groups=3
    )
    polarity = select_tokens(quality, rho, groups=groups, forget_rate=forget_rate)
    expected = 0
    for group in range(3):
        own, chosen = quality[groups == group], polarity[groups == group]
        cuts = []
        for edge in (0, -1):
            for value in set(own.tolist()):
                is_above = chosen[own == value] > edge
                if is_above.any() and not is_above.all():
                    cuts.append(value)
        # Without ignored tokens both thresholds are one.
        if not (chosen == 0).any():
            cuts = cuts[:1]
        expected += sum(int((own == value).sum()) for value in cuts)
    assert division.num_tied == expected
    assert division.num_values == len(rows)
    assert division.is_flat == (len(rows) > 1 and len(set(quality.tolist())) == 1)
