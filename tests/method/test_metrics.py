"""Detection figures against counting by hand, and against scikit-learn."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from forgetting.method.metrics import NoiseTally, mean_and_deviation

tokens = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([-1, 0, 1]), st.booleans()),
    min_size=1,
    max_size=30,
)


def tally(quality, polarity, noisy, kinds=None, parts=1) -> NoiseTally:
    arrays = [np.array(quality, np.float32), np.array(polarity, np.int8), np.array(noisy, bool)]
    if kinds is not None:
        arrays.append(np.array(kinds))
    counted = NoiseTally()
    for part in zip(*(np.array_split(array, parts) for array in arrays), strict=True):
        counted.add(*part)
    return counted


@settings(max_examples=30, deadline=None)
@given(tokens, st.integers(1, 3))
def test_figures_are_those_of_counting(rows, parts):
    quality, polarity, noisy = ([row[i] for row in rows] for i in range(3))
    found = tally(quality, polarity, noisy, parts=parts).detection
    pairs = [
        (a, b)
        for a, n in zip(quality, noisy, strict=True)
        if n
        for b, m in zip(quality, noisy, strict=True)
        if not m
    ]
    if pairs:
        # The chance that a noisy token lies below a clean one, ties counting half.
        wins = sum((a < b) + 0.5 * (a == b) for a, b in pairs)
        assert found.auroc == pytest.approx(wins / len(pairs))
        expected = average_precision_score(noisy, -np.array(quality))
        assert found.average_precision == pytest.approx(expected)
    else:
        assert found.auroc is None
        assert found.average_precision is None
    dropped = [n for p, n in zip(polarity, noisy, strict=True) if p != 1]
    negative = [n for p, n in zip(polarity, noisy, strict=True) if p == -1]
    assert found.precision == (sum(dropped) / len(dropped) if dropped else None)
    assert found.recall == (sum(dropped) / sum(noisy) if any(noisy) else None)
    assert found.precision_negative == (sum(negative) / len(negative) if negative else None)
    assert found.recall_negative == (sum(negative) / sum(noisy) if any(noisy) else None)
    assert found.num_noisy == sum(noisy)
    assert found.share_noisy == pytest.approx(sum(noisy) / len(noisy))


def test_average_precision_of_a_known_order():
    # Worst first: noisy, clean, noisy -> precision 1 at recall 1/2, 2/3 at recall 1.
    found = tally([-2.0, -1.0, 0.0, 1.0], [-1, -1, 1, 1], [True, False, True, False]).detection
    assert found.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found.auroc == pytest.approx(0.75)


def test_bins_cost_little_of_the_areas():
    random = np.random.default_rng(0)
    noisy = random.random(20_000) < 0.1
    quality = (random.normal(size=20_000) - noisy).astype(np.float32)
    found = tally(quality, np.ones(20_000), noisy, parts=7).detection
    assert found.auroc == pytest.approx(roc_auc_score(noisy, -quality), abs=1e-4)
    expected = average_precision_score(noisy, -quality)
    assert found.average_precision == pytest.approx(expected, abs=1e-3)


def test_kinds_are_counted_apart():
    kinds = ["a", "", "b", "a"]
    counted = tally([1, 2, 3, 4], [1, 1, -1, 0], [True, False, True, True], kinds, parts=2)
    assert counted.by_kind == {"a": (2, 0.5), "b": (1, 1.0)}


def test_mean_and_deviation_are_those_of_a_sample():
    mean, deviation = mean_and_deviation([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert deviation == pytest.approx(statistics.stdev([1, 2, 4]))
    assert mean_and_deviation([5.0]) == (5.0, None)
