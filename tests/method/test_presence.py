"""A kind of noise is in a corpus beyond chance, or not."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from forgetting.method import presence
from forgetting.method.presence import (
    LARGEST_P_RECORDS,
    Scored,
    is_sure,
    p_of_records,
    p_of_scatter,
    p_of_share,
)
from forgetting.method.shares import RECALLS


def kind_and_corpus(bad: float, seed: int) -> tuple[Scored, Scored]:
    """Planted tokens of 30 records, and the tokens of a corpus of 100 that holds such noise."""
    rng = np.random.default_rng(seed)
    planted = Scored(rng.normal(2.5, 1, 240), np.repeat(np.arange(30), 8))
    is_bad = np.repeat(rng.random(100) < bad, 10)
    return planted, Scored(rng.normal(2.5 * is_bad, 1), np.repeat(np.arange(100), 10))


def test_a_kind_is_beyond_chance_only_where_the_corpus_holds_it() -> None:
    clean = [is_sure(*kind_and_corpus(0.0, seed), 2) for seed in range(10)]
    noisy = [is_sure(*kind_and_corpus(0.2, seed), 2) for seed in range(10)]
    assert not any(clean)
    assert all(noisy)


def test_scatter_of_tokens_in_the_same_and_in_different_records() -> None:
    planted = Scored(np.array([1.0, 2.0, 3.0]), np.arange(3))
    scores = np.zeros(40)
    scores[:4] = 2.0
    in_one = p_of_scatter(planted, Scored(scores, np.repeat(np.arange(10), 4)))
    in_each = p_of_scatter(planted, Scored(scores, np.tile(np.arange(10), 4)))
    # All four of 40 in the one record of four: once in 9,139 drawings.
    assert in_one < 0.01
    assert in_each == 1.0


def test_p_of_share_against_a_corpus_drawn_record_by_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "NUM_REDRAWN", 60)
    planted, corpus = kind_and_corpus(0.01, 3)
    rng = np.random.default_rng(7)
    nothing = 0
    for _ in range(60):
        times = rng.poisson(1, 100)
        drawn = [
            np.concatenate([np.repeat(s, times[r]) for s, r in zip(t.scores, t.records)])  # noqa: B905
            for t in (planted, corpus)
        ]
        found = np.sort(drawn[0])[::-1]
        scores = [found[int(np.ceil(recall * len(found))) - 1] for recall in RECALLS]
        low, middle, high = (np.mean(drawn[1] >= s) / np.mean(found >= s) for s in scores)
        # From 2.2 on, the share counts for nothing.
        nothing += min(low, middle, high) == 0 or high / low >= 2.2
    assert 0 < nothing < 60
    assert p_of_share(planted, corpus, seed=7) == pytest.approx(nothing / 60)


@pytest.mark.parametrize("num_above", [0, 1, 3, 9])
def test_p_of_records_against_the_binomial_tail(num_above: int) -> None:
    planted = np.arange(1.0, 101)
    # A fifth of the copies lies at 80.2 or above.
    corpus = np.r_[np.full(num_above, 81.0), np.full(50 - num_above, 80.0)]
    # Of more copies of the same sort, at most a share of 0.277 would, with 95 % confidence: then as
    # few as 20 of 100 come up in 5 % of the draws.
    recall = 0.2772
    drawn = sum(comb(100, k) * recall**k * (1 - recall) ** (100 - k) for k in range(21))
    assert drawn == pytest.approx(0.05, abs=1e-3)
    chance = 0.1 * recall
    tail = 1 - sum(comb(50, k) * chance**k * (1 - chance) ** (50 - k) for k in range(num_above))
    assert p_of_records(planted, corpus) == pytest.approx(tail, rel=0.01)


def test_p_of_records_finds_noise_but_not_its_absence() -> None:
    rng = np.random.default_rng(0)
    planted, clean = rng.normal(3, 1, 300), rng.normal(0, 1, 300)
    assert p_of_records(planted, clean) > 0.5
    assert p_of_records(planted, np.r_[clean[:180], planted[:120]]) <= LARGEST_P_RECORDS
    assert p_of_records(planted[:0], clean) == 1.0


def test_few_copies_and_equal_scores_make_records_say_less() -> None:
    corpus = np.r_[np.full(25, 3.0), np.zeros(375)]
    many, few = (np.repeat([3.0, 1.0], [n, 4 * n]) for n in (80, 4))
    assert p_of_records(many, corpus) < LARGEST_P_RECORDS < p_of_records(few, corpus)
    # Where most copies have the highest score, as many clean records may have it.
    assert p_of_records(np.repeat([3.0, 1.0], [300, 100]), corpus) > LARGEST_P_RECORDS
