"""Differences in pairs and shares against scipy or a formula by hand, and how often an interval
holds the truth."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from forgetting.method import comparison
from forgetting.method.comparison import (
    mean_difference,
    mean_of_differences,
    paired_difference,
    ratio_difference,
    share_difference,
    wilson_interval,
)


def drawn(rng, number, gap=0.0, spread=1.0):
    """Losses of two models that find the same samples hard, and the weights of the samples."""
    weights = rng.uniform(1, 40, number)
    hard = rng.normal(2, 1, number)
    baseline = weights * hard
    return baseline + weights * rng.normal(gap, spread, number), baseline, weights


def test_the_difference_and_its_interval_are_those_of_resampling_by_hand():
    losses, baseline, weights = drawn(np.random.default_rng(1), 60, 0.3)
    found = paired_difference(losses, baseline, weights)
    rows = list(zip(losses.tolist(), baseline.tolist(), weights.tolist(), strict=True))
    value = math.fsum(a - b for a, b, _ in rows) / math.fsum(w for _, _, w in rows)
    assert found.value == pytest.approx(value, rel=1e-12)
    by_hand = random.Random(7)
    means = []
    for _ in range(8000):
        some = by_hand.choices(rows, k=len(rows))
        means.append(
            math.fsum(a for a, _, _ in some) / math.fsum(w for _, _, w in some)
            - math.fsum(b for _, b, _ in some) / math.fsum(w for _, _, w in some)
        )
    means.sort()
    width = means[7600] - means[400]
    assert found.low == pytest.approx(means[400], abs=0.05 * width)
    assert found.high == pytest.approx(means[7600], abs=0.05 * width)
    wider = paired_difference(losses, baseline, weights, level=0.99)
    assert wider.low < found.low < found.value < found.high < wider.high


def test_the_interval_holds_the_truth_in_nine_of_ten_corpora():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        found = paired_difference(*drawn(rng, 80, 0.1), seed=seed, num_resamples=400)
        held += found.low <= 0.1 <= found.high
    assert 0.84 < held / 300 < 0.95


def test_what_is_hard_for_both_does_not_widen_the_interval():
    losses, baseline, weights = drawn(np.random.default_rng(2), 200, 0.05, 0.1)
    found = paired_difference(losses, baseline, weights)
    assert found.high - found.low < 0.05
    assert np.std(baseline / weights) / math.sqrt(200) > 0.05


def test_a_sample_counts_by_its_weight():
    weights = np.r_[np.full(50, 10.0), np.zeros(50)]
    # Losses without weight are 0, as they are sums of weighted losses.
    losses = np.where(weights > 0, 5.0, 0.0)
    found = paired_difference(losses, np.zeros(100), weights)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    # Resamples that hold only the second sample say nothing.
    few = paired_difference(np.array([1.0, 0.0]), np.zeros(2), np.array([2.0, 0.0]))
    assert (few.value, few.low, few.high) == (0.5, 0.5, 0.5)


def test_the_seed_decides_and_the_parts_do_not(monkeypatch):
    given = drawn(np.random.default_rng(3), 40)
    first = paired_difference(*given, seed=5)
    assert paired_difference(*given, seed=5) == first
    assert paired_difference(*given, seed=6) != first
    monkeypatch.setattr(comparison, "_VALUES_AT_ONCE", 1000)
    again = paired_difference(*given, seed=5)
    assert (again.low, again.high) == pytest.approx((first.low, first.high), rel=1e-12)


@pytest.mark.parametrize(
    ("losses", "weights", "said"),
    [([1.0], [0.0], "add up to 0"), ([], [], "add up to 0"), ([1.0, 2.0], [1.0], "2 losses")],
)
def test_what_cannot_be_compared_is_refused(losses, weights, said):
    with pytest.raises(ValueError, match=said):
        paired_difference(np.array(losses), np.array(losses), np.array(weights))


def test_the_interval_of_a_mean_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(5)
    for number in (2, 3, 5, 40):
        baseline = rng.normal(5, 0.23, number)
        values = baseline + rng.normal(-0.0024, 0.0013, number)
        found = mean_difference(values, baseline)
        wanted = stats.ttest_rel(values, baseline).confidence_interval(0.9)
        assert found.value == pytest.approx(math.fsum(values - baseline) / number, rel=1e-12)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)
        assert found.num_pairs == number


def test_one_pair_has_a_difference_and_no_interval():
    found = mean_difference([2.0], [1.5])
    assert (found.value, found.num_pairs) == (0.5, 1)
    assert not found.has_interval
    assert not found.is_apart


def test_the_interval_of_a_ratio_is_that_of_resampling():
    losses, baseline, weights = drawn(np.random.default_rng(1), 400, 0.3)
    found = ratio_difference(losses, baseline, weights)
    resampled = paired_difference(losses, baseline, weights)
    assert found.value == pytest.approx(resampled.value, rel=1e-12)
    width = resampled.high - resampled.low
    assert found.low == pytest.approx(resampled.low, abs=0.05 * width)
    assert found.high == pytest.approx(resampled.high, abs=0.05 * width)


@pytest.mark.parametrize(("hits", "number"), [(0, 5), (5, 5), (1, 20), (943, 1000), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_a_share_is_wilsons(hits, number, level):
    wanted = stats.binomtest(hits, number).proportion_ci(level, method="wilson")
    found = wilson_interval(hits / number, number, level=level)
    assert found == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert 0 <= found[0] <= hits / number <= found[1] <= 1


def answers(both, own, others, neither):
    counts = (both, own, others, neither)
    return (
        np.repeat([True, True, False, False], counts),
        np.repeat([True, False, True, False], counts),
    )


def test_the_interval_of_paired_shares_is_newcombes():
    """By its formula: limits of both shares by scipy, correlation as Pearson's of the answers."""
    both, own, others, neither = 36, 12, 2, 7
    hits, baseline = answers(both, own, others, neither)
    number = len(hits)
    (l1, u1), (l2, u2) = (
        stats.binomtest(int(x.sum()), number).proportion_ci(0.9, method="wilson")
        for x in (hits, baseline)
    )
    p1, p2 = float(hits.mean()), float(baseline.mean())
    pearson = float(np.corrcoef(hits, baseline)[0, 1])
    # The correction takes n/2 off the numerator.
    excess = both * neither - own * others
    phi = pearson * (excess - number / 2) / excess
    low = p1 - p2 - math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    high = p1 - p2 + math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    found = share_difference(hits, baseline)
    assert found.value == pytest.approx(10 / 57)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    turned = share_difference(baseline, hits)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), rel=1e-9)


