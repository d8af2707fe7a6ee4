"""Estimates how much of a corpus is bad from how a detector of planted noise sees it.

Input: evidence on tokens with planted noise, and on the corpus. Output: for each kind the share of
the corpus that looks like it, with an interval, and the posterior of each token (`Shares`). Nothing
here fits a classifier.

The copies come from the corpus, so the tokens in which nothing was planted are as noisy as the
corpus. If a share `a` of them looks like a kind, then above every score the share of unplanted
tokens is at least `a` times that of tokens of the kind, and at the highest scores, which no clean
token reaches, it is about that (the best bin of Garg et al. 2021, arXiv 2111.00980). These first
shares say how likely each unplanted token is bad, and so what a clean token looks like. From there
the shares of the corpus follow by expectation maximization (Saerens et al. 2002).

Real noise often looks milder than planted noise and does not reach the highest scores. Whole
responses tell: averaged over a response, clean tokens hardly ever look like one that was replaced.
So the share of copies that were left alone and still look replaced bounds the rest (`WholeShare`).

The shares of the kinds say how much is bad, and what a bad token probably is. Which tokens are bad
is left to the log-odds, shifted to that share. The share of a single kind is much less certain than
their sum, and a kind with too large a one would put its tokens above all others. On the corpora on
which settings were chosen, this raises the average precision by 0.04 on average (-0.02 to 0.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.method.calibration import sigmoid
from forgetting.method.detector_report import auroc_of

RECALLS = (0.2, 0.3, 0.5)
"""Shares of the planted tokens of a kind above the scores that are looked at."""
GROWTH = (1.7, 2.2)
"""Noise adds the same share at every score; clean tokens that look like it add more at lower ones.
A kind counts in full if its share at the lowest score is at most 1.7 times that at the highest, and
not at all from 2.2 on."""
SMALLEST_NUM_TOKENS = 30
"""A kind with fewer planted tokens has no share: too little is known of it."""
SMALLEST_KIND_AUROC = 0.88
"""A kind that is told less well from tokens in which nothing was planted starts at 0: many of them
look like it. That also leaves out a kind that makes up more than about a fifth of the corpus."""
LARGEST_SHARE = 0.5
MOST_GAIN = 1.5
"""A kind's share of the corpus is at most so many times its first one, which is a bound as well."""
LARGEST_RATIO = 3.0
"""Larger ratios of densities count as that where they are checked against clean tokens: there may
be noise among these."""
SMALLEST_SHARE = 0.005
"""A lower end of the interval below this share counts as 0, unless whole responses show noise."""
MISMATCH = (1.5, 3.5)
"""Factors by which the interval is widened down and up, because real noise is never made like
planted noise: estimates for injected noise were 0.3 to 1.3 times its share."""
WHOLE_RECALLS = (0.5, 0.6, 0.7, 0.8)
"""Shares of the replaced responses above the means that are looked at."""
SMALLEST_NUM_RESPONSES = 20
"""With fewer replaced responses, or copies that were left alone, whole responses say nothing."""
CLEAR_WHOLE_SHARE = 0.02
"""Share of whole responses from which on a corpus holds noise. In five clean corpora it was at most
0.01, in eight with 4 to 22 % of bad tokens at least 0.028."""
SMALLEST_MILD_AUROC = 0.8
"""As `SMALLEST_KIND_AUROC`, in a corpus whose whole responses show that it holds noise: such noise
is what makes its tokens look like planted ones."""
MILD_RECALLS = (0.5, 0.7)
TOKENS_TO_WHOLE = 0.7
"""The share of bad tokens is at least so many times that of whole responses. For injected noise it
was 0.8 to 2.1 times."""
NUM_RESAMPLES = 50
LEVEL = 0.9
TOKENS_RESAMPLED = 50_000
_EM_STEPS = 50
_NORMALIZATIONS = 50
_EM_STEPS_RESAMPLED = 10
_BISECTIONS = 30
_LARGEST_SHIFT = 50.0


@dataclass(frozen=True)
class Shares:
    """How much of a corpus is bad."""

    share: float
    """Share of bad tokens: the mean posterior."""
    interval: tuple[float, float]
    """90 % interval of `share`, by bootstrap over samples, widened."""
    share_samples: float
    """Share of samples with a token whose posterior is at least 0.5."""
    interval_samples: tuple[float, float]
    by_kind: tuple[float, ...]
    """Share of tokens of each kind, in the detector's order of kinds."""
    priors: tuple[float, ...]
    """Share of each kind by which the likely kind is told. More than `by_kind` where the bad tokens
    of the corpus look milder than planted ones."""
    shift: float
    """What is added to the log-odds, so that the mean posterior is `share`; -inf if that is 0."""
    posterior: NDArray[np.float32]
    """Probability that a token is bad; shape (tokens,)."""
    likely_kind: NDArray[np.int8]
    """The kind that a token would be, were it bad; shape (tokens,)."""


