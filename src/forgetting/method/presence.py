"""Whether a corpus looks like planted noise beyond chance.

Input: scores of planted tokens, and of the tokens of the corpus, out of fold. Output: for one kind
of noise, two checks by drawing; for all kinds together, one by counting records. Few tokens say
little about the highest scores, which is where `forgetting.method.shares` looks. Knows nothing of
classifiers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.method.shares import RECALLS, sure_share

NUM_REDRAWN = 1000
LARGEST_P = 0.1
"""A kind counts only if its share is 0 in at most so many of the drawings of `p_of_share`, divided
by the number of kinds. Trees of few tokens rank the likeliest ones no further, and so the bounds of
`first_shares` alone took 54 of 120 simulated clean corpora of 140 to 300 samples for noisy."""
LARGEST_P_SCATTER = 0.05
"""The same of `p_of_scatter`."""
RECORD_RECALL = 0.2
"""Share of the copies with planted noise that have a token above the score that is looked at."""
RECALL_LEVEL = 0.95
"""Confidence level of the upper bound on that share."""
LARGEST_CLEAN_SHARE = 0.1
"""Largest share of the records of a clean corpus that may look like copies with planted noise. In
nine clean corpora of 400 records it was at most 0.06, in five of short responses with 20 or 40 % of
noisy records at least 0.26."""
LARGEST_P_RECORDS = 0.001
"""A corpus holds noise if its `p_of_records` is at most this."""
SMALLEST_RECORDS_AUROC = 0.78
"""A detector that tells planted tokens less well takes more clean records for noisy ones, in three
real corpora and a tiny model 34 % and more. Noise in 40 % of the records left 0.80."""


@dataclass(frozen=True)
class Scored:
    """Scores of some tokens, and the record of each, numbered from 0; both of shape (tokens,)."""

    scores: NDArray
    records: NDArray[np.int64]


def p_of_share(planted: Scored, corpus: Scored, *, seed: int = 0) -> float:
    """How often a corpus does not look like a kind if its records are drawn again.

    In each drawing, planted tokens and those of the corpus give the share of `first_shares` anew.

    Args:
        planted: tokens of one kind; the higher the score, the more like the kind.
        corpus: tokens of the corpus.
        seed: of the drawings.

    Returns:
        The share of the drawings in which the kind's share is 0.
    """
    rng = np.random.default_rng(seed)
    size = 1 + int(max(planted.records.max(initial=-1), corpus.records.max(initial=-1)))
    num_tokens = np.bincount(corpus.records, minlength=size)
    planted = _falling(planted, -np.inf)
    # No drawing looks far below the lowest score that the planted tokens themselves give.
    corpus = _falling(corpus, float(np.quantile(planted.scores, 0.25)))
    nothing = 0
    for _ in range(NUM_REDRAWN):
        times = rng.poisson(1, size)
        found = np.cumsum(times[planted.records])
        others = np.r_[0, np.cumsum(times[corpus.records])]
        total, of_corpus = int(found[-1]), int(times @ num_tokens)
        if not total or not of_corpus:
            nothing += 1
            continue
        places = np.searchsorted(found, np.array(RECALLS) * total)
        above = np.searchsorted(-corpus.scores, -planted.scores[places], side="right")
        nothing += not sure_share(others[above] / of_corpus / (found[places] / total))
    return nothing / NUM_REDRAWN


def p_of_scatter(planted: Scored, corpus: Scored, *, seed: int = 0) -> float:
    """How often tokens drawn from a corpus share records as those do that look like a kind.

    Noise fills some records. Clean tokens that look like it by chance are anywhere.

    Args:
        planted: as in `p_of_share`.
        corpus: as there.
        seed: of the drawings.
    """
    rng = np.random.default_rng(seed)
    chosen = corpus.scores >= np.median(planted.scores)

    def num_pairs(records: NDArray[np.int64]) -> int:
        return int((np.bincount(records) ** 2).sum()) if len(records) else 0

    found, size = num_pairs(corpus.records[chosen]), int(chosen.sum())
    drawn = [
        num_pairs(corpus.records[rng.choice(len(chosen), size, replace=False, shuffle=False)])
        for _ in range(NUM_REDRAWN)
    ]
    return float(np.mean(np.array(drawn) >= found))


def is_sure(planted: Scored, corpus: Scored, num_kinds: int, *, seed: int = 0) -> bool:
    """Whether a corpus looks like a kind beyond chance, of so many kinds that are looked at."""
    return (
        p_of_share(planted, corpus, seed=seed) <= LARGEST_P / num_kinds
        and p_of_scatter(planted, corpus, seed=seed) <= LARGEST_P_SCATTER / num_kinds
    )


def p_of_records(planted: NDArray, corpus: NDArray) -> float:
    """How often at least as many records of a clean corpus look like planted noise.

    A record counts by its most suspicious token, so all kinds of noise count together, and few
    tokens suffice.

    Args:
        planted: highest score of each copy with planted noise.
        corpus: the same of each response of the corpus.

    Returns:
        The probability of at least as many records above the score that `RECORD_RECALL` of the
        copies reach, where `LARGEST_CLEAN_SHARE` of the records look like such copies. Few copies
        leave that share uncertain, so its upper confidence bound counts (Clopper and Pearson
        1934).
    """
    from scipy.stats import beta, binom

    if not len(planted):
        return 1.0
    score = np.quantile(planted, 1 - RECORD_RECALL)
    num_copies = int((planted >= score).sum())
    recall = 1.0
    if num_copies < len(planted):
        recall = beta.ppf(RECALL_LEVEL, num_copies + 1, len(planted) - num_copies)
    num_records = int((corpus >= score).sum())
    return float(binom.sf(num_records - 1, len(corpus), LARGEST_CLEAN_SHARE * recall))


def _falling(tokens: Scored, least: float) -> Scored:
    """The tokens of at least a score, the highest first."""
    order = np.argsort(-tokens.scores, kind="stable")
    order = order[tokens.scores[order] >= least]
    return Scored(tokens.scores[order], tokens.records[order])