def test_no_correct_answer_of_either_model_is_no_certainty():
    found = share_difference(*answers(0, 0, 0, 5))
    assert found.value == 0
    assert found.low == pytest.approx(-found.high)
    assert found.high == pytest.approx(wilson_interval(0, 5)[1])


def test_the_interval_of_paired_shares_holds_the_truth():
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(2000):
        cells = rng.multinomial(40, [0.5, 0.2, 0.1, 0.2])
        found = share_difference(*answers(*cells))
        held += found.low <= 0.1 <= found.high
    assert 0.88 < held / 2000 < 0.94


def test_the_mean_of_independent_differences_has_their_combined_error():
    rng = np.random.default_rng(4)
    parts = [mean_difference(rng.normal(i, 1, 50), rng.normal(0, 1, 50)) for i in range(3)]
    found = mean_of_differences(parts)
    margins = [part.high - part.value for part in parts]
    margin = math.sqrt(sum(m * m for m in margins)) / 3
    assert found.value == pytest.approx(sum(part.value for part in parts) / 3)
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin))
    assert found.num_pairs == 150


@pytest.mark.parametrize(
    "compare",
    [
        lambda: mean_difference([], []),
        lambda: mean_difference([1.0], [1.0, 2.0]),
        lambda: share_difference(np.zeros(0, bool), np.zeros(0, bool)),
        lambda: share_difference(np.zeros(2, bool), np.zeros(3, bool)),
        lambda: mean_of_differences([]),
    ],
)
def test_nothing_cannot_be_compared(compare):
    with pytest.raises(ValueError, match=r"nothing to compare|of the baseline"):
        compare()


def test_the_published_example_of_paired_shares():
    """Newcombe 1998: 36 pairs of two hits, 12 and 2 of one, none of none, at a level of 95 %."""
    found = share_difference(*answers(36, 12, 2, 0), level=0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
