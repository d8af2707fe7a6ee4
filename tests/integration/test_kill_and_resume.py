"""A run that was killed in every stage, and once interrupted, ends like one that never was.

One run directory, one process after the other: each runs until a chosen call inside a stage,
says so, and is killed there. They are forked from a server that has imported everything.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from forgetting.rundir.manifest import read_manifest
from tests.forked import fork_server

pytestmark = pytest.mark.slow

VARIANTS = ("full", "ignoring", "forgetting")

# Runs in the child: waits before or after a chosen call, until it is killed or released.
CHILD = """
import gc, importlib, signal, sys, time
from pathlib import Path

# See `pytest_runtest_setup` of tests/conftest.py.
gc.freeze()

# As a terminal starts it; where tests run in processes of their own, these ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.stderr = open(log, "w", buffering=1)
if stop is not None:
    target, number, when = stop
    module, _, name = target.rpartition(".")
    module = importlib.import_module(module)
    original, made = getattr(module, name), []

    def watched(*args, **kwargs):
        made.append(1)
        def wait():
            if len(made) == number:
                Path(reached).touch()
                for _ in range(36000):
                    if Path(released).exists():
                        break
                    time.sleep(0.1)
        if when == "before":
            wait()
        result = original(*args, **kwargs)
        if when == "after":
            wait()
        return result

    setattr(module, name, watched)