@dataclass(frozen=True)
class WholeShare:
    """Share of responses that look as if they had been replaced as a whole."""

    share: float = 0.0
    low: float = 0.0
    high: float = 0.0
    """90 % bootstrap interval, over responses."""

    @property
    def is_clear(self) -> bool:
        """Whether it shows that the corpus holds noise."""
        return self.share >= CLEAR_WHOLE_SHARE and self.low > 0


def whole_share(replaced: NDArray, alone: NDArray, *, seed: int = 0) -> WholeShare:
    """Share of the responses of a corpus that look like those that were replaced as a whole.

    Args:
        replaced: mean log-odds of each replaced response, out of fold; see `response_means`.
        alone: the same of responses of the corpus in which nothing was planted.
        seed: of the bootstrap.
    """
    if min(len(replaced), len(alone)) < SMALLEST_NUM_RESPONSES:
        return WholeShare()
    rng = np.random.default_rng(seed)
    found = [
        _typical_ratio(rng.choice(replaced, len(replaced)), rng.choice(alone, len(alone)))
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(found, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return WholeShare(_typical_ratio(replaced, alone), float(low), float(high))


def response_means(log_odds: NDArray, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean log-odds of each response that has tokens, in order.

    Args:
        log_odds: planted against not planted, shape (tokens,).
        lengths: response tokens of each sample, shape (samples,).
    """
    return _by_response(np.add, log_odds, lengths) / lengths[lengths > 0]


def response_maxima(log_odds: NDArray, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Highest log-odds of each response that has tokens; arguments as in `response_means`."""
    return _by_response(np.maximum, log_odds, lengths)


def _by_response(
    combine: np.ufunc, log_odds: NDArray, lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return np.zeros(0)
    starts = np.cumsum(lengths) - lengths
    return combine.reduceat(np.asarray(log_odds, dtype=np.float64), starts)


def kind_scores(log_odds: NDArray, kind_probs: NDArray) -> NDArray:
    """Scores by which tokens of one kind are told; shape (tokens,), as both arguments."""
    return log_odds + np.log(np.maximum(kind_probs, 1e-6))


def _typical_ratio(found: NDArray, others: NDArray) -> float:
    """Median over recalls of the share of others above a score over that of what is sought."""
    scores = np.quantile(found, 1 - np.array(WHOLE_RECALLS))
    return float(np.median(_ratios_above(found, others, scores)))


def _ratios_above(found: NDArray, others: NDArray, scores: NDArray) -> list[float]:
    return [float(np.mean(others >= score) / np.mean(found >= score)) for score in scores]


def first_shares(
    log_odds: NDArray,
    kind_probs: NDArray,
    kinds: NDArray[np.int64],
    whole: WholeShare = WholeShare(),
) -> NDArray[np.float64]:
    """Share of each kind among the tokens in which nothing was planted; shape (kinds,).

    Args:
        log_odds: planted against not planted, out of fold, shape (tokens,).
        kind_probs: probability of each kind if bad, shape (tokens, kinds).
        kinds: index of the planted kind, -1 where nothing was planted, shape (tokens,).
        whole: see `whole_share`. If it is clear, mild noise counts as well, up to its share.
    """
    num_kinds = kind_probs.shape[1]
    planted = np.bincount(kinds[kinds >= 0], minlength=num_kinds)
    sure, mild = np.zeros((2, num_kinds))
    for kind in np.flatnonzero(planted >= SMALLEST_NUM_TOKENS):
        both = (kinds == kind) | (kinds < 0)
        is_kind = kinds[both] == kind
        scores = kind_scores(log_odds[both], kind_probs[both, kind])
        found, others = scores[is_kind], scores[~is_kind]
        auroc = auroc_of(is_kind, scores) or 0.0
        if auroc >= SMALLEST_KIND_AUROC:
            ratios = _ratios_above(found, others, np.quantile(found, 1 - np.array(RECALLS)))
            sure[kind] = sure_share(ratios)
        if whole.is_clear and auroc >= SMALLEST_MILD_AUROC:
            scores_at = np.quantile(found, 1 - np.array(MILD_RECALLS))
            mild[kind] = min(_ratios_above(found, others, scores_at))
    mild *= min(1.0, whole.share / max(mild.sum(), 1e-9))
    shares = np.maximum(sure, mild)
    return shares * min(1.0, LARGEST_SHARE / max(shares.sum(), 1e-9))


def sure_share(ratios: Sequence[float] | NDArray) -> float:
    """Share that the ratios at `RECALLS` bear out."""
    growth = ratios[-1] / max(ratios[0], 1e-9)
    counts = np.clip((GROWTH[1] - growth) / (GROWTH[1] - GROWTH[0]), 0, 1)
    return float(min(ratios) * counts)


def unmarked_noise(
    log_odds: NDArray, kind_probs: NDArray, kinds: NDArray[np.int64], shares: NDArray
) -> NDArray[np.float64]:
    """Probability that a token in which nothing was planted is bad, 0 for the others.

    Planted noise is compared with the corpus as it is, so the ratio of a kind's density to that of
    the unplanted tokens is at most 1 / share, where all of them are noise.

    Args:
        log_odds: as in `first_shares`.
        kind_probs: as there.
        kinds: as there.
        shares: of the kinds among the unplanted tokens, shape (kinds,).
    """
    ratios = np.exp(_log_ratios(log_odds, kind_probs, prior_odds(kinds, len(shares))))
    return np.where(kinds >= 0, 0.0, np.minimum(ratios @ shares, 1.0))


def prior_odds(
    kinds: NDArray[np.int64], num_kinds: int, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Tokens of each kind over those in which nothing was planted; shape (kinds,).

    Args:
        kinds: as in `first_shares`.
        num_kinds: how many there are.
        weights: how much each token counts, shape (tokens,); default: 1.
    """
    if weights is None:
        weights = np.ones(len(kinds))
    planted = kinds >= 0
    tokens = np.bincount(kinds[planted], weights[planted], minlength=num_kinds)
    return tokens / max(float(weights[~planted].sum()), 1.0)


def normalized(
    log_odds: NDArray, kind_probs: NDArray, odds: NDArray, weights: NDArray
) -> NDArray[np.float64]:
    """Prior odds at which no kind is likelier than clean tokens on clean tokens themselves.

    The mean over clean tokens of a kind's density over theirs is 1, and less if the ratios are
    cut. Where a detector that knows little says more, any corpus would seem to be full of it.

    Args:
        log_odds: of tokens in which nothing was planted, shape (tokens,).
        kind_probs: shape (tokens, kinds).
        odds: see `prior_odds`, shape (kinds,).
        weights: probability that each token is clean, shape (tokens,).
    """
    total = max(float(weights.sum()), 1e-9)
    for _ in range(_NORMALIZATIONS):
        ratios = np.minimum(np.exp(_log_ratios(log_odds, kind_probs, odds)), LARGEST_RATIO)
        excess = np.maximum(weights @ ratios / total, 1.0)
        odds = odds * excess
        if (excess < 1.001).all():
            break
    return odds


def posteriors(
    log_odds: NDArray, kind_probs: NDArray, odds: NDArray, shares: NDArray
) -> NDArray[np.float64]:
    """Probability of each kind for each token, by Bayes' rule; shape (tokens, kinds).

    Args:
        log_odds: planted against clean, at the prior of the copies, shape (tokens,).
        kind_probs: probability of each kind if bad, shape (tokens, kinds).
        odds: see `prior_odds` and `normalized`, shape (kinds,).
        shares: share of each kind in the corpus, shape (kinds,).
    """
    return _of_ratios(np.exp(_log_ratios(log_odds, kind_probs, odds)), shares)


def shifted(log_odds: NDArray, shift: float) -> NDArray[np.float64]:
    """Probability that each token is bad, in a corpus of `Shares.shift`; shape (tokens,)."""
    return sigmoid(np.asarray(log_odds, dtype=np.float64) + shift)


def shift_to(log_odds: NDArray, share: float) -> float:
    """What to add to log-odds so that their mean probability is a share; -inf for 0."""
    if share <= 0 or not len(log_odds):
        return -np.inf
    log_odds = np.asarray(log_odds, dtype=np.float64)
    low, high = -_LARGEST_SHIFT, _LARGEST_SHIFT
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_less = shifted(log_odds, middle).mean() < share
        low, high = (middle, high) if is_less else (low, middle)
    return (low + high) / 2


def _of_ratios(ratios: NDArray, shares: NDArray) -> NDArray[np.float64]:
    joint = ratios * shares
    return joint / (joint.sum(1, keepdims=True) + 1 - shares.sum())


def _log_ratios(log_odds: NDArray, kind_probs: NDArray, odds: NDArray) -> NDArray[np.float64]:
    """Log of the density of each kind over that of the other tokens; shape (tokens, kinds)."""
    joint = np.asarray(log_odds, dtype=np.float64)[:, None] + np.log(np.maximum(kind_probs, 1e-9))
    return np.clip(joint - np.log(np.maximum(odds, 1e-9)), -40, 40)


def estimate_shares(
    log_odds: NDArray,
    kind_probs: NDArray,
    lengths: NDArray[np.int64],
    odds: NDArray,
    first: NDArray,
    whole: WholeShare = WholeShare(),
    *,
    sure: bool = True,
    seed: int = 0,
) -> Shares:
    """Estimate how much of a corpus is bad.

    Args:
        log_odds: planted against clean, at the prior of the copies, shape (tokens,).
        kind_probs: shape (tokens, kinds).
        lengths: response tokens of each sample of the corpus.
        odds: see `prior_odds` and `normalized`, shape (kinds,).
        first: where the estimate starts, shape (kinds,); see `first_shares`.
        whole: see `whole_share`. If it is clear, it bounds the share from below.
        sure: whether the first shares are more than chance; if not, the interval begins at 0.
        seed: of the bootstrap.
    """
    ratios = np.exp(_log_ratios(log_odds, kind_probs, odds))
    most = MOST_GAIN * first
    shares = _expectation_maximization(ratios, first, most, np.ones(len(ratios)), _EM_STEPS)
    priors = shares
    # Without a kind that can be told, there is nothing to raise.
    least = TOKENS_TO_WHOLE * whole.share if whole.is_clear and first.any() else 0.0
    if shares.sum() < least and len(ratios):
        priors = _raised(ratios, np.maximum(shares, first * min(1, least / first.sum())), least)
    of_kinds = _of_ratios(ratios, priors)
    size = max(len(of_kinds), 1)
    shift = shift_to(log_odds, float(of_kinds.sum() / size))
    posterior = shifted(log_odds, shift)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    is_drawn = np.zeros(len(lengths), dtype=bool)
    is_drawn[order[np.cumsum(lengths[order]) <= TOKENS_RESAMPLED]] = True
    drawn = ratios[np.repeat(is_drawn, lengths)]
    own_lengths = lengths[is_drawn]
    bad_samples = _any_above(posterior, lengths, 0.5)
    found, of_samples = np.zeros((2, NUM_RESAMPLES))
    for index in range(NUM_RESAMPLES if len(own_lengths) else 0):
        # As many samples as the corpus has, so that the interval is not that of the drawn ones.
        spread = len(lengths) / len(own_lengths)
        counts = rng.poisson(spread, len(own_lengths)) / spread
        weights = np.repeat(counts, own_lengths)
        resampled = _expectation_maximization(drawn, shares, most, weights, _EM_STEPS_RESAMPLED)
        found[index] = resampled.sum()
        of_samples[index] = rng.choice(bad_samples, len(bad_samples)).mean()
    edges = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
    low, high = (float(edge) for edge in np.percentile(found, edges))
    if least:
        low = max(low, TOKENS_TO_WHOLE * whole.low)
        high = max(high, TOKENS_TO_WHOLE * whole.high)
    low, high = low / MISMATCH[0], high * MISMATCH[1]
    if not sure or (low < SMALLEST_SHARE and not whole.is_clear):
        low = 0.0
    low_samples, high_samples = np.percentile(of_samples, edges)
    return Shares(
        float(posterior.sum() / size),
        (low, min(high, 1.0)),
        float(bad_samples.mean()) if len(bad_samples) else 0.0,
        (float(low_samples), float(high_samples)),
        tuple((of_kinds.sum(0) / size).tolist()),
        tuple(priors.tolist()),
        shift,
        posterior.astype(np.float32),
        of_kinds.argmax(1).astype(np.int8),
    )


def _raised(ratios: NDArray, priors: NDArray, share: float) -> NDArray[np.float64]:
    """The priors in the same proportions, at which the mean posterior is a share."""
    low, high = 0.0, LARGEST_SHARE / max(float(priors.sum()), 1e-9)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_less = _of_ratios(ratios, middle * priors).sum(1).mean() < share
        low, high = (middle, high) if is_less else (low, middle)
    return high * priors


def _expectation_maximization(
    ratios: NDArray, shares: NDArray, most: NDArray, weights: NDArray, steps: int
) -> NDArray[np.float64]:
    """Shares of the kinds that make the tokens likeliest; shape (kinds,).

    Args:
        ratios: density of each kind over that of clean tokens, shape (tokens, kinds).
        shares: where to start, shape (kinds,).
        most: no share becomes larger, shape (kinds,).
        weights: how often each token counts, shape (tokens,).
        steps: at most so many.
    """
    total = float(weights.sum())
    if not total or not shares.any():
        return np.zeros(len(shares))
    for _ in range(steps):
        joint = ratios * shares
        updated = (weights / (joint.sum(1) + 1 - shares.sum())) @ joint / total
        updated = np.minimum(updated, most)
        done = np.abs(updated - shares).max() < 1e-5
        shares = updated
        if done:
            break
    return shares


def _any_above(posterior: NDArray, lengths: NDArray[np.int64], level: float) -> NDArray[np.float64]:
    """1 for each sample with a token of at least that posterior, else 0."""
    ends = np.cumsum(lengths)
    above = np.r_[0, np.cumsum(posterior >= level)]
    return (above[ends] > above[ends - lengths]).astype(np.float64)
