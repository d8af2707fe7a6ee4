"""What a recipe says reaches the training of its variants."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from forgetting.config import load_recipe
from forgetting.errors import DivergenceError
from forgetting.models.adapters import SharedBase
from forgetting.pipeline import run as run_stages
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.samples import Samples
from forgetting.training import fit
from tests.conftest import all_scores

pytestmark = pytest.mark.slow


def test_tensorboard_shows_every_figure(write_recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = load_recipe(write_recipe(), ["training.report_to=[tensorboard]"])
    run_stages(
        recipe, tmp_path / "out", stages=["prepare", "reference", "score", "select", "train"]
    )
    folder = tmp_path / "out" / "models" / "forgetting"
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    shown = {tag.removeprefix("train/") for tag in events.Tags()["scalars"]}
    assert {
        "loss",
        "positive_loss",
        "negative_loss",
        "lambda",
        "share_negative",
        "negative_prob",
        "grad_norm",
        "entropy",
    } <= shown
    logged = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    values = [event.value for event in events.Scalars("train/lambda")]
    assert values == pytest.approx([line["lambda"] for line in logged])


@pytest.mark.parametrize("term", ["ga", "tnpo"])
def test_terms_reach_the_training_of_a_run_with_the_scores_they_need(
    term, write_recipe, tmp_path, monkeypatch
):
    seen = {}

    class Spy(fit.ForgettingTrainer):
        def __init__(self, *, args, train_dataset, **kwargs):
            seen[args.forgetting_term.kind] = (args, train_dataset)
            super().__init__(args=args, train_dataset=train_dataset, **kwargs)

    monkeypatch.setattr(fit, "ForgettingTrainer", Spy)
    changes = [
        f"forgetting.term={term}",
        "forgetting.floor=0.01",
        "forgetting.normalization=token",
        "variants={forgetting: {objective: forgetting}}",
    ]
    path = run_stages(
        load_recipe(write_recipe(forgetting={"beta": 0.3}), changes),
        tmp_path / "out",
        stages=["prepare", "reference", "score", "select", "train"],
    )
    args, dataset = seen[term]
    # A parameter of another term is inherited and not used.
    assert args.forgetting_term.parameters == ({"beta": 0.3} if term == "tnpo" else {})
    assert (args.floor, args.normalization) == (0.01, "token")
    assert ("base_log_probs" in dataset.column_names) == (term == "tnpo")
    if term == "tnpo":
        samples = Samples.read(path / "data" / "train.parquet")
        base = all_scores(path)["base_log_probs"]
        given = np.concatenate([np.asarray(row) for row in dataset["base_log_probs"]])
        assert given[samples.is_response].tolist() == pytest.approx(base.tolist())
        assert not given[~samples.is_response].any()


@pytest.mark.long
def test_the_baselines_are_what_their_names_say(write_recipe, tmp_path):
    variants = load_recipe("baselines").model_dump(mode="json", exclude_unset=True)["variants"]
    # Two steps each; that a run ends in a report is tested elsewhere.
    recipe = load_recipe(
        write_recipe(variants=variants), ["training.batch_size=12", "training.micro_batch_size=12"]
    )
    stages = ["prepare", "reference", "score", "select", "train", "evaluate"]
    path = run_stages(recipe, tmp_path / "out", stages=stages)
    summaries = {
        name: json.loads((path / "selection" / name / "summary.json").read_text())
        for name in variants
        if name != "full"
    }
    total = summaries["forgetting"]["num_tokens"]
    for name, summary in summaries.items():
        assert (path / "evaluation" / name / "heldout.json").is_file()
        counts = [summary[f"num_{kind}"] for kind in ("positive", "negative", "ignored")]
        assert sum(counts) == total
        if "random" in name:
            assert summary["num_positive"] > 0.3 * total
    half = summaries["forgetting-half"]
    assert half["num_ignored"] > 0 < half["num_negative"]
    assert summaries["forgetting-sequence"]["granularity"] == "sequence"
    assert summaries["forgetting-zero"]["threshold_kind"] == "zero"
    lambdas = {
        json.loads(line)["lambda"]
        for line in (path / "models/forgetting-constant/training.jsonl").read_text().splitlines()
    }
    assert lambdas == {1e-4}


@pytest.mark.long
def test_the_arena_trains_all_its_variants_in_one_run_with_one_table(write_recipe, tmp_path):
    variants = load_recipe("arena").model_dump(mode="json", exclude_unset=True)["variants"]
    detector = {"copies": 40}
    recipe = load_recipe(write_recipe(variants=variants, detector=detector))
    path = run_stages(recipe, tmp_path / "out")
    table = json.loads((path / "report" / "results.json").read_text())
    shown = json.dumps(table)
    for name in variants:
        log = (path / "models" / name / "training.jsonl").read_text().splitlines()
        assert np.isfinite([json.loads(line)["loss"] for line in log]).all()
        assert f'"{name}"' in shown
    losses = {name: variant.loss.name for name, variant in recipe.variants.items()}
    assert {name for name, loss in losses.items() if loss != "cross_entropy"} == {
        "dft",
        "eaft",
        "truncation",
        "rho1",
    }
    page = (path / "report" / "index.html").read_text()
    assert "Its loss is rho1" in page


ONE_STEP = ["data.num_reference=3", "reference.batch_size=4"]


def test_a_training_of_one_step_takes_it(write_recipe, tmp_path):
    recipe = load_recipe(write_recipe(), [*ONE_STEP, "reference.warmup_ratio=0.5"])
    path = run_stages(recipe, tmp_path / "out", stages=["prepare", "reference"])
    (line,) = (path / "reference" / "training.jsonl").read_text().splitlines()
    assert json.loads(line)["learning_rate"] == recipe.reference.learning_rate
    # What changed nothing would be refused.
    with SharedBase(recipe.model).lend(path / "reference"):
        pass


def test_weights_that_are_no_numbers_are_never_a_finished_stage(write_recipe, tmp_path):
    changes = [*ONE_STEP, "reference.weight_decay=1e38", "reference.learning_rate=10"]
    recipe = load_recipe(write_recipe(), changes)
    message = r"Reference model: training diverged in its last step: .* not finite"
    for _ in range(2):
        with pytest.raises(DivergenceError, match=message):
            run_stages(recipe, tmp_path / "out", stages=["prepare", "reference"])
    assert read_manifest(tmp_path / "out").stages.keys() == {"prepare"}


def test_a_signal_after_the_last_step_ends_the_run(write_recipe, tmp_path, monkeypatch):
    class SignalAtTheEnd(fit.ProgressCallback):
        def on_train_end(self, *args, **kwargs):
            super().on_train_end(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = load_recipe(write_recipe(), ["variants={full: {}}"])
    stages = ["prepare", "train"]
    monkeypatch.setattr(fit, "ProgressCallback", SignalAtTheEnd)
    with pytest.raises(SystemExit) as caught:
        run_stages(recipe, tmp_path / "out", stages=stages)
    monkeypatch.undo()
    assert caught.value.code == 128 + signal.SIGTERM
    assert set(read_manifest(tmp_path / "out").stages) == {"prepare"}
    run_stages(recipe, tmp_path / "out", stages=stages)
    assert "train:full" in read_manifest(tmp_path / "out").stages
