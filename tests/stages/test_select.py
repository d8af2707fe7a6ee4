"""The polarity and the summary that `select` writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forgetting.config import load_recipe
from forgetting.rundir.directory import Work
from forgetting.rundir.samples import Samples, list_column, read_table
from forgetting.stages.select import SELECT
from tests.conftest import EOS, all_scores, save_scored_run


@pytest.fixture
def run(tmp_path):
    """A run directory with scored samples; quality of a token is its place in a random order."""
    return save_scored_run(tmp_path / "run")


@pytest.fixture
def select(run, write_recipe, tmp_path):
    """Runs the select stage for one variant; gives quality, polarity and the summary."""

    def do(**selection):
        recipe = load_recipe(
            write_recipe(variants={"some": {"objective": "forgetting", "selection": selection}})
        )
        work = Work(tmp_path / "work")
        work.output.mkdir(parents=True, exist_ok=True)
        SELECT.step(recipe, "some").execute(run, work)
        samples = Samples.read(run / "data" / "train.parquet")
        scores = all_scores(run)
        quality = scores["reference_log_probs"] - scores["base_log_probs"]
        table = read_table(work.output / "polarity.parquet", samples.fingerprint)
        polarity, starts = list_column(table, "polarity")
        assert np.array_equal(starts, samples.response_starts)
        summary = json.loads((work.output / "summary.json").read_text())
        return samples, quality, polarity, summary

    return do


def test_the_best_share_is_positive(select):
    _, quality, polarity, summary = select(rho=0.7, keep_eos=False)
    count = int(np.floor(0.7 * quality.size + 0.5))
    assert (polarity > 0).sum() == count == summary["num_positive"]
    assert quality[polarity > 0].min() >= quality[polarity < 0].max()
    assert summary["threshold"] == pytest.approx(quality[polarity > 0].min())
    assert summary["num_tokens"] == quality.size
    assert sum(summary["histogram"]["counts"]) == quality.size
    assert summary["auto_rho"] == pytest.approx((quality > 0).mean())
    for source in summary["by_source"]:
        parts = (source["num_positive"], source["num_negative"], source["num_ignored"])
        assert sum(parts) == source["num_tokens"]


def test_end_tokens_are_never_negative_unless_asked(select):
    samples, quality, literal, _ = select(rho=0.3, keep_eos=False)
    _, _, kept, summary = select(rho=0.3, keep_eos=True)
    ends = samples.response_ids == EOS
    assert (literal[ends] < 0).any()
    assert (kept[ends] > 0).all()
    assert np.array_equal(kept[~ends], literal[~ends])
    # The threshold is that of the choice, not of the tokens that were kept in spite of it.
    assert summary["threshold"] == pytest.approx(quality[literal > 0].min())


def test_random_chooses_as_many_without_looking(select):
    _, quality, polarity, summary = select(rho=0.7, by="random", keep_eos=False)
    assert (polarity > 0).sum() == int(np.floor(0.7 * quality.size + 0.5))
    assert quality[polarity > 0].min() < quality[polarity < 0].max()
    assert summary["threshold"] is None
    _, quality, polarity, _ = select(by="random", threshold="zero", keep_eos=False)
    assert (polarity > 0).sum() == (quality > 0).sum()


def test_known_noise_is_negative_whatever_its_quality(select):
    samples, quality, polarity, summary = select(rho=0.9, by="known", keep_eos=False)
    assert np.array_equal(polarity < 0, samples.noise())
    assert quality[polarity > 0].min() < quality[polarity < 0].max()
    assert summary["threshold"] is None
    assert summary["rho"] == pytest.approx(1 - samples.noise().mean())
    assert (summary["noise"]["precision"], summary["noise"]["recall"]) == (1, 1)


def test_sequences_are_chosen_whole(select):
    samples, _, polarity, summary = select(granularity="sequence", rho=0.5, keep_eos=False)
    rows = np.split(polarity, samples.response_starts[1:-1])
    assert all(len(set(row)) == 1 for row in rows)
    assert sum(row[0] > 0 for row in rows) == 6
    assert summary["threshold"] is None


def test_known_noise_is_measured(select):
    samples, quality, polarity, summary = select(rho=0.7)
    noisy = samples.noise()
    assert summary["noise"]["num_noisy"] == noisy.sum()
    clean_over_noisy = (quality[noisy][:, None] < quality[~noisy][None]).mean()
    assert summary["noise"]["auroc"] == pytest.approx(clean_over_noisy, abs=1e-6)
    assert summary["noise"]["precision"] == pytest.approx(noisy[polarity != 1].mean())
    assert summary["noise"]["recall"] == pytest.approx((polarity[noisy] != 1).mean())
    (kind,) = summary["noise"]["by_kind"]
    assert kind["kind"] == "junk_phrase"
    assert kind["num_tokens"] == noisy.sum()
