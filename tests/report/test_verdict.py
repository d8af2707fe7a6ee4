"""Which model the report tells people to use, and with which words."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import yaml

from forgetting.errors import InputError
from forgetting.method.comparison import Difference
from forgetting.report.result_files import to_json, to_markdown
from forgetting.report.result_table import results_table
from forgetting.report.sentences import verdict_sentence
from forgetting.report.verdict import Verdict, copies, run_verdict
from forgetting.rundir import layout
from forgetting.rundir.findings import PosteriorWriter
from forgetting.rundir.heldout_losses import write_heldout
from forgetting.rundir.manifest import Manifest, Output, StageEntry
from forgetting.rundir.reader import RunReader
from forgetting.rundir.results import Evaluation
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, write_table
from tests.conftest import save_scored_run
from tests.written_run import metric

NUM_SAMPLES = 60
NUM_TOKENS = 5


@pytest.fixture
def run(tmp_path):
    """A run with 60 held-out samples of 5 response tokens."""
    path = save_scored_run(tmp_path / "run")
    save_heldout(path, NUM_SAMPLES)
    save_recipe(path, full={}, weighted={}, corrected={})
    return path


def save_recipe(path, **variants):
    recipe = {
        "name": "mine",
        "model": {"name_or_path": "tiny"},
        "data": {"sources": [{"path": "data.jsonl"}], "num_reference": 100},
        "variants": variants,
    }
    layout.recipe_file(path).write_text(yaml.safe_dump(recipe, sort_keys=False))


def save_heldout(path, number):
    labels = [-100, *range(3, 3 + NUM_TOKENS)]
    rows = [
        {"sample_id": 500 + i, "source": "even", "input_ids": [i, *labels[1:]], "labels": labels}
        for i in range(number)
    ]
    table = pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
    write_table(table, layout.split_file(layout.data_dir(path), "heldout"))


def heldout(path):
    return Samples.read(layout.split_file(layout.data_dir(path), "heldout"))


def measure(path, **losses):
    """Writes the losses of held-out tokens of each variant."""
    for variant, values in losses.items():
        folder = layout.evaluation_dir(path, variant)
        folder.mkdir(parents=True, exist_ok=True)
        write_heldout(folder, heldout(path), -values, values < 0)


def judge(path, posterior):
    samples = heldout(path)
    file = layout.heldout_posterior_file(layout.detector_dir(path))
    with PosteriorWriter(file, samples.fingerprint) as writer:
        kinds = np.zeros(posterior.size, np.int8)
        writer.write(samples.sample_ids, samples.num_response_tokens, posterior, kinds)


def losses(gap=0.0, spread=0.1, seed=0):
    random = np.random.default_rng(seed)
    common = np.random.default_rng(99).exponential(2, NUM_SAMPLES * NUM_TOKENS)
    return common + random.normal(gap, spread, common.size)


def verdict(path):
    return run_verdict(RunReader(path))


def test_the_variant_whose_interval_is_below_zero_is_named(run):
    measure(run, full=losses(), weighted=losses(-0.1, seed=1), corrected=losses(-0.2, seed=2))
    found = verdict(run)
    assert (found.baseline, found.model) == ("full", "corrected")
    assert found.differences["weighted"].high < 0
    said = verdict_sentence(found)
    assert said.startswith("Use corrected: on 60 held-out responses, its loss is 0.")
    each = found.differences["corrected"]
    assert f"{-each.value:.4f} nats per token below that of full" in said
    assert f"(90% interval: {-each.high:.4f} to {-each.low:.4f})" in said


def test_a_ceiling_by_known_noise_is_not_named(run):
    ceiling = {"objective": "ignoring", "selection": {"by": "known"}}
    save_recipe(run, full={}, weighted={}, known=ceiling)
    measure(run, full=losses(), weighted=losses(-0.1, seed=1), known=losses(-0.3, seed=2))
    found = verdict(run)
    assert found.model == "weighted"
    assert "known" not in found.differences


def test_without_a_clear_difference_full_is_named(run):
    measure(run, full=losses(), weighted=losses(seed=1), corrected=losses(0.5, seed=2))
    found = verdict(run)
    each = found.differences["weighted"]
    assert each.low < 0 < each.high
    assert found.model == "full"
    assert verdict_sentence(found) == (
        "Use full: on 60 held-out responses, the loss of weighted does not differ beyond chance "
        f"({each.value:+.4f} nats per token, 90% interval: {each.low:+.4f} to {each.high:+.4f})."
    )


def test_if_all_others_are_worse_full_is_named_with_its_lead(run):
    measure(run, full=losses(), weighted=losses(0.3, seed=1), corrected=losses(0.5, seed=2))
    said = verdict_sentence(verdict(run))
    each = verdict(run).differences["weighted"]
    assert said == (
        f"Use full: on 60 held-out responses, its loss is {each.value:.4f} nats per token below "
        f"that of weighted (90% interval: {each.low:.4f} to {each.high:.4f})."
    )


def test_bad_held_out_tokens_count_as_much_as_they_are_good(run):
    # A model that has learned the noise: better on every fifth token, which is bad.
    is_bad = np.arange(NUM_SAMPLES * NUM_TOKENS) % NUM_TOKENS == 0
    full = losses()
    weighted = full + np.where(is_bad, 2.0, -0.1)
    measure(run, full=full, weighted=weighted)
    assert verdict(run).model == "full"
    assert not verdict(run).is_weighted
    posterior = np.where(is_bad, 0.99, 0.0).astype(np.float32)
    judge(run, posterior)
    found = verdict(run)
    assert (found.model, found.is_weighted) == ("weighted", True)
    weights = 1 - posterior.astype(float)
    expected = float((weights * (weighted - full)).sum() / weights.sum())
    assert found.differences["weighted"].value == pytest.approx(expected, rel=1e-4)
    assert "counts as much as the detector takes it to be good" in verdict_sentence(found)


def test_few_samples_show_nothing(run):
    save_heldout(run, 19)
    some = slice(0, 19 * NUM_TOKENS)
    measure(run, full=losses()[some], weighted=losses(-1)[some])
    found = verdict(run)
    assert found.model == "full"
    assert verdict_sentence(found) == (
        "Use full: on 19 held-out responses, no difference can be shown, because they are too few."
    )


def test_without_full_the_first_variant_is_the_baseline(run):
    save_recipe(run, weighted={}, corrected={})
    measure(run, full=losses(), weighted=losses(seed=1), corrected=losses(-0.3, seed=2))
    found = verdict(run)
    assert (found.baseline, found.model) == ("weighted", "corrected")
    assert list(found.differences) == ["corrected"]


def test_a_variant_that_diverged_is_left_out(run):
    measure(run, full=losses(), weighted=losses(-0.1), corrected=losses() * np.nan)
    assert list(verdict(run).differences) == ["weighted"]
    measure(run, full=losses() * np.inf)
    assert verdict(run) is None


def test_one_variant_is_not_compared(run):
    assert verdict(run) is None
    measure(run, full=losses())
    assert verdict(run) is None
    assert results_table(run).sentence == "Nothing has been evaluated yet."


def save_manifest(path, *variants):
    """Writes that these variants have the same model."""
    output = Output(sha256="a", size=1, mtime_ns=0)
    entries = {
        f"train:{variant}": StageEntry(
            fingerprint="f",
            outputs={f"models/{variant}/adapter.safetensors": output},
            finished="",
            seconds=1,
            peak_memory_bytes=1,
        )
        for variant in variants
    }
    manifest = Manifest(name="mine", stages=entries)
    layout.manifest_file(path).write_text(manifest.model_dump_json())


def test_only_evaluated_copies_count(run):
    save_manifest(run, "full", "weighted")
    found = [
        Evaluation(variant=name, task="boolq", num_items=9, metrics={"acc": metric(0.5, 0.1)})
        for name in ("base", "full", "weighted")
    ]
    assert copies(RunReader(run), found) == {"weighted": "full"}
    assert copies(RunReader(run), [found[0], found[2]]) == {}


def test_the_same_model_is_said_to_be_the_same(run):
    measure(run, full=losses(), weighted=losses())
    save_manifest(run, "full", "weighted")
    said = verdict_sentence(verdict(run))
    assert said == "Use full. weighted is the same model as full."
    measure(run, corrected=losses(-0.2, seed=2))
    said = verdict_sentence(verdict(run))
    assert said.startswith("Use corrected: ")
    assert said.endswith(" weighted is the same model as full.")


def test_the_results_carry_sentence_and_figures(run):
    measure(run, full=losses(), weighted=losses(-0.3, seed=1))
    table = results_table(run)
    said = verdict_sentence(verdict(run))
    assert table.sentence.startswith(said)
    assert to_markdown(table).startswith("Use weighted: on 60 held-out responses")
    content = json.loads(to_json(table))
    assert content["sentence"] == table.sentence
    each = verdict(run).differences["weighted"]
    assert content["verdict"] == {
        "model": "weighted",
        "baseline": "full",
        "num_samples": 60,
        "is_weighted": False,
        "same": {},
        "differences": {"weighted": {"value": each.value, "low": each.low, "high": each.high}},
    }


def test_what_belongs_to_other_samples_is_refused(run):
    measure(run, full=losses(), weighted=losses())
    save_heldout(run, 61)
    with pytest.raises(InputError, match="belongs to other tokens"):
        verdict(run)


def test_the_reason_for_the_same_model_is_that_nothing_was_found():
    found = Verdict("full", {}, {"weighted": "full"}, 60, True, True, False)
    assert verdict_sentence(found) == (
        "Use full. weighted is the same model as full, because the detector found nothing."
    )


@pytest.mark.parametrize(
    ("differences", "model"),
    [
        ({"a": Difference(-0.3, -0.7, 0.1, 60), "b": Difference(-0.1, -0.2, -0.05, 60)}, "b"),
        ({"a": Difference(-0.3, -0.4, -0.2, 60), "b": Difference(-0.1, -0.2, -0.05, 60)}, "a"),
        ({"a": Difference(-0.3, -0.7, 0.0, 60)}, "full"),
    ],
)
def test_only_intervals_without_zero_count(differences, model):
    assert Verdict("full", differences, {}, 60, True, False, False).model == model
