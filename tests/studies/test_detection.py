"""AUROC and average precision, against counting pairs; scores of a run, against its files."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.method import MEASURES
from forgetting.studies.detection import detect_noise, read_qualities, read_scores
from tests.conftest import all_scores, save_scored_run


def test_detection_is_what_counting_pairs_gives():
    random = np.random.default_rng(0)
    noisy = random.random(60) < 0.3
    kinds = np.where(noisy, random.choice(["a", "b"], 60), "")
    quality = random.integers(0, 12, 60).astype(np.float32)  # with ties
    answers = random.random(60) < 0.5
    found = detect_noise({"q": quality}, noisy, kinds, {"answers": answers})["q"]
    assert set(found) == {"all", "a", "b", "answers"}
    members = {"all": noisy | True, "answers": answers}
    for name in found:
        inside = members.get(name, ~noisy | (kinds == name))
        bad, good = quality[inside & noisy], quality[inside & ~noisy]
        pairs = [float(g > b) + 0.5 * float(g == b) for b in bad for g in good]
        assert found[name].auroc == pytest.approx(np.mean(pairs))
        # Precision at every threshold, weighted by the noise that it adds.
        precision = 0.0
        for value in np.unique(bad):
            below = quality[inside] <= value
            share = (noisy[inside] & below).sum() / below.sum()
            precision += share * (bad == value).sum() / bad.size
        assert found[name].average_precision == pytest.approx(precision)


def test_nothing_is_found_where_nothing_is():
    quality, clean = np.arange(4.0), np.zeros(4, bool)
    (found,) = detect_noise({"q": quality}, clean, np.full(4, ""))["q"].values()
    assert (found.auroc, found.average_precision) == (None, None)


def test_kinds_are_told_apart_only_where_they_are_given():
    noisy = np.array([True, False, True, False])
    quality = np.arange(4.0)
    assert set(detect_noise({"q": quality}, noisy)["q"]) == {"all"}
    kinds = np.array(["a", "", "b", ""])
    assert set(detect_noise({"q": quality}, noisy, kinds)["q"]) == {"all", "a", "b"}


def test_qualities_are_those_of_the_scores_on_disk(tmp_path):
    run = save_scored_run(tmp_path / "run")
    scores = all_scores(run)
    assert np.array_equal(
        read_scores(run, ["base_log_probs"])["base_log_probs"], scores["base_log_probs"]
    )
    qualities = read_qualities(run, MEASURES)
    assert list(qualities) == list(MEASURES)
    change = scores["reference_log_probs"] - scores["base_log_probs"]
    assert qualities["influence"] == pytest.approx(change)
    assert np.array_equal(qualities["base_loss"], scores["base_log_probs"])
