"""Estimates how much of a corpus is bad from how a detector of planted noise sees it.

Input: evidence on tokens with planted noise and on the corpus. Output: the share of bad
tokens and samples with 90 % intervals, and the posterior of each token of the corpus.

The detector tells planted noise from the corpus as it is, real noise included. Let
`r_k(x) = p_k(x) / p_corpus(x)` be the ratio of two densities: of planted kind k, and of the corpus.
If a share `a_k` of the corpus looks like kind k, then `a_k p_k(x) <= p_corpus(x)` for every x. So
`a_k` is at most the smallest ratio of "corpus tokens above a score" to "planted tokens above it"
over all scores (the best bin of Garg et al. 2021, arXiv 2111.00980). The sum of these bounds, less
what clean text shows as well, is the share. The posterior of a token is proportional to `r(x)` of
all kinds together, at most 1, with the share as its mean. Nothing here fits a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0.05, 0.95, 19)
"""Shares of the planted tokens of a kind above the scores that are looked at."""
NUM_RESAMPLES = 200
LEVEL = 0.9
LOOKALIKES = 0.15
"""Share of a corpus without noise that looks like a kind of planted noise, relative to how badly
that kind is told from clean tokens (1 - AUROC). Measured on Alpaca and Dolly records without
injected noise: 0.0001 (swap, AUROC 0.98) to 0.015 (substitute, 0.90). It is taken off the share of
each kind.
"""
SMALLEST_SHARE = 0.005
"""A lower end of the interval below this share counts as 0."""
SMALLEST_NUM_COPIES = 10
"""A kind with fewer planted copies has no share: too little is known of it."""
SMALLEST_AUROC = 0.8
"""A kind that is told less well from clean tokens widens the interval upwards but has no share: its
smallest ratio says how blind the detector is, not how much of it there is."""
MISMATCH = 1.5
"""Factor by which the interval is widened on both sides, because real noise is never made like
planted noise: the estimates for injected noise were off by up to that much."""
# Pseudo-counts that keep the ratio of small counts from being 0.
_PRIOR = 1.0


@dataclass(frozen=True)
class Shares:
    """How much of a corpus is bad."""

    share: float
    """Share of bad tokens."""
    interval: tuple[float, float]
    """90 % interval of `share`, by bootstrap over probe samples and corpus samples."""
    share_samples: float
    """Share of samples with a token whose posterior is at least 0.5."""
    interval_samples: tuple[float, float]
    by_kind: tuple[float, ...]
    """Share of tokens of each kind, in the detector's order of kinds."""
    posterior: NDArray[np.float32]
    """Probability that a token is bad; shape (tokens,)."""
    shift: float
    """What `posterior_of` adds to the log-odds of a token."""


@dataclass(frozen=True)
class _Counts:
    """Tokens above the scores that are looked at."""

    planted: NDArray[np.float64]
    """Tokens of kind k in each probe sample, shape (kinds, probe samples, recalls)."""
    planted_total: NDArray[np.float64]
    """Tokens of kind k at any score, shape (kinds, probe samples)."""
    corpus: NDArray[np.float64]
    """Tokens of the corpus in each of its samples, shape (kinds, samples, recalls)."""
    lookalikes: NDArray[np.float64]
    """Share of each kind that a corpus without noise would show: shape (kinds,)."""
    trusted: NDArray[np.bool_]
    """Whether a kind is told from clean tokens well enough to have a share: shape (kinds,)."""


