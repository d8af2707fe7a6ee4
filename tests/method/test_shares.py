"""Shares of bad tokens from densities that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from forgetting.method.shares import (
    CLEAR_WHOLE_SHARE,
    SMALLEST_SHARE,
    TOKENS_TO_WHOLE,
    Shares,
    WholeShare,
    estimate_shares,
    first_shares,
    normalized,
    posteriors,
    prior_odds,
    response_maxima,
    response_means,
    shift_to,
    shifted,
    unmarked_noise,
    whole_share,
)

TOKENS = 10
SAMPLES = 1200
PLANTED = (0.2, 0.2)
MEANS = (6.0, -6.0)
ODDS = np.array(PLANTED) / (1 - sum(PLANTED))


def log_density(x: np.ndarray, mean: float) -> np.ndarray:
    return -0.5 * (x - mean) ** 2


def draw(rng: np.random.Generator, shares: tuple[float, ...], size: int) -> np.ndarray:
    """Kinds of tokens, equal within a sample, -1 for clean ones."""
    return np.repeat(rng.choice(len(shares) + 1, size, p=[1 - sum(shares), *shares]) - 1, TOKENS)


def at(kinds: np.ndarray, means: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """One feature: N(0, 1) for clean tokens, N(mean, 1) for those of a kind."""
    return rng.normal(size=len(kinds)) + np.array([0.0, *means])[kinds + 1]


def evidence(
    x: np.ndarray, means: tuple[float, ...], hidden: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """What a perfect classifier says that was fitted on copies with a hidden share of each kind."""
    clean = np.log1p(-sum(hidden)) + log_density(x, 0)
    kinds = np.stack([log_density(x, mean) for mean in means], axis=1)
    parts = [clean] + [np.log(max(h, 1e-12)) + kinds[:, k] for k, h in enumerate(hidden)]
    other = np.log1p(-sum(PLANTED)) + np.logaddexp.reduce(parts, axis=0)
    planted = np.log(PLANTED[: len(means)]) + kinds
    total = np.logaddexp.reduce(planted, axis=1)
    return total - other, np.exp(planted - total[:, None])


def estimate(
    real: tuple[float, float], means: tuple[float, float], seed: int
) -> tuple[np.ndarray, Shares, np.ndarray]:
    """First shares, shares of the corpus, and its true shares."""
    rng = np.random.default_rng(seed)
    planted, hidden = draw(rng, PLANTED, SAMPLES), draw(rng, real, SAMPLES)
    copies = at(np.where(planted >= 0, planted, hidden), means, rng)
    first = first_shares(*evidence(copies, means, real), planted)
    corpus = draw(rng, real, SAMPLES)
    found = estimate_shares(
        *evidence(at(corpus, means, rng), means, (0.0, 0.0)),
        np.full(SAMPLES, TOKENS),
        ODDS,
        first,
        seed=seed,
    )
    return first, found, np.array([np.mean(corpus == kind) for kind in (0, 1)])


@pytest.mark.parametrize("real", [(0.03, 0.03), (0.1, 0.02), (0.02, 0.18)])
@pytest.mark.parametrize("means", [(4.0, -4.0), (5.0, -3.0)])
def test_shares_of_kinds_are_found(real: tuple[float, float], means: tuple[float, float]) -> None:
    held = 0
    for seed in range(4):
        first, found, true = estimate(real, means, seed)
        assert first.sum() == pytest.approx(sum(real), rel=0.5)
        np.testing.assert_allclose(found.by_kind, true, atol=0.01)
        assert found.posterior.mean() == pytest.approx(found.share, rel=1e-3)
        assert found.share == pytest.approx(sum(found.by_kind), rel=0.05)
        low, high = found.interval
        assert low <= found.share <= high
        held += low <= true.sum() <= high
    assert held == 4


@pytest.mark.parametrize("distance", [2.0, 3.0, 5.0])
def test_a_clean_corpus_holds_nothing(distance: float) -> None:
    for seed in range(5):
        _, found, _ = estimate((0.0, 0.0), (distance, -distance), seed)
        assert found.interval[0] == 0
        assert found.share < 0.005


def test_a_kind_that_clean_tokens_look_like_starts_at_zero() -> None:
    # At a distance of 1.5, clean tokens reach every score, and more of them the lower ones.
    first, _, _ = estimate((0.0, 0.1), (1.5, -6.0), 0)
    assert first[0] < 0.01
    assert first[1] == pytest.approx(0.1, rel=0.3)


def test_a_kind_that_looks_like_clean_tokens_starts_at_zero() -> None:
    rng = np.random.default_rng(0)
    kinds = draw(rng, PLANTED, SAMPLES)
    same = first_shares(*evidence(at(kinds, (0.0, 6.0), rng), (0.0, 6.0), (0.0, 0.0)), kinds)
    assert not same.any()


def means_of_responses(
    rng: np.random.Generator, bad: float, distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of 100 replaced responses, and of 1000 others, of which a share is as bad."""
    lengths = rng.integers(0, 15, 1100)
    is_bad = (np.arange(1100) < 100) | (rng.random(1100) < bad)
    scores = rng.normal(size=lengths.sum()) + distance * np.repeat(is_bad, lengths)
    means = response_means(scores, lengths)
    expected = [own.mean() for own in np.split(scores, np.cumsum(lengths)[:-1]) if len(own)]
    np.testing.assert_allclose(means, expected)
    maxima = [own.max() for own in np.split(scores, np.cumsum(lengths)[:-1]) if len(own)]
    np.testing.assert_array_equal(response_maxima(scores, lengths), maxima)
    num_replaced = np.count_nonzero(lengths[:100])
    return means[:num_replaced], means[num_replaced:]


