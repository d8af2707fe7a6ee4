"""A threshold for each rho divides as the selection itself does."""

from __future__ import annotations

import numpy as np
import pytest
from forgetting.inspector.rule import (
    NUM_LEVELS,
    Rule,
    forget_level,
    level_of,
    noise_curve,
    thresholds,
)
from hypothesis import given
from hypothesis import strategies as st

from forgetting.method import select_tokens


@given(st.integers(0, 5000), st.integers(1, NUM_LEVELS - 1), st.integers(0, 2**32 - 1))
def test_thresholds_divide_as_the_selection_does(size: int, level: int, seed: int) -> None:
    # Distinct values: the selection divides equal ones by their order, a threshold cannot.
    quality = np.random.default_rng(seed).permutation(size).astype(np.float32) - size / 2
    rho = 1 - level / NUM_LEVELS
    assert level_of(rho) == level
    chosen = quality >= thresholds(np.sort(quality))[level]
    assert chosen.tolist() == (select_tokens(quality, rho) > 0).tolist()


def test_equal_values_at_the_threshold_are_positive() -> None:
    sketch = thresholds(np.array([1.0, 1.0, 1.0, 2.0]))
    assert sketch[level_of(0.5)] == 1.0
    assert sketch[NUM_LEVELS] > 2.0


@pytest.mark.parametrize("keep_ends", [True, False])
@pytest.mark.parametrize("forget_rate", [None, 0.2])
def test_noise_is_counted_as_one_would_by_hand(keep_ends: bool, forget_rate: float | None) -> None:
    rng = np.random.default_rng(0)
    quality = rng.normal(size=2000)
    noisy, is_end = rng.random(2000) < 0.2, rng.random(2000) < 0.1
    rule = Rule(keep_ends=keep_ends, forget_rate=forget_rate)
    curve = noise_curve(quality, noisy, is_end, thresholds(np.sort(quality)), rule)
    for rho in (0.05, 0.5, 0.7, 0.9):
        rate = None if forget_rate is None else min(forget_rate, 1 - rho)
        polarity = select_tokens(quality, rho, forget_rate=rate)
        if keep_ends:
            polarity[(polarity < 0) & is_end] = 1
        not_positive = polarity != 1
        level = level_of(rho)
        assert curve.num_not_positive[level] == not_positive.sum()
        assert curve.num_found[level] == (not_positive & noisy).sum()


def test_no_more_is_negative_than_is_not_positive() -> None:
    assert forget_level(Rule(forget_rate=0.2), level_of(0.9)) == level_of(0.9)
    assert forget_level(Rule(forget_rate=0.2), level_of(0.5)) == level_of(0.8)


def test_a_recipe_that_is_silent_has_the_defaults_of_the_recipe() -> None:
    assert Rule.from_recipe({}) == Rule()
    given = {"granularity": "sequence", "balance": "source", "keep_eos": False, "forget_rate": 0.1}
    assert Rule.from_recipe(given) == Rule(True, True, False, 0.1)
