"""The detector on made-up features: what it finds, what it refuses, and its mathematics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from forgetting.method import detector as mathematics
from forgetting.method.calibration import calibrate
from forgetting.method.corruptions import CLEAN
from forgetting.method.detector import Detector, Findings, fit_detector
from forgetting.method.evidence import CorpusSample, Evidence, Probe, join_evidence
from forgetting.method.explainer import binned
from forgetting.method.shares import WholeShare

NAMES = ("a", "b", "c")
TOKENS = 12


def tokens(rng: np.random.Generator, kinds: np.ndarray, strength: float) -> np.ndarray:
    """Features of tokens: kind "x" moves a, kind "y" moves b, c is chance."""
    features = rng.normal(size=(len(kinds), 3))
    features[kinds == "x", 0] += strength
    features[kinds == "y", 1] += strength
    return features.astype(np.float32)


def draw_kinds(rng: np.random.Generator, samples: int, share: float) -> np.ndarray:
    kinds = np.full((samples, TOKENS), CLEAN, dtype="U5")
    noisy = rng.random(samples) < share
    kinds[noisy, :6] = np.where(rng.random(noisy.sum()) < 0.5, "x", "y")[:, None]
    return kinds.ravel()


def make(
    share: float, strength: float = 4.0, samples: int = 300, seed: int = 0
) -> tuple[Probe, np.ndarray, np.ndarray]:
    """A probe from a corpus with a share of noisy samples, the corpus's features and kinds."""
    rng = np.random.default_rng(seed)
    real = draw_kinds(rng, samples, share)
    corpus = tokens(rng, real, strength)
    planted = draw_kinds(rng, samples, 0.6)
    # The copies are as noisy as the corpus, and nobody has marked that noise.
    hidden = np.where(planted == CLEAN, real, planted)
    probe = Probe(
        tokens(rng, hidden, strength),
        NAMES,
        planted,
        np.full(samples, TOKENS),
        np.arange(samples),
    )
    return probe, corpus, real


def findings(probe: Probe, corpus: np.ndarray, seed: int = 0) -> tuple[Detector, Findings]:
    detector = fit_detector(probe, seed)
    size = len(corpus) // TOKENS
    lengths = np.full(size, TOKENS)
    evidence = detector.weigh(corpus, lengths, np.arange(size))
    return detector, detector.judge(evidence, lengths)


@pytest.fixture(scope="module")
def noisy() -> tuple[Detector, Findings, np.ndarray, Probe, np.ndarray]:
    probe, corpus, real = make(0.3)
    return *findings(probe, corpus), real, probe, corpus


def test_noise_is_found_with_its_kind_and_share(
    noisy: tuple[Detector, Findings, np.ndarray, Probe, np.ndarray],
) -> None:
    detector, found, real, _, _ = noisy
    bad = real != CLEAN
    assert found.found
    assert found.shares is not None
    low, high = found.shares.interval
    assert low <= found.shares.share <= high
    assert abs(found.shares.share - bad.mean()) < 0.05
    marked = found.posterior >= 0.5
    assert bad[marked].mean() > 0.85
    assert marked[bad].mean() > 0.8
    kinds = np.array(found.kinds)[found.likely_kind]
    assert (kinds == real)[bad & marked].mean() > 0.95
    assert detector.report is not None
    # Real noise among the tokens called clean costs it.
    assert detector.report.auroc > 0.8
    assert detector.report.calibration_error < 0.04
    assert set(detector.report.kinds) == {"x", "y"}


