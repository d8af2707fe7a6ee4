"""Thresholds at each step of the slider divide as the selection itself does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.inspector.thresholds import NUM_STEPS, RHOS, NoiseCurve, Thresholds, step_of
from forgetting.method import select_tokens

rates = st.none() | st.floats(0, 1)


@given(st.integers(0, 3000), st.integers(0, NUM_STEPS - 1), rates, st.integers(0, 2**32 - 1))
def test_thresholds_divide_as_the_selection_does(
    size: int, step: int, forget_rate: float | None, seed: int
) -> None:
    # Distinct values: the selection divides equal ones by their order, a threshold cannot.
    quality = np.random.default_rng(seed).permutation(size).astype(np.float32) - size / 2
    rho = float(RHOS[step])
    at = Thresholds.of(quality, forget_rate)
    found = np.where(quality >= at.positive[step], 1, np.where(quality < at.negative[step], -1, 0))
    # Where there is no room for the rate, all that are not positive are negative.
    rate = None if forget_rate is None or forget_rate > 1 - rho else forget_rate
    assert found.tolist() == select_tokens(quality, rho, forget_rate=rate).tolist()


def test_a_rho_between_two_steps_takes_the_nearest() -> None:
    assert [step_of(rho) for rho in (0.0, 0.005, 0.5, 0.7012, 0.999)] == [0, 0, 99, 139, 198]


def test_equal_values_at_the_threshold_are_positive() -> None:
    at = Thresholds.of(np.array([2.0, 1.0, 1.0, 1.0]), None)
    assert at.positive[step_of(0.5)] == at.negative[step_of(0.5)] == 1.0


def test_without_a_positive_value_the_threshold_is_above_all() -> None:
    assert Thresholds.of(np.array([1.0, 2.0]), None).positive[0] == np.inf


@pytest.mark.parametrize("has_ends", [True, False])
@pytest.mark.parametrize("forget_rate", [None, 0.2])
def test_noise_is_counted_as_one_would_by_hand(has_ends: bool, forget_rate: float | None) -> None:
    rng = np.random.default_rng(0)
    quality = rng.normal(size=2000)
    noisy, is_end = rng.random(2000) < 0.2, (rng.random(2000) < 0.1) & has_ends
    curve = NoiseCurve.of(quality, noisy, is_end, Thresholds.of(quality, forget_rate))
    for rho in (0.05, 0.5, 0.7, 0.9):
        rate = None if forget_rate is None else min(forget_rate, 1 - rho)
        polarity = select_tokens(quality, rho, forget_rate=rate)
        polarity[(polarity < 0) & is_end] = 1
        not_positive = polarity != 1
        step = step_of(rho)
        assert curve.num_not_positive[step] == not_positive.sum()
        assert curve.num_found[step] == (not_positive & noisy).sum()