from forgetting.cli import main
raise SystemExit(main(["run", recipe, "--run-dir", run]))
"""


@dataclass
class Attempt:
    """What one process left."""

    exit_code: int
    log: str
    done: set[str]
    """Stages of the manifest."""
    work: set[str]
    """Stages with a work folder."""
    checkpoints: set[str]
    """Whole checkpoints of the stage in progress."""
    shards: dict[str, int]
    """Scored shards of the stage in progress, and when each was written."""


@pytest.fixture(scope="module")
def attempt(finished_run, tmp_path_factory):
    """Runs the recipe of the finished run elsewhere, up to a call, and ends it with a signal."""
    recipe, _ = finished_run
    folder = tmp_path_factory.mktemp("killed")
    server = fork_server()

    def do(stop=None, with_signal=signal.SIGKILL) -> Attempt:
        log, reached, run = folder / "log", folder / "reached", folder / "run"
        released = folder / "released"
        names = {"recipe": recipe, "run": run, "log": log, "reached": reached, "released": released}
        for file in (reached, released):
            file.unlink(missing_ok=True)
        scope = {**{key: str(value) for key, value in names.items()}, "stop": stop}
        process = server.Process(target=exec, args=(CHILD, scope))
        process.start()
        try:
            if stop is not None:
                while process.is_alive() and not reached.exists():
                    time.sleep(0.02)
                assert reached.exists(), log.read_text()
                os.kill(process.pid, with_signal)
                # Training ends at signals that it can note, after the step and its checkpoint.
                released.touch()
            process.join(15 * 60)
        finally:
            process.kill()
            process.join()
        work = run / ".work"
        return Attempt(
            process.exitcode,
            log.read_text(),
            set(read_manifest(run).stages),
            {f.name.rpartition("-")[0] for f in work.iterdir()},
            {f.parent.name for f in work.glob("*/checkpoints/checkpoint-*/sealed.json")},
            {f.name: f.stat().st_mtime_ns for f in work.glob("score-*/*.parquet")},
        )

    do.run = folder / "run"
    return do


@pytest.fixture(scope="module")
def killed(attempt) -> dict[str, Attempt]:
    """One attempt for each stage, and the one that ends the run."""
    attempts = {
        # One of three tables is written.
        "prepare": attempt(("forgetting.data.splits.TableWriter", 3, "before")),
        # Two checkpoints are whole, the third lacks its seal.
        "reference": attempt(("forgetting.training.safe_trainer.seal", 3, "before")),
        # The base model has scored all three shards, the reference one.
        "score": attempt(("forgetting.stages.corpus_scores.score_samples", 5, "before")),
        # One more shard.
        "score again": attempt(("forgetting.stages.corpus_scores.score_samples", 2, "before")),
        # The polarity is written, the summary is not.
        "select": attempt(("forgetting.stages.corpus_selection.select_corpus", 1, "after")),
        "train": attempt(("forgetting.training.safe_trainer.seal", 3, "after")),
    }
    (newest,) = (attempt.run / ".work").glob("train_full-*/checkpoints/checkpoint-3")
    torn = newest / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    # Four steps of the first variant from checkpoint 2 on, two of the second.
    attempts["interrupted"] = attempt(
        ("forgetting.training.safe_trainer.seal", 4 + 2, "after"), signal.SIGINT
    )
    attempts["evaluate"] = attempt(("forgetting.rundir.results.write_atomically", 3, "before"))
    attempts["report"] = attempt(("forgetting.report.build_report", 1, "after"))
    attempts["last"] = attempt()
    return attempts


@pytest.mark.parametrize(
    ("stage", "done", "work"),
    [
        ("prepare", set(), "prepare"),
        ("reference", {"prepare"}, "reference"),
        ("score", {"prepare", "reference"}, "score"),
        ("select", {"prepare", "reference", "score"}, "select_ignoring"),
        ("train", {"select:ignoring", "select:forgetting"}, "train_full"),
        ("evaluate", {"train:forgetting", "evaluate:base"}, "evaluate_full"),
        ("report", {"evaluate:forgetting"}, "report"),
    ],
)
def test_the_kill_hits_the_stage_in_the_middle(killed, stage, done, work):
    attempt = killed[stage]
    assert attempt.exit_code == -signal.SIGKILL
    assert done <= attempt.done
    assert work.replace("_", ":") not in attempt.done
    assert attempt.work == {work}


def test_a_killed_run_goes_on_and_ends(killed):
    assert killed["last"].exit_code == 0
    assert killed["last"].work == set()


def test_training_resumes_from_the_last_whole_checkpoint(killed):
    assert killed["reference"].checkpoints == {"checkpoint-2"}
    assert "Reference model: resuming from step 2" in killed["score"].log
    assert killed["train"].checkpoints == {"checkpoint-2", "checkpoint-3"}
    # Checkpoint 3 was torn after the kill.
    assert "Training full: resuming from step 2" in killed["interrupted"].log


def test_ctrl_c_says_how_to_go_on_and_training_resumes(killed):
    attempt = killed["interrupted"]
    assert attempt.exit_code == 130
    assert attempt.log.splitlines()[-1] == "Interrupted. Run the same command again to continue."
    assert "Traceback" not in attempt.log
    assert "train:full" in attempt.done
    assert attempt.work == {"train_ignoring"}
    # It came while the checkpoint of step 2 was written; the next step ended with another one.
    assert attempt.checkpoints == {"checkpoint-2", "checkpoint-3"}
    assert "Training ignoring: resuming from step 3" in killed["evaluate"].log


def test_scored_shards_are_kept(killed):
    first, second = killed["score"].shards, killed["score again"].shards
    assert len(first) == 4
    assert len(second) == 5
    assert first.items() <= second.items()


@pytest.fixture
def pair(finished_run, attempt, killed) -> tuple[Path, Path]:
    """The run that was never killed, and the one that was."""
    return finished_run[1], attempt.run


def test_data_scores_and_selections_are_the_same_bytes(pair):
    outputs = [
        {
            name: output.sha256
            for stage, entry in read_manifest(path).stages.items()
            if stage.split(":")[0] in ("prepare", "score", "select")
            for name, output in entry.outputs.items()
        }
        for path in pair
    ]
    # The corpus, three shards of scores, and two files for each of two selections.
    assert len(outputs[0]) == 6 + 3 + 4
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("model", ["reference", *(f"models/{name}" for name in VARIANTS)])
def test_weights_and_training_figures_are_the_same(pair, model):
    whole, resumed = (load_file(path / model / "adapter_model.safetensors") for path in pair)
    assert whole.keys() == resumed.keys()
    for name, weights in whole.items():
        assert (weights == resumed[name]).all(), name
    logs = [
        [json.loads(line) for line in (path / model / "training.jsonl").read_text().splitlines()]
        for path in pair
    ]
    assert [entry["step"] for entry in logs[1]] == list(range(1, len(logs[1]) + 1))
    assert logs[0] == logs[1]


@pytest.mark.parametrize("variant", ["base", *VARIANTS])
def test_evaluation_figures_are_the_same(pair, variant):
    whole, resumed = (
        json.loads((path / "evaluation" / variant / "heldout.json").read_text()) for path in pair
    )
    for name, metric in whole["metrics"].items():
        assert metric["value"] == pytest.approx(resumed["metrics"][name]["value"], rel=1e-6)
    assert whole.keys() == resumed.keys()


def test_the_reports_say_the_same(pair):
    whole, resumed = (json.loads((path / "report" / "results.json").read_text()) for path in pair)
    assert whole["sentence"] == resumed["sentence"]
    for one, other in zip(whole["results"], resumed["results"], strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = pytest.approx(other[key], rel=1e-5) if key in ("value", "stderr") else other[key]
            assert value == same, key


def test_both_directories_hold_the_same_files_and_nothing_unfinished(pair):
    whole, resumed = (
        {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()} for path in pair
    )
    assert whole == resumed
    assert not [name for name in resumed if ".partial" in name or name.startswith(".work")]
