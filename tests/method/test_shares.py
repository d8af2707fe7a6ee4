"""Shares of bad tokens from densities that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.method.shares import (
    Contamination,
    Shares,
    _mixture_of_kinds,
    estimate_contamination,
    estimate_shares,
    posterior_of,
    posterior_shift,
)

TOKENS = 10
SAMPLES = 600
PLANTED = 0.4


def log_density(x: np.ndarray, mean: float) -> np.ndarray:
    return -0.5 * (x - mean) ** 2


def estimate(
    share: float, distance: float, seed: int
) -> tuple[Contamination, Shares, float, float]:
    """Clean tokens are N(0, 1), bad ones N(distance, 1); the detector knows the true ratios: of
    planted noise to the corpus as it is, then of planted noise to clean tokens."""
    rng = np.random.default_rng(seed)
    bad_corpus = np.repeat(rng.random(SAMPLES) < share, TOKENS)
    planted = np.repeat(rng.random(SAMPLES) < PLANTED, TOKENS)
    hidden = np.repeat(rng.random(SAMPLES) < share, TOKENS)

    def draw(bad: np.ndarray) -> np.ndarray:
        return rng.normal(size=len(bad)) + distance * bad

    def log_odds(x: np.ndarray, contamination: float) -> np.ndarray:
        clean, bad = log_density(x, 0), log_density(x, distance)
        other = np.logaddexp(
            np.log1p(-contamination) + clean, np.log(max(contamination, 1e-12)) + bad
        )
        return np.log(PLANTED / (1 - PLANTED)) + bad - other

    lengths = np.full(SAMPLES, TOKENS)
    ones = np.ones((SAMPLES * TOKENS, 1))
    copies = draw(planted | hidden)
    contamination = estimate_contamination(
        log_odds(copies, share),
        ones,
        np.where(planted, 0, -1),
        lengths,
        seed=seed,
    )
    found = estimate_shares(
        contamination, PLANTED, log_odds(draw(bad_corpus), 0.0), ones, lengths, seed=seed
    )
    return contamination, found, float(hidden[~planted].mean()), float(bad_corpus.mean())


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("distance", [3.0, 5.0])
def test_shares_are_found_where_noise_is_well_told(share: float, distance: float) -> None:
    held = 0
    for seed in range(5):
        contamination, found, hidden, true = estimate(share, distance, seed)
        low, high = found.interval
        held += low <= true <= high
        assert 0.7 * hidden < contamination.share < 1.5 * hidden
        assert 0.6 * true < found.share < 1.6 * true
        assert low <= found.share <= high
        assert found.posterior.mean() == pytest.approx(found.share, rel=1e-3)
        assert found.by_kind == (pytest.approx(found.share),)
    assert held >= 4


@pytest.mark.parametrize("distance", [0.3, 0.8, 1.2, 2.0, 3.0, 5.0])
def test_the_interval_of_a_clean_corpus_holds_zero(distance: float) -> None:
    for seed in range(5):
        _, found, _, _ = estimate(0.0, distance, seed)
        assert found.interval[0] == 0


def test_kinds_that_are_hard_to_see_count_for_more() -> None:
    rng = np.random.default_rng(0)
    # Kind 1 is harder to see than kind 0, and most of the real noise is of it.
    kinds = np.repeat(rng.choice([-1, 0, 1], SAMPLES, p=[0.6, 0.3, 0.1]), TOKENS)
    real = np.repeat(rng.choice([-1, 0, 1], SAMPLES, p=[0.8, 0.05, 0.15]), TOKENS)
    true = np.where(kinds >= 0, kinds, real)
    scores = rng.normal(size=len(kinds)) + np.choose(true + 1, [0.0, 6.0, 5.0])
    probs = np.where(true[:, None] == [0, 1], 0.95, 0.05)
    found = estimate_contamination(scores, probs, kinds, np.full(SAMPLES, TOKENS), seed=0)
    marked = np.mean(scores[kinds < 0] > np.quantile(scores[kinds >= 0], 0.7)) / 0.3
    share = float(np.mean(real[kinds < 0] >= 0))
    assert abs(found.share - share) < 0.4 * share
    assert abs(found.share - share) < abs(marked - share)


def test_mixtures_of_kinds_are_found_from_exact_probabilities() -> None:
    rng = np.random.default_rng(0)
    prior, true = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    x = rng.normal(size=20_000) + 2.0 * rng.choice(3, 20_000, p=true)
    joint = prior * np.exp(log_density(x[:, None], 2.0 * np.arange(3)))
    found = _mixture_of_kinds(joint / joint.sum(1, keepdims=True), prior)
    np.testing.assert_allclose(found, true, atol=0.02)


def test_posteriors_against_bayes_rule() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    clean, bad = np.exp(log_density(x, 0)), np.exp(log_density(x, 2))
    for probe_share, share in ((0.4, 0.1), (0.2, 0.6), (0.3, 0.3)):
        log_odds = np.log(probe_share * bad) - np.log((1 - probe_share) * clean)
        expected = share * bad / (share * bad + (1 - share) * clean)
        found = posterior_of(log_odds, posterior_shift(share, probe_share))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not posterior_of(x, posterior_shift(0.0, 0.3)).any()


def test_empty_corpus() -> None:
    nothing = Contamination(0.1, np.full(200, 0.1), np.full(200, 0.1))
    found = estimate_shares(
        nothing, 0.3, np.zeros(0), np.zeros((0, 2)), np.zeros(0, dtype=np.int64)
    )
    assert found.share == 0
    assert found.interval[0] == 0
    assert found.posterior.shape == (0,)