@pytest.mark.parametrize("bad", [0.0, 0.05, 0.2])
def test_whole_responses_tell_the_share_of_those_that_were_replaced(bad: float) -> None:
    rng = np.random.default_rng(0)
    found = [whole_share(*means_of_responses(rng, bad, 2.5)) for _ in range(20)]
    assert np.mean([whole.share for whole in found]) == pytest.approx(bad, abs=0.02)
    assert all(whole.low <= whole.share <= whole.high for whole in found)
    held = [whole.low - 0.01 <= bad <= whole.high + 0.01 for whole in found]
    assert np.mean(held) >= 0.7
    assert {whole.is_clear for whole in found} == {bad > 0}


def test_whole_responses_against_a_count_by_hand() -> None:
    replaced = np.arange(100.0)
    alone = np.array([95.0, 75.0, 45.0, 35.0, *[-5.0] * 96])
    found = whole_share(replaced, alone)
    # Above the scores of 50, 60, 70 and 80 % of the replaced ones are 2, 3, 4 and 4 others.
    expected = np.median([0.02 / 0.5, 0.03 / 0.6, 0.04 / 0.7, 0.04 / 0.8])
    assert found.share == pytest.approx(expected, rel=0.05)


def test_few_whole_responses_say_nothing() -> None:
    assert whole_share(np.full(19, 5.0), np.full(100, 5.0)) == WholeShare()
    assert whole_share(np.full(100, 5.0), np.full(19, 5.0)) == WholeShare()
    assert response_means(np.zeros(0), np.zeros(3, int)).shape == (0,)
    assert response_maxima(np.zeros(0), np.zeros(3, int)).shape == (0,)


def test_mild_noise_counts_where_whole_responses_show_noise() -> None:
    # Noise of the corpus is at 3, planted noise at 4: no plateau at the highest scores.
    rng = np.random.default_rng(0)
    planted, hidden = draw(rng, PLANTED, SAMPLES), draw(rng, (0.2, 0.0), SAMPLES)
    x = np.where(planted >= 0, at(planted, (4.0, -4.0), rng), at(hidden, (3.0, -4.0), rng))
    args = (*evidence(x, (4.0, -4.0), (0.0, 0.0)), planted)
    without = first_shares(*args)
    unclear = first_shares(*args, WholeShare(CLEAR_WHOLE_SHARE / 2, 0.0, 0.1))
    assert without.sum() == unclear.sum() < 0.04
    clear = first_shares(*args, WholeShare(0.1, 0.05, 0.15))
    assert clear[0] == pytest.approx(0.06, rel=0.25)
    assert clear[1] < 0.01
    corpus = draw(rng, (0.2, 0.0), SAMPLES)
    scores = evidence(at(corpus, (3.0, -4.0), rng), (4.0, -4.0), (0.0, 0.0))
    lengths = np.full(SAMPLES, TOKENS)
    # Whole responses say more than expectation maximization may.
    assert estimate_shares(*scores, lengths, ODDS, clear).share < 0.15
    whole = WholeShare(0.25, 0.2, 0.3)
    found = estimate_shares(*scores, lengths, ODDS, clear, whole)
    assert found.share == pytest.approx(TOKENS_TO_WHOLE * 0.25, rel=0.01)
    assert sum(found.by_kind) == pytest.approx(found.share)
    # The mean of what the priors say is the share, of whatever kind the tokens are.
    by_kind = posteriors(*scores, ODDS, np.array(found.priors))
    assert by_kind.sum(1).mean() == pytest.approx(found.share)
    assert found.likely_kind.tolist() == by_kind.argmax(1).tolist()
    assert sum(found.priors) > found.share
    low, high = found.interval
    assert low <= found.share <= high
    assert high >= TOKENS_TO_WHOLE * whole.high


