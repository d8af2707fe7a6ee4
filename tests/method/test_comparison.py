"""The difference of two mean losses, and how often its interval holds the truth."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from forgetting.method import comparison
from forgetting.method.comparison import paired_difference


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
