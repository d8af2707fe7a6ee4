"""The report on planted noise: each figure equals a count in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forgetting.method.detector_report import DetectorReport, describe

KINDS = ("drop", "garble", "swap")


@pytest.fixture
def tokens() -> tuple[list[str], list[float], list[list[float]], list[float]]:
    """Planted kind, log-odds, kind probabilities and weight of 400 tokens."""
    rng = np.random.default_rng(5)
    names = rng.choice(["clean", "garble", "swap"], 400, p=[0.6, 0.25, 0.15])
    log_odds = rng.normal(size=400) + 1.5 * (names != "clean") - 0.7
    kind_probs = rng.dirichlet([0.05, 1, 1], 400)
    weights = np.where(names == "clean", rng.uniform(0.2, 1, 400), 1.0)
    return names.tolist(), log_odds.tolist(), kind_probs.tolist(), weights.tolist()


def report(tokens: tuple[list[str], list[float], list[list[float]], list[float]]) -> DetectorReport:
    names, log_odds, kind_probs, weights = map(np.array, tokens)
    return describe(names, KINDS, log_odds, kind_probs, weights, {"swap": 0.75})


def test_precision_and_recall_of_each_kind_are_counts_of_tokens(
    tokens: tuple[list[str], list[float], list[list[float]], list[float]],
) -> None:
    found = report(tokens)
    for place, kind in enumerate(KINDS[1:], 1):
        planted, all_marked, num_found, num_kind, num_marked = 0.0, 0.0, 0, 0, 0
        for name, log_odds, probs, weight in zip(*tokens, strict=True):
            is_marked = 1 / (1 + math.exp(-log_odds)) >= 0.5
            num_kind += name == kind
            num_found += name == kind and is_marked
            if is_marked and max(range(3), key=probs.__getitem__) == place:
                all_marked += weight
                # Noise of any kind: what is marked is bad, if not in the way that is named.
                planted += weight * (name != "clean")
                num_marked += 1
        assert num_marked >= 10
        assert found.kinds[kind].precision == pytest.approx(planted / all_marked, rel=1e-12)
        assert found.kinds[kind].recall == pytest.approx(num_found / num_kind, rel=1e-12)
        assert 0 < planted < all_marked


def test_the_auroc_of_a_kind_counts_its_pairs_with_clean_tokens(
    tokens: tuple[list[str], list[float], list[list[float]], list[float]],
) -> None:
    names, log_odds, _, weights = tokens
    above, total = 0.0, 0.0
    for name, score in zip(names, log_odds, strict=True):
        for other, below, weight in zip(names, log_odds, weights, strict=True):
            if name == "swap" and other == "clean":
                above += weight * ((score > below) + (score == below) / 2)
                total += weight
    found = report(tokens).kinds["swap"]
    assert found.auroc == pytest.approx(above / total, rel=1e-9)
    assert found.auroc_left_out == 0.75


def test_a_kind_that_few_tokens_are_marked_as_has_no_precision(
    tokens: tuple[list[str], list[float], list[list[float]], list[float]],
) -> None:
    found = report(tokens).kinds["drop"]
    assert (found.num_tokens, found.auroc, found.recall, found.precision) == (0, None, None, None)