@pytest.mark.parametrize("share", [0.003, 0.2, 0.97])
def test_log_odds_are_shifted_to_a_share(share: float) -> None:
    log_odds = np.random.default_rng(0).normal(-3, 4, 5000)
    shift = shift_to(log_odds, share)
    expected = 1 / (1 + np.exp(-log_odds - shift))
    assert expected.mean() == pytest.approx(share, rel=1e-6)
    np.testing.assert_allclose(shifted(log_odds, shift), expected, rtol=1e-12)


def test_without_a_share_nothing_is_bad() -> None:
    assert shift_to(np.zeros(5), 0.0) == shift_to(np.zeros(0), 0.5) == -np.inf
    assert not shifted(np.array([-30.0, 0.0, 30.0]), -np.inf).any()


def test_a_mistaken_kind_does_not_change_the_order_of_tokens() -> None:
    # Half of the first kind's tokens are clean ones that look like it.
    rng = np.random.default_rng(0)
    corpus = draw(rng, (0.0, 0.1), SAMPLES)
    log_odds, probs = evidence(at(corpus, MEANS, rng), MEANS, (0.0, 0.0))
    first = np.array([0.2, 0.01])
    found = estimate_shares(log_odds, probs, np.full(SAMPLES, TOKENS), ODDS, first)
    order = np.argsort(log_odds)
    assert (np.diff(found.posterior[order]) >= 0).all()
    assert found.posterior.mean() == pytest.approx(found.share, rel=1e-4)


def test_a_kind_with_few_planted_tokens_has_no_share() -> None:
    kinds = np.array([0] * 300 + [1] * 20 + [-1] * 700)
    scores = np.where(kinds >= 0, 5.0, -5.0)
    scores[-70:] = 5.0
    probs = np.where(kinds[:, None] == 1, [0.1, 0.9], [0.9, 0.1])
    np.testing.assert_allclose(first_shares(scores, probs, kinds), [0.1, 0.0])


def test_unmarked_noise_against_bayes_rule() -> None:
    rng = np.random.default_rng(0)
    real = (0.1, 0.05)
    planted, hidden = draw(rng, PLANTED, SAMPLES), draw(rng, real, SAMPLES)
    x = at(np.where(planted >= 0, planted, hidden), MEANS, rng)
    found = unmarked_noise(*evidence(x, MEANS, real), planted, np.array(real))
    bad = [share * np.exp(log_density(x, mean)) for share, mean in zip(real, MEANS, strict=True)]
    expected = sum(bad) / (sum(bad) + 0.85 * np.exp(log_density(x, 0)))
    assert not found[planted >= 0].any()
    # The shares of the probe are counted, not known: so the tolerance.
    np.testing.assert_allclose(found[planted < 0], expected[planted < 0], atol=0.12)
    assert np.abs(found - expected)[planted < 0].mean() < 0.02


