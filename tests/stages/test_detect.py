"""What `detect` writes: counts that add up, for any shards, and zeros if nothing was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from forgetting.config import load_recipe
from forgetting.method import classifiers
from forgetting.method import detector as mathematics
from forgetting.method.columns import STATISTICS
from forgetting.method.evidence import Probe
from forgetting.method.features import PassStatistics, compute_features
from forgetting.method.shares import posteriors
from forgetting.pipeline import plan_with_state
from forgetting.rundir import layout
from forgetting.rundir.findings import heldout_posterior, posterior_parts, read_findings
from forgetting.rundir.samples import Samples
from forgetting.rundir.scores import ScoredCorpus
from forgetting.scoring import score_samples
from forgetting.stages import corpus_detection, corpus_features, probe
from forgetting.stages import detect as stage
from forgetting.stages.corpus_detection import detect, fitted_detector, read_copies
from forgetting.stages.corpus_scores import ScoringJob

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_few_trees")]


SURE_SHARE = 0.2
SHIFT = 0.25


@pytest.fixture
def corpus(detected_run):
    recipe, run = detected_run
    return load_recipe(recipe), run, ScoredCorpus(run)


@pytest.fixture
def sure(monkeypatch):
    """Makes every verdict a find, whatever the tiny model sees."""
    monkeypatch.setattr(mathematics, "_verdict", lambda report, shares, whole: (True, "Bad."))
    estimate = mathematics.estimate_shares

    def shares(*args, **kwargs):
        found = estimate(*args, **kwargs)
        num_kinds = len(found.by_kind)
        each = (SURE_SHARE / num_kinds,) * num_kinds
        return replace(found, share=SURE_SHARE, by_kind=each, priors=each, shift=SHIFT)

    monkeypatch.setattr(mathematics, "estimate_shares", shares)


def by_kind(detector, log_odds, kind_probs):
    """Posterior of each kind if `sure` has set the shares."""
    num_kinds = kind_probs.shape[1]
    shares = np.full(num_kinds, SURE_SHARE / num_kinds)
    return posteriors(log_odds, kind_probs, detector._prior_odds, shares)


def judged(corpus, folder):
    recipe, run, scored = corpus
    folder.mkdir()
    return detect(recipe, run, scored, folder, folder)


def posterior(folder, fingerprint):
    parts = list(posterior_parts(folder.parent, fingerprint))
    return tuple(
        np.concatenate([getattr(part, name) for part in parts]) for name in ("posterior", "kind")
    )


def test_the_summary_counts_what_was_written(corpus, sure, tmp_path):
    _, run, scored = corpus
    summary = judged(corpus, layout.detector_dir(tmp_path))
    found, kind = posterior(layout.detector_dir(tmp_path), scored.fingerprint)
    samples = Samples.read(layout.train_file(run))
    assert found.size == samples.response_ids.size
    assert 0 < found.mean() < 1
    (source,) = summary.by_source
    assert (source.source, source.num_samples) == ("records", 60)
    assert source.num_tokens == found.size
    assert source.num_bad_tokens == pytest.approx(found.sum(dtype=float), rel=1e-6)
    is_bad = np.add.reduceat(found >= 0.5, samples.response_starts[:-1]) > 0
    assert source.num_bad_samples == is_bad.sum()
    assert summary.found
    assert summary.passes == ["base", "base_empty"]
    assert summary.num_copies == 80
    assert summary.num_clean_copies + sum(k.num_copies for k in summary.kinds) == 80
    assert summary.report.num_tokens > sum(k.num_tokens for k in summary.kinds) > 0
    assert summary.report.auroc_without_reference is None
    assert kind.min() >= 0
    assert kind.max() < len(summary.kinds)


def heldout(folder, run):
    samples = Samples.read(layout.split_file(layout.data_dir(run), "heldout"))
    return samples, heldout_posterior(folder, samples.fingerprint)


def test_held_out_samples_are_judged_as_those_of_the_corpus(corpus, sure, tmp_path):
    recipe, run, scored = corpus
    judged(corpus, layout.detector_dir(tmp_path))
    samples, found = heldout(tmp_path, run)
    assert found.sample_ids.tolist() == samples.sample_ids.tolist()
    assert found.lengths.tolist() == samples.num_response_tokens.tolist()
    assert 0 < found.posterior.mean() < 1
    # The same by hand, from the model itself.
    ends = corpus_features.segment_ends(recipe.model)
    detector = fitted_detector(recipe, run, scored.fingerprint, ends)
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path)
    own = score_samples(model, samples, statistics=set(STATISTICS) - {"log_probs"})
    job = ScoringJob.of_heldout(recipe, run)
    alone = job.after_contrast(range(len(samples)), samples, np.arange(len(samples)))
    empty = score_samples(model, alone, statistics=set(STATISTICS) - {"log_probs"})
    passes = {
        name: PassStatistics(**{key: getattr(scores, key) for key in STATISTICS})
        for name, scores in (("base", own), ("base_empty", empty))
    }
    features, _ = compute_features(passes, found.lengths, ends[samples.response_ids])
    evidence = detector.weigh(features, found.lengths, samples.sample_ids)
    # A score on the edge of a bin may fall on its other side: rounding depends on the batch.
    probability = 1 / (1 + np.exp(-evidence.log_odds - SHIFT))
    assert (np.abs(probability - found.posterior) < 1e-3).mean() > 0.98
    expected = by_kind(detector, evidence.log_odds, evidence.kind_probs)
    assert (expected.argmax(1) == found.kind).mean() > 0.95


def test_a_recipe_without_held_out_samples_judges_none(corpus, sure, tmp_path):
    recipe, run, scored = corpus
    none = recipe.model_copy(update={"data": recipe.data.model_copy(update={"num_heldout": 0})})
    judged((none, run, scored), layout.detector_dir(tmp_path))
    assert heldout(tmp_path, run)[1] is None


def test_what_is_written_does_not_depend_on_the_parts(corpus, sure, tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    judged(corpus, layout.detector_dir(tmp_path))
    monkeypatch.setattr(corpus_features, "TOKENS_AT_ONCE", 60)
    judged(corpus, layout.detector_dir(tmp_path / "parts"))
    found, kind = posterior(layout.detector_dir(tmp_path), corpus[2].fingerprint)
    parts, kinds = posterior(layout.detector_dir(tmp_path / "parts"), corpus[2].fingerprint)
    assert np.allclose(found, parts, atol=1e-6)
    assert np.array_equal(kind, kinds)


def test_of_a_large_corpus_whole_samples_are_drawn_for_the_share(corpus, tmp_path, monkeypatch):
    recipe, run, scored = corpus
    ends = corpus_features.segment_ends(recipe.model)
    detector = fitted_detector(recipe, run, scored.fingerprint, ends)
    weighed = corpus_detection.WeighedCorpus(
        recipe, scored, detector, tmp_path / "evidence.bin", lambda amount, note: None, ends
    )
    every, lengths = weighed.drawn(0)
    assert lengths.tolist() == weighed.lengths.tolist()
    assert len(every.log_odds) == lengths.sum()
    monkeypatch.setattr(corpus_detection, "TOKENS_JUDGED", 500)
    some, lengths = weighed.drawn(0)
    assert len(some.log_odds) == lengths.sum() <= 500
    assert len(lengths) > 5


def test_the_detector_is_fitted_again_as_it_was(corpus, sure, tmp_path):
    recipe, run, scored = corpus
    judged(corpus, layout.detector_dir(tmp_path))
    found, kind = posterior(layout.detector_dir(tmp_path), scored.fingerprint)
    ends = corpus_features.segment_ends(recipe.model)
    again = fitted_detector(recipe, run, scored.fingerprint, ends)
    weighed = corpus_detection.WeighedCorpus(
        recipe, scored, again, tmp_path / "evidence.bin", lambda amount, note: None, ends
    )
    evidence = [each for _, each in weighed.parts()]
    log_odds = np.concatenate([each.log_odds for each in evidence])
    expected = by_kind(again, log_odds, np.concatenate([each.kind_probs for each in evidence]))
    assert np.allclose(1 / (1 + np.exp(-log_odds - SHIFT)), found, atol=1e-6)
    assert np.array_equal(expected.argmax(1), kind)


def test_if_nothing_is_found_no_token_is_bad(corpus, tmp_path, monkeypatch):
    nothing = (False, "Nothing found.")
    monkeypatch.setattr(mathematics, "_verdict", lambda report, shares, whole: nothing)
    summary = judged(corpus, layout.detector_dir(tmp_path))
    found, _ = posterior(layout.detector_dir(tmp_path), corpus[2].fingerprint)
    assert not found.any()
    assert not heldout(tmp_path, corpus[1])[1].posterior.any()
    assert not summary.found
    assert summary.by_source[0].num_bad_tokens == 0


def test_the_report_says_what_the_reference_adds(corpus, monkeypatch):
    # Each tree looks at a tenth of the features, so a few trees may miss the one that tells.
    monkeypatch.setitem(classifiers.TREES, "max_iter", 20)
    recipe, run, scored = corpus
    ends = corpus_features.segment_ends(recipe.model)
    copies = read_copies(recipe, run, scored.fingerprint, ends)
    probe = copies.probe
    # A reference that sees the noise itself.
    features = np.c_[probe.features, probe.kinds != "clean"].astype(np.float32)
    names = (*probe.names, "reference loss")
    seeing = Probe(features, names, probe.kinds, probe.lengths, probe.records)
    report = mathematics.fit_detector(seeing, 0, leave_kinds_out=False).report
    found = corpus_detection._probe_report(recipe, seeing, report)
    assert found.auroc > 0.9
    assert found.auroc_without_reference < found.auroc
    assert found.average_precision_without_reference < found.average_precision


@pytest.mark.parametrize(
    ("older", "stale"), [(probe, {"probe", "detect"}), (stage, {"detect"})], ids=["probe", "detect"]
)
def test_what_an_older_version_made_is_made_again(detected_run, monkeypatch, older, stale):
    recipe, run = load_recipe(detected_run[0]), detected_run[1]
    before = set(plan_with_state(recipe, run)[1])
    assert before == {"prepare", "probe", "score", "detect"}
    monkeypatch.setattr(older, "VERSION", older.VERSION + 1)
    assert set(plan_with_state(recipe, run)[1]) == before - stale


def test_a_finished_stage_is_read_through_its_reader(detected_run):
    _, run = detected_run
    fingerprint = Samples.read(layout.train_file(run)).fingerprint
    summary = read_findings(run, fingerprint)
    assert summary.verdict
    assert [kind.words for kind in summary.kinds if kind.kind == "swap"] == [
        "answer to another question"
    ]
