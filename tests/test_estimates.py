"""The plan's times are the measured paces times the tokens of each step."""

from __future__ import annotations

import json
import math

import pytest

from forgetting import estimates
from forgetting.cli import main
from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.estimates import Paces, estimate_seconds, measure_paces
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.stats import DataSummary

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_logging")]
PACES = Paces(scoring=1.0, training=100.0, reference=10_000.0, generation=0.5)


@pytest.fixture
def estimated(write_recipe, tmp_path, monkeypatch):
    """Prepares a corpus, and estimates a recipe by paces that are known."""
    monkeypatch.setattr(estimates, "measure_paces", lambda recipe, path: PACES)

    def do(*overrides, **sections):
        recipe = load_recipe(write_recipe(**sections), overrides)
        path = run_stages(recipe, tmp_path / "run", stages=["prepare"])
        summary = DataSummary.load(layout.data_dir(path))
        tokens = {name: split.tokens for name, split in summary.splits.items()}
        return estimate_seconds(recipe, path), tokens

    return do


def test_every_step_that_runs_the_model_has_its_time(estimated):
    found, tokens = estimated("training.epochs=2", "reference.epochs=3", "evaluation.num_answers=5")
    # Eight answers at a time, of at most 128 tokens.
    evaluation = tokens["heldout"] * 1.0 + math.ceil(5 / 8) * 128 * 0.5
    variants = ("full", "ignoring", "forgetting")
    assert found == pytest.approx(
        {
            "reference": 3 * tokens["reference"] * 10_000.0,
            # One pass of the base model, one of the reference.
            "score": 2 * tokens["train"] * 1.0,
            **{f"train:{name}": 2 * tokens["train"] * 100.0 for name in variants},
            **{f"evaluate:{name}": evaluation for name in ("base", *variants)},
        }
    )


def test_folds_are_trained_without_their_part(estimated):
    found, tokens = estimated("reference.folds=3", "data.num_reference=0")
    for fold in range(3):
        expected = tokens["train"] * 2 / 3 * 10_000.0
        assert found[f"reference:fold-{fold}"] == pytest.approx(expected)


def test_the_detectors_copies_are_counted(estimated):
    found, tokens = estimated("detector.copies=12", variants={"full": {}, "weighted": {}})
    # With the prompt and with an empty one.
    assert found["probe"] == pytest.approx(2 * 12 * tokens["train"] / 24)
    assert found["score"] == pytest.approx(2 * tokens["train"] + 2 * tokens["heldout"])


def test_rounds_score_each_part_and_leave_the_last_training_to_its_stage(estimated):
    variant = {"objective": "ignoring", "rounds": 4}
    found, tokens = estimated("training.epochs=2", variants={"self": variant})
    part = tokens["train"] / 4
    # Three parts are learned and scored before the last, and the first is scored at the end.
    assert found["evolve:self"] == pytest.approx(3 * 2 * part * 100.0 + 4 * part)
    assert found["train:self"] == pytest.approx(2 * part * 100.0)
    assert "reference" not in found


def test_finished_steps_take_no_time(finished_run, monkeypatch):
    recipe, path = finished_run
    monkeypatch.setattr(estimates, "measure_paces", lambda recipe, path: PACES)
    assert estimate_seconds(load_recipe(recipe), path) == {}
    changed = estimate_seconds(load_recipe(recipe, ["forgetting.t_max=0.5"]), path)
    assert set(changed) == {"train:forgetting", "evaluate:forgetting"}


def test_paces_are_measured_and_leave_the_run_alone(finished_run):
    recipe, path = finished_run
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    paces = measure_paces(load_recipe(recipe, ["reference.batch_size=2"]), path)
    assert all(0 < value < 1 for value in vars(paces).values())
    # The reference has another batch size, and is measured on its own.
    assert paces.reference != paces.training
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_the_command_prints_times_and_tasks(finished_run, capsys, monkeypatch):
    recipe, path = finished_run
    monkeypatch.setattr(estimates, "measure_paces", lambda recipe, path: PACES)
    tasks = "evaluation.tasks=[{task: boolq, limit: 30}, lambada_openai]"
    command = ["run", str(recipe), "--run-dir", str(path), "--dry-run", "--set", tasks]
    assert main([*command, "--time", "--json"]) == 0
    plan = {line["step"]: line for line in json.loads(capsys.readouterr().out)["plan"]}
    assert plan["train:full"]["seconds"] is None
    assert plan["evaluate:full"]["seconds"] > 0
    assert plan["evaluate:full"]["tasks"] == 2
    assert plan["evaluate:base"]["boolq items"] == 30
    assert plan["evaluate:base"]["lambada_openai items"] is None
    assert main([*command, "--time"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Not counted: benchmark tasks" in text
    assert main(command) == 0
    assert "Nothing has been loaded or written" in " ".join(capsys.readouterr().out.split())
    assert main([*command[:4], "--time"]) == 2
    assert "--time is for the plan" in capsys.readouterr().err


def test_without_a_corpus_there_is_nothing_to_measure(write_recipe, tmp_path):
    with pytest.raises(InputError, match="--time needs the corpus"):
        estimate_seconds(load_recipe(write_recipe()), tmp_path / "run")
