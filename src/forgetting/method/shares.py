"""Estimates how much of a corpus is bad from how a detector of planted noise sees it.

Goes in: evidence on tokens with planted noise and on the corpus. Comes out: the share of bad
tokens and samples with 90 % intervals, and the posterior of each token of the corpus.

The detector tells planted noise from the corpus as it is, real noise included. Let
`r_k(x) = p_k(x) / p_corpus(x)` be the ratio of two densities: of planted kind k, and of the corpus.
If a share `a_k` of the corpus looks like kind k, then `a_k p_k(x) <= p_corpus(x)` for every x. So
`a_k` is at most the smallest ratio of "corpus tokens above a score" to "planted tokens above it"
over all scores (the best bin of Garg et al. 2021, arXiv 2111.00980). With equality, the posterior
of a token is `sum_k a_k r_k(x)`, at most 1. Nothing here fits a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0.05, 0.95, 19)
"""Shares of the planted tokens of a kind above the scores that are looked at."""
NUM_RESAMPLES = 200
LEVEL = 0.9
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
    weights: tuple[float, ...]
    """What turns the odds of each kind into a posterior, see `posterior_of`."""


def posterior_of(
    log_odds: NDArray, kind_probs: NDArray, weights: tuple[float, ...]
) -> NDArray[np.float32]:
    """Probability that a token is bad, for tokens that the shares were not estimated from.

    Args:
        log_odds: planted against not planted, at the prior of the probe, shape (tokens,).
        kind_probs: probability of each kind if bad, shape (tokens, kinds).
        weights: `Shares.weights`.
    """
    scores = log_odds[:, None] + np.log(np.maximum(kind_probs, 1e-9))
    return np.minimum(np.exp(scores) @ np.asarray(weights), 1.0).astype(np.float32)


@dataclass(frozen=True)
class _Counts:
    """Tokens above the scores that are looked at."""

    planted: NDArray[np.float64]
    """Of kind k, in each probe sample: shape (kinds, probe samples, recalls)."""
    planted_total: NDArray[np.float64]
    """Of kind k at any score: shape (kinds, probe samples)."""
    corpus: NDArray[np.float64]
    """Of the corpus, in each of its samples: shape (kinds, samples, recalls)."""


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
    num_kinds = kind_probs.shape[1]
    planted = np.bincount(probe_kinds[probe_kinds >= 0], minlength=num_kinds)
    probe_scores = probe_log_odds[:, None] + np.log(np.maximum(probe_kind_probs, 1e-9))
    scores = log_odds[:, None] + np.log(np.maximum(kind_probs, 1e-9))
    counts = _count(probe_scores, probe_kinds, probe_lengths, scores, lengths)
    rng = np.random.default_rng(seed)
    of_probe = rng.poisson(1.0, (NUM_RESAMPLES, len(probe_lengths))).astype(np.float64)
    of_corpus = rng.poisson(1.0, (NUM_RESAMPLES, len(lengths))).astype(np.float64)
    point = _smallest_ratios(
        counts, np.ones((1, len(probe_lengths))), np.ones((1, len(lengths))), lengths
    )[0]
    resampled = _smallest_ratios(counts, of_probe, of_corpus, lengths)
    # From the odds in the probe to the ratio of densities.
    weights = point * ((probe_kinds < 0).sum() / np.maximum(planted, 1))
    posterior = np.minimum(np.exp(scores) @ weights, 1.0)
    share = float(posterior.mean()) if posterior.size else 0.0
    # Kinds that look alike count the same tokens twice; the posterior, at most 1, does not.
    overlap = share / max(float(point.sum()), 1e-12)
    total = resampled.sum(1) * overlap
    edge = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(total, [edge, 100 - edge])
    bad_samples = _any_above(posterior, lengths, 0.5)
    drawn = of_corpus @ bad_samples / np.maximum(of_corpus.sum(1), 1)
    low_samples, high_samples = np.percentile(drawn, [edge, 100 - edge])
    return Shares(
        share,
        (float(low), float(high)),
        float(bad_samples.mean()),
        (float(low_samples), float(high_samples)),
        tuple(float(value) for value in point * overlap),
        posterior.astype(np.float32),
        tuple(float(weight) for weight in weights),
    )


def _count(
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
    probe_samples = np.repeat(np.arange(len(probe_lengths)), probe_lengths)
    samples = np.repeat(np.arange(len(lengths)), lengths)
    for kind in range(num_kinds):
        of_kind = probe_kinds == kind
        if not of_kind.any():
            continue
        found = probe_scores[of_kind, kind]
        edges = np.quantile(found, 1 - RECALLS)[::-1]
        planted[kind] = _above(found, edges, probe_samples[of_kind], len(probe_lengths))
        planted_total[kind] = np.bincount(probe_samples[of_kind], minlength=len(probe_lengths))
        corpus[kind] = _above(scores[:, kind], edges, samples, len(lengths))
    return _Counts(planted, planted_total, corpus)


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
