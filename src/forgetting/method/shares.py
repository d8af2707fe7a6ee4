"""Estimates how much of a corpus is bad from how a detector of planted noise sees it.

Input: evidence on tokens with planted noise, and on the corpus. Output: how much unmarked noise
the copies hold (`Contamination`), and for the corpus the share of bad tokens and samples with 90 %
intervals and the posterior of each token (`Shares`). Nothing here fits a classifier.

The copies come from the corpus, so the tokens in which nothing was planted are as noisy as the
corpus. If a share `a` of them looks like planted noise, then above every score the share of
unplanted tokens is at least `a` times the share of planted ones, and at the highest scores, which
no clean token reaches, it is about that (the best bin of Garg et al. 2021, arXiv 2111.00980).
What is found there is mostly of the kinds that are easiest to see, so each kind counts by how much
of it is found there (black-box shift estimation, Lipton et al. 2018, arXiv 1802.03916).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.method.calibration import sigmoid

RECALLS = (0.2, 0.3, 0.4, 0.5)
"""Shares of the planted tokens above the scores that are looked at."""
MOST_GROWTH = 1.9
"""Noise adds the same share at every score; clean tokens that look like it add more at lower ones.
Of two normal distributions a standard deviation or more apart, the share at the lowest score is at
least 1.9 times that at the highest. So the lower end of the interval counts in full if the two
agree, not at all at 1.9, and in proportion between."""
SMALLEST_SEPARATION = 0.75
"""AUROC of planted against unplanted tokens below which the lower end of the interval is 0."""
LARGEST_SHARE = 0.9
SMALLEST_SHARE = 0.005
"""A lower end of the interval below this share counts as 0."""
MISMATCH = 1.4
"""Factor by which the interval is widened on both sides, because real noise is never made like
planted noise: the estimates for injected noise were off by up to that much."""
NUM_RESAMPLES = 200
LEVEL = 0.9
# A kind of which less than this part of the recall is found counts as if that much were.
_SMALLEST_RECALL = 0.3
_NUM_BINS = 400
_EM_STEPS = 200


@dataclass(frozen=True)
class Contamination:
    """How much unmarked noise the copies hold."""

    share: float
    """Share of bad tokens among those in which nothing was planted."""
    resampled: NDArray[np.float64]
    """The same for resampled copies; shape (resamples,)."""
    resampled_low: NDArray[np.float64]
    """The least that it can be, shape (resamples,)."""


@dataclass(frozen=True)
class Shares:
    """How much of a corpus is bad."""

    share: float
    """Share of bad tokens: the mean posterior."""
    interval: tuple[float, float]
    """90 % interval of `share`, by bootstrap over copies and corpus samples, widened."""
    share_samples: float
    """Share of samples with a token whose posterior is at least 0.5."""
    interval_samples: tuple[float, float]
    by_kind: tuple[float, ...]
    """Share of tokens of each kind, in the detector's order of kinds."""
    posterior: NDArray[np.float32]
    """Probability that a token is bad; shape (tokens,)."""
    shift: float
    """What `posterior_of` adds to the log-odds of a token."""


def estimate_contamination(
    log_odds: NDArray,
    kind_probs: NDArray,
    kinds: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    seed: int = 0,
) -> Contamination:
    """Estimate how many of the tokens in which nothing was planted are bad.

    Args:
        log_odds: planted against not planted, out of fold, shape (tokens,).
        kind_probs: probability of each kind if bad, shape (tokens, kinds).
        kinds: index of the planted kind, -1 where nothing was planted, shape (tokens,).
        lengths: response tokens of each copy, shape (copies,).
        seed: of the bootstrap.
    """
    planted = kinds >= 0
    num_kinds, num_copies = kind_probs.shape[1], len(lengths)
    of_copy = np.repeat(np.arange(num_copies), lengths)
    weights = np.random.default_rng(seed).poisson(1.0, (NUM_RESAMPLES, num_copies))
    weights = np.concatenate([np.ones((1, num_copies)), weights])  # The first is the estimate.
    prior = np.bincount(kinds[planted], minlength=num_kinds) / max(planted.sum(), 1)
    totals = [
        np.bincount(of_copy[kinds == kind], minlength=num_copies) for kind in range(-1, num_kinds)
    ]

    def ratios(recall: float) -> NDArray[np.float64]:
        above = log_odds >= np.quantile(log_odds[planted], 1 - recall)
        if not (above & ~planted).any():
            return np.zeros(len(weights))
        found = [
            weights
            @ np.bincount(of_copy[above & (kinds == kind)], minlength=num_copies)
            / np.maximum(weights @ total, 1)
            for kind, total in zip(range(-1, num_kinds), totals, strict=True)
        ]  # Share of the tokens of each kind that are above, the unplanted ones first.
        mixture = _mixture_of_kinds(kind_probs[above & ~planted], prior)
        seen = [np.maximum(each, _SMALLEST_RECALL * recall) for each in found[1:]]
        return found[0] * sum(part / each for part, each in zip(mixture, seen, strict=True))

    found = np.minimum([ratios(recall) for recall in RECALLS], LARGEST_SHARE)
    likely, least = found.min(axis=0), found[0]
    growth = float(found[-1, 0] / max(found[0, 0], 1e-9))
    if _separation(log_odds, planted) < SMALLEST_SEPARATION:
        growth = MOST_GROWTH
    least = least * np.clip((MOST_GROWTH - growth) / (MOST_GROWTH - 1), 0, 1)
    return Contamination(float(likely[0]), likely[1:], least[1:])