def estimate_shares(
    probe_log_odds: NDArray,
    probe_kind_probs: NDArray,
    probe_kinds: NDArray[np.int64],
    probe_lengths: NDArray[np.int64],
    log_odds: NDArray,
    kind_probs: NDArray,
    lengths: NDArray[np.int64],
    *,
    seed: int = 0,
) -> Shares:
    """Estimate how much of a corpus is bad.

    Args:
        probe_log_odds: planted against not planted, out of fold, shape (probe tokens,).
        probe_kind_probs: probability of each kind if bad, shape (probe tokens, kinds).
        probe_kinds: index of the planted kind, -1 where nothing was planted.
        probe_lengths: response tokens of each probe sample.
        log_odds: the same of the corpus, shape (tokens,).
        kind_probs: shape (tokens, kinds).
        lengths: response tokens of each sample of the corpus.
        seed: of the bootstrap.
    """
    probe_scores = probe_log_odds[:, None] + np.log(np.maximum(probe_kind_probs, 1e-9))
    scores = log_odds[:, None] + np.log(np.maximum(kind_probs, 1e-9))
    counts = _count(probe_log_odds, probe_scores, probe_kinds, probe_lengths, scores, lengths)
    rng = np.random.default_rng(seed)
    of_probe = rng.poisson(1.0, (NUM_RESAMPLES, len(probe_lengths))).astype(np.float64)
    of_corpus = rng.poisson(1.0, (NUM_RESAMPLES, len(lengths))).astype(np.float64)
    alone = np.ones((1, len(probe_lengths))), np.ones((1, len(lengths)))
    most = _smallest_ratios(counts, *alone, lengths)[0]
    point = np.maximum(most - counts.lookalikes, 0.0) * counts.trusted
    resampled = _smallest_ratios(counts, of_probe, of_corpus, lengths)
    share = min(float(point.sum()), 1.0)
    edge = 100 * (1 - LEVEL) / 2
    low = (
        float(np.percentile((np.maximum(resampled - counts.lookalikes, 0) @ counts.trusted), edge))
        / MISMATCH
    )
    high = min(float(np.percentile(resampled.sum(1), 100 - edge)) * MISMATCH, 1.0)
    low = low if low >= SMALLEST_SHARE else 0.0
    shift = posterior_shift(log_odds, share)
    posterior = posterior_of(log_odds, shift)
    bad_samples = _any_above(posterior, lengths, 0.5)
    drawn = of_corpus @ bad_samples / np.maximum(of_corpus.sum(1), 1)
    low_samples, high_samples = np.percentile(drawn, [edge, 100 - edge])
    return Shares(
        share,
        (low, high),
        float(bad_samples.mean()),
        (float(low_samples), float(high_samples)),
        tuple(float(value) for value in point),
        posterior.astype(np.float32),
        shift,
    )


def _count(
    overall: NDArray,
    probe_scores: NDArray,
    probe_kinds: NDArray[np.int64],
    probe_lengths: NDArray[np.int64],
    scores: NDArray,
    lengths: NDArray[np.int64],
) -> _Counts:
    num_kinds, size = scores.shape[1], len(RECALLS)
    planted = np.zeros((num_kinds, len(probe_lengths), size))
    planted_total = np.zeros((num_kinds, len(probe_lengths)))
    corpus = np.zeros((num_kinds, len(lengths), size))
    lookalikes = np.zeros(num_kinds)
    trusted = np.zeros(num_kinds, dtype=bool)
    probe_samples = np.repeat(np.arange(len(probe_lengths)), probe_lengths)
    samples = np.repeat(np.arange(len(lengths)), lengths)
    for kind in range(num_kinds):
        of_kind = probe_kinds == kind
        if len(np.unique(probe_samples[of_kind])) < SMALLEST_NUM_COPIES:
            continue
        found = probe_scores[of_kind, kind]
        edges = np.quantile(found, 1 - RECALLS)[::-1]
        in_corpus = _above(scores[:, kind], edges, samples, len(lengths))
        above = in_corpus.sum(0) / max(len(scores), 1)
        most = min(float((above / RECALLS[::-1]).min()), 0.95)
        separation = auroc(found, probe_scores[probe_kinds < 0, kind])
        # Unmarked noise of the same kind among the clean tokens is a tie.
        corrected = min((separation - most / 2) / (1 - most), 1.0)
        lookalikes[kind] = LOOKALIKES * (1 - corrected)
        trusted[kind] = auroc(overall[of_kind], overall[probe_kinds < 0]) >= SMALLEST_AUROC
        planted[kind] = _above(found, edges, probe_samples[of_kind], len(probe_lengths))
        planted_total[kind] = np.bincount(probe_samples[of_kind], minlength=len(probe_lengths))
        corpus[kind] = in_corpus
    return _Counts(planted, planted_total, corpus, lookalikes, trusted)