def test_expected_bad_tokens_are_sums_over_samples(
    noisy: tuple[Detector, Findings, np.ndarray, Probe, np.ndarray],
) -> None:
    found = noisy[1]
    lengths = np.full(len(found.posterior) // TOKENS, TOKENS)
    expected = [float(p.sum()) for p in np.split(found.posterior.astype(float), len(lengths))]
    np.testing.assert_allclose(found.expected_bad_tokens(lengths), expected, rtol=1e-6)


def test_equal_seeds_and_any_shards_give_equal_findings(
    noisy: tuple[Detector, Findings, np.ndarray, Probe, np.ndarray],
) -> None:
    _, found, _, probe, corpus = noisy
    detector = fit_detector(probe, 0, leave_kinds_out=False)
    size = len(corpus) // TOKENS
    parts = [
        detector.weigh(corpus[a * TOKENS : b * TOKENS], np.full(b - a, TOKENS), np.arange(a, b))
        for a, b in ((0, 100), (100, 101), (101, size))
    ]
    again = detector.judge(join_evidence(parts), np.full(size, TOKENS))
    np.testing.assert_array_equal(again.posterior, found.posterior)
    assert again.reason == found.reason


def test_telling_features_name_what_moved(
    noisy: tuple[Detector, Findings, np.ndarray, Probe, np.ndarray],
) -> None:
    detector, found, real, _, corpus = noisy
    for kind, name in (("x", "a"), ("y", "b")):
        sure = np.flatnonzero((real == kind) & (found.posterior > 0.9))[:20]
        assert detector.explainer is not None
        named = detector.explainer.telling_features(corpus[sure], 2)
        assert np.mean([lines[0][0] == name for lines in named]) > 0.9
        assert all(loss > 0 for lines in named for _, loss in lines)
        assert all(len(lines) <= 2 for lines in named)


def test_noise_in_the_corpus_gives_a_second_fit_and_both_judge_and_explain(
    noisy: tuple[Detector, Findings, np.ndarray, Probe, np.ndarray],
) -> None:
    detector, _, _, _, corpus = noisy
    size = 40
    assert len(detector._fits) == 2
    own = corpus[: size * TOKENS]
    folds = np.repeat([detector._fold_of_record[record] for record in range(size)], TOKENS)

    def of_models(features: np.ndarray) -> np.ndarray:
        """Shape (fits, folds, tokens)."""
        bins = binned(features, detector._edges)
        return np.array([[m.decision_function(bins) for m in fit] for fit in detector._fits])

    every = of_models(own)
    assert not np.allclose(every[0], every[1])
    mean = (every[0] + every[1])[folds, np.arange(len(own))] / 2
    found = detector.weigh(own, np.full(size, TOKENS), np.arange(size)).log_odds
    np.testing.assert_allclose(found, calibrate(mean, detector._calibration), rtol=1e-5)

    losses = []
    for place in range(len(NAMES)):
        changed = own.copy()
        changed[:, place] = detector._clean_medians[place]
        losses.append((every - of_models(changed)).mean((0, 1)))
    assert detector.explainer is not None
    for token, told in enumerate(detector.explainer.telling_features(own)):
        expected = {name: loss[token] for name, loss in zip(NAMES, losses, strict=True)}
        assert dict(told) == pytest.approx({n: x for n, x in expected.items() if x > 0})


@pytest.mark.parametrize(
    ("auroc", "told"),
    [(0.73, "found only in part (AUROC 0.73)"), (0.95, "found well (AUROC 0.95)")],
)
def test_what_is_not_found_says_how_much_could_be(
    auroc: float, told: str, noisy: tuple[Detector, Findings, np.ndarray, Probe, np.ndarray]
) -> None:
    detector, found, *_ = noisy
    assert detector.report is not None
    assert found.shares is not None
    shares = replace(found.shares, share=0.001, interval=(0.0, 0.1))
    report = replace(detector.report, auroc=auroc)
    is_found, reason = mathematics._verdict(report, shares, WholeShare())
    assert not is_found
    assert told in reason
    assert "10.0% of the tokens look bad" in reason


@pytest.mark.parametrize("seed", [0, 1])
def test_a_clean_corpus_is_left_alone(seed: int) -> None:
    probe, corpus, _ = make(0.0, seed=seed)
    _, found = findings(probe, corpus)
    assert not found.found
    assert found.reason.startswith("Nothing found")
    assert found.shares is not None
    assert found.shares.interval[0] == 0
    assert (found.posterior >= 0.5).mean() <= 0.005


def small(
    seed: int, num: int, share: float, strength: float
) -> tuple[Probe, CorpusSample, np.ndarray]:
    """Two copies each of some short records, of which a share is bad as a whole."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 17, num)

    def draw_responses(share: float) -> np.ndarray:
        bad = np.where(rng.random(num) < share, rng.choice(["x", "y"], num), CLEAN)
        return np.repeat(bad, lengths)

    real = draw_responses(share)
    corpus = tokens(rng, real, strength)
    planted = [draw_responses(0.6) for _ in range(2)]
    # Copies in which nothing is planted look as their records do.
    features = [
        np.where((kinds == CLEAN)[:, None], corpus, tokens(rng, kinds, strength))
        for kinds in planted
    ]
    records = np.arange(num)
    probe = Probe(
        np.concatenate(features),
        NAMES,
        np.concatenate(planted),
        np.tile(lengths, 2),
        np.tile(records, 2),
    )
    return probe, CorpusSample(corpus, lengths, records), real


def findings_of(probe: Probe, corpus: CorpusSample, seed: int) -> tuple[Detector, Findings]:
    detector = fit_detector(probe, seed, corpus=corpus, leave_kinds_out=False)
    evidence = detector.weigh(corpus.features, corpus.lengths, corpus.records)
    return detector, detector.judge(evidence, corpus.lengths)


def test_small_clean_corpora_are_left_alone() -> None:
    found = []
    for seed in range(6):
        probe, corpus, _ = small(seed, 140, 0.0, 2.0)
        detector, verdict = findings_of(probe, corpus, seed)
        assert detector.report is not None
        assert detector.report.auroc > 0.8
        found.append(verdict.found)
    assert sum(found) <= 1


@pytest.mark.parametrize("seed", [1, 2])
def test_much_noise_in_short_responses_is_found_with_its_share(seed: int) -> None:
    # Noise in the records of the copies makes a good detector look like a poor one.
    probe, corpus, real = small(seed, 400, 0.3, 2.5)
    _, verdict = findings_of(probe, corpus, seed)
    assert verdict.found
    assert verdict.shares is not None
    assert verdict.shares.share == pytest.approx((real != CLEAN).mean(), rel=0.25)


def test_whole_responses_are_those_of_the_most_frequent_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = np.full((300, TOKENS), CLEAN, dtype="U5")
    kinds[:60], kinds[60:100], kinds[100:150, :6] = "x", "y", "y"
    kinds = kinds.ravel()
    features = tokens(np.random.default_rng(0), kinds, 4.0)
    probe = Probe(features, NAMES, kinds, np.full(300, TOKENS), np.arange(300))
    seen = []

    def count(replaced: np.ndarray, alone: np.ndarray, *, seed: int) -> WholeShare:
        seen.append((len(replaced), len(alone)))
        return WholeShare()

    monkeypatch.setattr(mathematics, "whole_share", count)
    fit_detector(probe, leave_kinds_out=False)
    assert seen == [(60, 150)]


def test_noise_that_cannot_be_seen_is_not_found() -> None:
    probe, corpus, _ = make(0.2, strength=0.0)
    detector, found = findings(probe, corpus)
    assert not found.found
    assert detector.report is not None
    assert detector.report.auroc < 0.7
    assert "AUROC" in found.reason


def test_a_record_is_judged_by_a_classifier_that_has_not_seen_its_copies() -> None:
    probe, _, _ = make(0.2, samples=120)
    detector = fit_detector(probe, leave_kinds_out=False)
    lengths, records = probe.lengths, probe.records
    own = detector.weigh(probe.features, lengths, records).log_odds
    unknown = detector.weigh(probe.features, lengths, records + 10_001).log_odds
    bad = probe.kinds != CLEAN
    # Classifiers that have seen a token know its label.
    gap = [scores[bad].mean() - scores[~bad].mean() for scores in (own, unknown)]
    assert gap[1] > gap[0]


def one_token(count: int) -> Probe:
    rng = np.random.default_rng(0)
    kinds = np.where(np.arange(count) % 3 == 0, "x", CLEAN)
    return Probe(tokens(rng, kinds, 0.0), NAMES, kinds, np.ones(count, np.int64), np.arange(count))


def constant(count: int) -> Probe:
    probe = one_token(count)
    return Probe(np.ones_like(probe.features), NAMES, probe.kinds, probe.lengths, probe.records)


def all_clean(count: int) -> Probe:
    probe = one_token(count)
    kinds = np.full(count, CLEAN)
    return Probe(probe.features, NAMES, kinds, probe.lengths, probe.records)


def all_bad(count: int) -> Probe:
    probe = one_token(count)
    return Probe(probe.features, NAMES, np.full(count, "x"), probe.lengths, probe.records)


def one_record(count: int) -> Probe:
    probe = one_token(count)
    return Probe(probe.features, NAMES, probe.kinds, probe.lengths, np.zeros(count, dtype=np.int64))


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (one_token(49), "49 records"),
        (one_token(0), "0 records"),
        (one_token(200), "AUROC"),
        (constant(200), "the same of every token"),
        (all_clean(200), "noise in 0 records"),
        (all_bad(200), "clean tokens in 0"),
        (one_record(200), "1 record;"),
    ],
    ids=["few", "none", "one token each", "constant", "clean", "bad", "one record"],
)
def test_degenerate_probes_end_in_nothing_found(probe: Probe, words: str) -> None:
    detector = fit_detector(probe)
    features = np.zeros((200, 3), np.float32)
    lengths = np.ones(200, np.int64)
    found = detector.judge(detector.weigh(features, lengths, np.arange(200)), lengths)
    assert not found.found
    assert words in found.reason
    assert found.posterior.shape == (200,)
    assert np.isfinite(found.posterior).all()
    explainer = detector.explainer
    assert explainer is None or len(explainer.telling_features(features[:2])) == 2


@pytest.mark.parametrize(
    ("strength", "growth", "is_blind"), [(0.0, 3, True), (4.0, 0, False)], ids=["blind", "sees"]
)
def test_noise_that_lengths_alone_give_away_is_not_found(
    strength: float, growth: int, is_blind: bool
) -> None:
    """Copies are longer where noise was planted; the models see it or not."""
    probe, corpus, real = make(0.3, strength)
    rng = np.random.default_rng(1)
    length, of_corpus = (
        (12 + growth * (kinds != CLEAN) + rng.integers(0, 5, len(kinds))).astype(np.float32)
        for kinds in (probe.kinds, real)
    )
    longer = Probe(
        np.c_[probe.features, length],
        (*NAMES, "length"),
        probe.kinds,
        probe.lengths,
        probe.records,
    )
    detector, found = findings(longer, np.c_[corpus, of_corpus])
    assert detector.report is not None
    assert detector.report.auroc > 0.7
    assert found.found != is_blind
    assert found.posterior.any() != is_blind
    assert ("told by the lengths of responses alone" in found.reason) == is_blind


@pytest.mark.parametrize("size", [0, 3, 49])
def test_a_corpus_of_few_samples_says_nothing(size: int) -> None:
    probe, corpus, _ = make(0.3)
    detector = fit_detector(probe, leave_kinds_out=False)
    lengths = np.full(size, TOKENS)
    evidence = detector.weigh(corpus[: size * TOKENS], lengths, np.arange(size))
    found = detector.judge(evidence, lengths)
    assert not found.found
    assert f"{size} samples" in found.reason
    assert not found.posterior.any()


def test_sizes_must_agree() -> None:
    good = one_token(10)
    with pytest.raises(ValueError, match="10 tokens"):
        Probe(good.features[:5], NAMES, good.kinds, good.lengths, good.records)
    with pytest.raises(ValueError, match="10 copies"):
        Probe(good.features, NAMES, good.kinds, good.lengths, good.records[:5])


def test_evidence_is_joined_in_order() -> None:
    parts = [Evidence(np.full(n, n, np.float32), np.full((n, 2), n, np.float32)) for n in (1, 3)]
    joined = join_evidence(parts)
    assert joined.log_odds.tolist() == [1, 3, 3, 3]
    assert joined.kind_probs.shape == (4, 2)