def _separation(log_odds: NDArray, planted: NDArray[np.bool_]) -> float:
    """AUROC of planted against unplanted tokens."""
    others = np.sort(log_odds[~planted])
    found = log_odds[planted]
    below = np.searchsorted(others, found, "left") + np.searchsorted(others, found, "right")
    return float(below.mean()) / (2 * max(len(others), 1))


def _mixture_of_kinds(kind_probs: NDArray, prior: NDArray) -> NDArray[np.float64]:
    """Shares of the kinds among bad tokens, by expectation maximization (Saerens et al. 2002).

    Args:
        kind_probs: by a classifier that saw the kinds in the shares `prior`, shape (tokens, kinds).
        prior: shape (kinds,). It counts as one more token.
    """
    ratio = kind_probs / np.maximum(prior, 1e-9)
    mixture = prior
    for _ in range(_EM_STEPS):
        joint = ratio * mixture
        joint = joint / np.maximum(joint.sum(1, keepdims=True), 1e-12)
        updated = (joint.sum(0) + prior) / (len(joint) + 1)
        if np.abs(updated - mixture).max() < 1e-6:
            break
        mixture = updated
    return mixture


def estimate_shares(
    contamination: Contamination,
    probe_share: float,
    log_odds: NDArray,
    kind_probs: NDArray,
    lengths: NDArray[np.int64],
    *,
    seed: int = 0,
) -> Shares:
    """Estimate how much of a corpus is bad.

    Args:
        contamination: of the copies, which come from that corpus.
        probe_share: share of planted tokens at which the log-odds are meant.
        log_odds: planted against clean, shape (tokens,).
        kind_probs: shape (tokens, kinds).
        lengths: response tokens of each sample of the corpus.
        seed: of the bootstrap.
    """
    shift = posterior_shift(contamination.share, probe_share)
    posterior = posterior_of(log_odds, shift)
    drawn = np.random.default_rng(seed).poisson(1.0, (NUM_RESAMPLES, len(lengths)))
    drawn = drawn.astype(np.float64)
    centers, counts = _histograms(log_odds, lengths)
    tokens = np.maximum(drawn @ counts, 0.0)

    def means(shares: NDArray) -> NDArray[np.float64]:
        shifts = np.array([posterior_shift(share, probe_share) for share in shares])
        posteriors = posterior_of(centers[None], shifts[:, None])
        return (tokens * posteriors).sum(1) / np.maximum(tokens.sum(1), 1.0)

    edge = 100 * (1 - LEVEL) / 2
    low = float(np.percentile(means(contamination.resampled_low), edge)) / MISMATCH
    high = float(np.percentile(means(contamination.resampled), 100 - edge)) * MISMATCH
    bad_samples = _any_above(posterior, lengths, 0.5)
    of_samples = drawn @ bad_samples / np.maximum(drawn.sum(1), 1)
    low_samples, high_samples = np.percentile(of_samples, [edge, 100 - edge])
    size = max(len(posterior), 1)
    return Shares(
        float(posterior.sum() / size),
        (low if low >= SMALLEST_SHARE else 0.0, min(high, 1.0)),
        float(bad_samples.mean()) if len(bad_samples) else 0.0,
        (float(low_samples), float(high_samples)),
        tuple(float(value) for value in posterior @ kind_probs / size),
        posterior.astype(np.float32),
        shift,
    )


def _histograms(
    log_odds: NDArray, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centers of bins of log-odds, shape (bins,), and tokens of each sample in them, shape
    (samples, bins)."""
    values = np.clip(np.asarray(log_odds, dtype=np.float64), -20, 20)
    bins = np.minimum(((values + 20) / 40 * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    of_sample = np.repeat(np.arange(len(lengths)), lengths)
    counts = np.bincount(of_sample * _NUM_BINS + bins, minlength=len(lengths) * _NUM_BINS)
    centers = -20 + 40 * (np.arange(_NUM_BINS) + 0.5) / _NUM_BINS
    return centers, counts.reshape(len(lengths), _NUM_BINS).astype(np.float64)


def _any_above(posterior: NDArray, lengths: NDArray[np.int64], level: float) -> NDArray[np.float64]:
    """1 for each sample with a token of at least that posterior, else 0."""
    ends = np.cumsum(lengths)
    above = np.r_[0, np.cumsum(posterior >= level)]
    return (above[ends] > above[ends - lengths]).astype(np.float64)


def posterior_shift(share: float, probe_share: float) -> float:
    """What log-odds at one share of bad tokens need at another (Bayes' rule; Saerens et al. 2002).

    Args:
        share: of bad tokens; -infinity is returned for 0.
        probe_share: the share at which the log-odds are meant, between 0 and 1.
    """
    if share <= 0:
        return -np.inf
    return float(np.log(share / (1 - share)) - np.log(probe_share / (1 - probe_share)))


def posterior_of(log_odds: NDArray, shift: float | NDArray) -> NDArray[np.float64]:
    """Posterior of tokens, `sigmoid(log_odds + shift)`; shape (tokens,)."""
    return sigmoid(np.asarray(log_odds, dtype=np.float64) + shift)