def _above(scores: NDArray, edges: NDArray, samples: NDArray, num_samples: int) -> NDArray:
    """Tokens of each sample whose score is at least an edge: shape (samples, edges), for edges in
    ascending order."""
    size = len(edges)
    # 0: below all edges; j: at least edge j - 1.
    place = np.searchsorted(edges, scores, side="right")
    table = np.bincount(samples * (size + 1) + place, minlength=num_samples * (size + 1))
    table = table.reshape(num_samples, size + 1)
    return table[:, ::-1].cumsum(1)[:, ::-1][:, 1:].astype(np.float64)


def _smallest_ratios(
    counts: _Counts, of_probe: NDArray, of_corpus: NDArray, lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of each kind under weights of samples: shape (resamples, kinds)."""
    tokens = np.maximum(of_corpus @ lengths.astype(np.float64), 1.0)[:, None]
    answer = np.zeros((len(of_probe), len(counts.corpus)))
    for kind in range(len(counts.corpus)):
        total = (of_probe @ counts.planted_total[kind])[:, None]
        recall = (of_probe @ counts.planted[kind]) / np.maximum(total, 1.0)
        above = (of_corpus @ counts.corpus[kind] + _PRIOR) / tokens
        ratio = np.where(recall > 0, above / np.maximum(recall, 1e-9), np.inf)
        found = ratio.min(1)
        answer[:, kind] = np.where((total[:, 0] > 0) & np.isfinite(found), found, 0.0)
    return np.minimum(answer, 1.0)


def _any_above(posterior: NDArray, lengths: NDArray[np.int64], level: float) -> NDArray[np.float64]:
    """1 for each sample with a token of at least that posterior, else 0."""
    ends = np.cumsum(lengths)
    above = np.r_[0, np.cumsum(posterior >= level)]
    return (above[ends] > above[ends - lengths]).astype(np.float64)


def posterior_of(log_odds: NDArray, shift: float) -> NDArray[np.float64]:
    """Posterior of tokens, `min(1, b * odds)` with `shift = log b`; shape (tokens,)."""
    return np.exp(np.minimum(np.asarray(log_odds, dtype=np.float64) + shift, 0))


def posterior_shift(log_odds: NDArray, share: float) -> float:
    """The shift of the log-odds of a corpus that holds a share of bad tokens.

    The posterior is `min(1, b * odds)`, with the factor b that makes the mean `share`. Linear in
    the odds, because these compare planted noise with the corpus as it is (see above), where Bayes'
    rule for clean tokens would have `b * odds / (1 + b * odds)`. -infinity for a share of 0.
    """
    log_odds = np.asarray(log_odds, dtype=np.float64)
    if share <= 0 or not log_odds.size:
        return -np.inf
    # The mean is at most `share` at the first shift and at least that at the second.
    low, high = np.log(share) - log_odds.max(), np.log(min(share, 1.0)) - log_odds.min()
    for _ in range(60):
        middle = (low + high) / 2
        if np.exp(np.minimum(log_odds + middle, 0)).mean() < share:
            low = middle
        else:
            high = middle
    return float(low + high) / 2


def auroc(high: NDArray, low: NDArray) -> float:
    """Chance that a value of `high` exceeds one of `low`, ties counting half; 0.5 if either is
    empty."""
    if not len(high) or not len(low):
        return 0.5
    order = np.sort(low)
    below = np.searchsorted(order, high, side="left") + np.searchsorted(order, high, side="right")
    return float(below.mean() / (2 * len(low)))
