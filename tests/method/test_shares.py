"""Shares of bad tokens from densities that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score

from forgetting.method.shares import (
    Shares,
    auroc,
    estimate_shares,
    posterior_of,
    posterior_shift,
)

TOKENS = 10


def posterior_at(log_odds: np.ndarray, share: float) -> np.ndarray:
    return posterior_of(log_odds, posterior_shift(log_odds, share))


def log_density(x: np.ndarray, mean: float) -> np.ndarray:
    return -0.5 * (x - mean) ** 2


def estimate(share: float, distance: float, seed: int) -> tuple[Shares, float]:
    """Clean tokens are N(0, 1), bad ones N(distance, 1); the detector knows the true ratio of
    planted noise to the corpus as it is."""
    rng = np.random.default_rng(seed)
    samples = 600
    bad_corpus = np.repeat(rng.random(samples) < share, TOKENS)
    planted = np.repeat(rng.random(samples) < 0.4, TOKENS)
    hidden = np.repeat(rng.random(samples) < share, TOKENS)

    def draw(bad: np.ndarray) -> np.ndarray:
        return rng.normal(size=len(bad)) + distance * bad

    def log_odds(x: np.ndarray) -> np.ndarray:
        clean, bad = log_density(x, 0), log_density(x, distance)
        corpus = np.logaddexp(np.log1p(-share) + clean, np.log(max(share, 1e-12)) + bad)
        return np.log(0.4 / 0.6) + bad - corpus

    ones = np.ones((samples * TOKENS, 1))
    lengths = np.full(samples, TOKENS)
    found = estimate_shares(
        log_odds(draw(planted | hidden)),
        ones,
        np.where(planted, 0, -1),
        lengths,
        log_odds(draw(bad_corpus)),
        ones,
        lengths,
        seed=seed,
    )
    return found, float(bad_corpus.mean())


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_shares_are_found_where_noise_is_well_told(share: float) -> None:
    held = 0
    for seed in range(5):
        found, true = estimate(share, 5.0, seed)
        low, high = found.interval
        held += low <= true <= high
        assert 0.5 * true < found.share < 1.5 * true
        assert low <= found.share <= high
        assert found.posterior.mean() == pytest.approx(found.share, rel=1e-3)
        assert found.by_kind == (pytest.approx(found.share),)
    assert held >= 4


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_a_blind_detector_knows_no_share(share: float) -> None:
    found, true = estimate(share, 0.5, 0)
    assert found.interval[0] == 0
    assert found.interval[1] > max(true, 0.4)
    assert found.share == 0
    assert not found.posterior.any()


@pytest.mark.parametrize("distance", [2.0, 3.0, 5.0])
def test_the_interval_of_a_clean_corpus_holds_zero(distance: float) -> None:
    for seed in range(5):
        found, _ = estimate(0.0, distance, seed)
        assert found.interval[0] == 0
        assert (found.posterior >= 0.5).mean() <= 0.005


def test_posteriors_against_a_root_finder() -> None:
    log_odds = np.random.default_rng(0).normal(size=1000) * 4 - 3
    odds = np.exp(log_odds)
    for share in (1e-4, 0.01, 0.3, 0.9):
        shift = brentq(
            lambda s, share=share: np.minimum(odds * np.exp(s), 1).mean() - share, -60, 60
        )
        expected = np.minimum(odds * np.exp(shift), 1)
        np.testing.assert_allclose(posterior_at(log_odds, share), expected, atol=1e-9)
    assert not posterior_at(log_odds, 0.0).any()
    np.testing.assert_allclose(posterior_at(log_odds, 1.0), 1.0)
    assert posterior_at(np.zeros(0), 0.5).shape == (0,)


def test_auroc_against_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.integers(0, 20, 200) + 3.0, rng.integers(0, 20, 300) * 1.0
    expected = roc_auc_score(np.r_[np.ones(200), np.zeros(300)], np.r_[high, low])
    assert auroc(high, low) == pytest.approx(expected)
    assert auroc(np.zeros(0), low) == 0.5


def test_kinds_with_few_copies_have_no_share() -> None:
    rng = np.random.default_rng(0)
    kinds = np.full(600, -1)
    kinds[:20] = 0
    kinds[100:400] = 1
    lengths = np.full(60, TOKENS)
    scores = rng.normal(size=600) + 6 * (kinds >= 0)
    likely = np.where(kinds[:, None] == [0, 1], 0.9, 0.1)
    found = estimate_shares(scores, likely, kinds, lengths, scores, likely, lengths)
    # Kind 0 was planted into two copies only.
    assert found.by_kind[0] == 0
    assert found.by_kind[1] > 0.3
