"""Detection figures against counting by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.metrics import noise_detection

tokens = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([-1, 0, 1]), st.booleans()),
    min_size=1,
    max_size=30,
)


@given(tokens)
def test_figures_are_those_of_counting(rows):
    quality, polarity, noisy = ([row[i] for row in rows] for i in range(3))
    found = noise_detection(quality, polarity, noisy)
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
    else:
        assert found.auroc is None
        assert found.average_precision is None
    dropped = [n for p, n in zip(polarity, noisy, strict=True) if p != 1]
    assert found.precision == (sum(dropped) / len(dropped) if dropped else None)
    assert found.recall == (sum(dropped) / sum(noisy) if any(noisy) else None)
    assert found.num_noisy == sum(noisy)
    assert found.share_noisy == pytest.approx(sum(noisy) / len(noisy))


def test_average_precision_of_a_known_order():
    # Worst first: noisy, clean, noisy -> precision 1 at recall 1/2, 2/3 at recall 1.
    found = noise_detection([-2.0, -1.0, 0.0, 1.0], [-1, -1, 1, 1], [True, False, True, False])
    assert found.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found.auroc == pytest.approx(0.75)