def test_posteriors_against_bayes_rule() -> None:
    x = np.linspace(-8, 8, 200)
    shares = np.array([0.3, 0.01])
    found = posteriors(*evidence(x, MEANS, (0.0, 0.0)), ODDS, shares)
    joint = shares * np.exp(np.stack([log_density(x, mean) for mean in MEANS], axis=1))
    expected = joint / (joint.sum(1) + 0.69 * np.exp(log_density(x, 0)))[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    nothing = posteriors(*evidence(x, MEANS, (0.0, 0.0)), ODDS, np.zeros(2))
    assert not nothing.any()


def test_shares_are_the_likeliest_ones() -> None:
    rng = np.random.default_rng(1)
    corpus = at(draw(rng, (0.1, 0.2), 300), (3.0, -2.0), rng)
    log_odds, probs = evidence(corpus, (3.0, -2.0), (0.0, 0.0))
    found = estimate_shares(log_odds, probs, np.full(300, TOKENS), ODDS, np.array([0.2, 0.2]))

    def loss(shares: np.ndarray) -> float:
        parts = [shares[k] * np.exp(log_density(corpus, m)) for k, m in enumerate((3.0, -2.0))]
        return -np.log(sum(parts) + (1 - shares.sum()) * np.exp(log_density(corpus, 0))).mean()

    best = minimize(loss, [0.1, 0.1], bounds=[(1e-6, 0.5)] * 2)
    np.testing.assert_allclose(found.by_kind, best.x, atol=2e-3)


def test_prior_odds_count_weights() -> None:
    kinds = np.array([0, 0, 1, -1, -1])
    np.testing.assert_allclose(prior_odds(kinds, 2), [1.0, 0.5])
    weighted = prior_odds(kinds, 2, np.array([1, 1, 1, 1, 0.25]))
    np.testing.assert_allclose(weighted, [2 / 1.25, 1 / 1.25])


def test_a_detector_that_says_too_much_finds_nothing_in_a_clean_corpus() -> None:
    # It cannot tell the kinds from clean tokens, and has not noticed.
    log_odds, probs = np.full(600, 1.0), np.full((600, 2), 0.5)
    odds = normalized(log_odds, probs, ODDS, np.ones(600))
    found = estimate_shares(log_odds, probs, np.full(60, TOKENS), odds, np.array([0.1, 0.1]))
    assert found.share < 0.21
    careless = estimate_shares(log_odds, probs, np.full(60, TOKENS), ODDS, np.array([0.1, 0.1]))
    assert careless.share > 0.29
    # Where the ratios are right, nothing changes.
    x = np.random.default_rng(0).normal(size=5000)
    same = normalized(*evidence(x, MEANS, (0.0, 0.0)), ODDS, np.ones(5000))
    np.testing.assert_allclose(same, ODDS)


def test_empty_corpus() -> None:
    found = estimate_shares(
        np.zeros(0),
        np.zeros((0, 2)),
        np.zeros(0, dtype=np.int64),
        ODDS,
        np.array([0.1, 0.1]),
    )
    assert found.share == 0
    assert found.interval == (0.0, 0.0)
    assert found.posterior.shape == (0,)


def test_whole_responses_raise_nothing_where_no_kind_can_be_told() -> None:
    whole = WholeShare(0.3, 0.2, 0.4)
    assert whole.is_clear
    found = estimate_shares(
        np.full(40, -2.0), np.full((40, 2), 0.5), np.full(10, 4), np.ones(2), np.zeros(2), whole
    )
    assert found.share == 0
    assert found.interval[0] == 0


def test_a_share_of_whole_responses_that_may_be_zero_is_not_clear() -> None:
    assert not WholeShare(0.022, 0.0, 0.041).is_clear
    assert WholeShare(0.022, 0.01, 0.041).is_clear


def test_shares_that_may_be_chance_have_an_interval_from_zero() -> None:
    rng = np.random.default_rng(0)
    corpus = draw(rng, (0.1, 0.1), SAMPLES)
    seen = evidence(at(corpus, MEANS, rng), MEANS, (0.0, 0.0))
    first = np.array([0.1, 0.1])
    lengths = np.full(SAMPLES, TOKENS)
    sure, unsure = (
        estimate_shares(*seen, lengths, ODDS, first, sure=is_sure) for is_sure in (True, False)
    )
    assert sure.interval[0] > 0
    assert unsure.interval == (0.0, sure.interval[1])
    assert unsure.share == sure.share


@pytest.mark.parametrize(("whole", "is_above_zero"), [(0.0, False), (0.02, True)])
def test_a_small_share_counts_where_whole_responses_show_noise(
    whole: float, is_above_zero: bool
) -> None:
    rng = np.random.default_rng(0)
    corpus = draw(rng, (0.01, 0.0), SAMPLES)
    seen = evidence(at(corpus, MEANS, rng), MEANS, (0.0, 0.0))
    shown = WholeShare(whole, whole / 4, 2 * whole)
    found = estimate_shares(
        *seen, np.full(SAMPLES, TOKENS), ODDS, np.array([0.005, 0.0]), shown, sure=True
    )
    assert (found.interval[0] > 0) == is_above_zero
    assert found.interval[0] < SMALLEST_SHARE
