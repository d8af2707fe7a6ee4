"""A run of two processes, killed and interrupted on the way, ends like one of a single process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from forgetting import pipeline
from forgetting.cli.interrupt import MESSAGE
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.samples import list_column, read_table

# Each launch of two processes that one of them leaves takes half a minute to end.
pytestmark = [pytest.mark.slow, pytest.mark.long]

MINUTES = 15 * 60

VARIANTS = ("full", "ignoring", "forgetting", "weighted", "self-evolving")
MODELS = ("reference", *(f"models/{variant}" for variant in VARIANTS))
OVERRIDES = [
    # Neither is a multiple of what two processes take at once, nor of a step's samples: an epoch
    # ends with a micro-batch that is half empty in one process, and empty in the other.
    "data.num_reference=15",
    "data.num_train=21",
    "training.batch_size=8",
    "training.epochs=3",
    "variants.weighted.objective=weighted",
    "variants.self-evolving={objective: ignoring, rounds: 2}",
    "detector.copies=30",
    # Each process draws its own dropout.
    "training.lora.dropout=0",
]


class Command:
    """`forgetting run` in two processes."""

    def __init__(self, recipe, run, *more):
        options = [part for override in [*OVERRIDES, *more] for part in ("--set", override)]
        command = [sys.executable, "-m", "forgetting", "run", recipe, "--run-dir", run]
        self.process = subprocess.Popen(
            [*map(str, command), *options, "--processes", "2", "--quiet"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.run = run

    def wait_for(self, pattern):
        """Until a file is there; gives the process and the two that it started."""
        while self.process.poll() is None and not any(self.run.glob(pattern)):
            time.sleep(0.005)
        assert self.process.poll() is None, self.process.communicate()
        parent = psutil.Process(self.process.pid)
        return [parent, *sorted(parent.children(), key=lambda child: child.pid)]

    def end(self):
        """Exit code, and what was said on standard error."""
        _, errors = self.process.communicate(timeout=MINUTES)
        return self.process.returncode, errors.splitlines()


def checkpoint(stage):
    return f".work/{stage}-*/checkpoints/checkpoint-1/sealed.json"


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    """The same recipe by one process, and by two that were ended in three ways."""
    recipe, _ = finished_run
    folder = tmp_path_factory.mktemp("launched")
    one, two = folder / "one", folder / "two"
    pipeline.run(recipe, one, overrides=OVERRIDES)
    ends = {}

    ends["diverged"] = Command(recipe, two, "reference.learning_rate=1e9").end()

    command = Command(recipe, two)
    parent, *workers = command.wait_for(checkpoint("train_full"))
    parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=MINUTES)
    ends["launcher was killed"] = alive, command.end()

    # Ctrl-C that reaches every process, the launcher last: nobody has told it, and it finds one of
    # its workers gone. In a terminal it is the only one to hear of it: see test_interrupt.py.
    command = Command(recipe, two)
    parent, *workers = command.wait_for(checkpoint("train_forgetting"))
    workers[1].send_signal(signal.SIGINT)
    psutil.wait_procs(workers, timeout=MINUTES)
    for process in (workers[0], parent):
        # One that is gone has heard of it.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(workers, timeout=MINUTES)
    ends["interrupted"] = alive, command.end()

    ends["last"] = Command(recipe, two).end()
    return one, two, ends


def test_a_failure_of_all_is_one_message_and_1(runs):
    code, errors = runs[2]["diverged"]
    assert code == 1
    (line,) = errors
    assert line.startswith("error: training diverged at step")


def test_no_process_outlives_the_launcher(runs):
    alive, (code, _) = runs[2]["launcher was killed"]
    assert alive == []
    assert code == -signal.SIGKILL


def test_ctrl_c_is_one_message_and_130(runs):
    assert runs[2]["interrupted"] == ([], (130, [MESSAGE]))


def test_the_run_goes_on_to_its_end(runs):
    one, two, ends = runs
    assert ends["last"] == (0, [])
    assert read_manifest(one).stages.keys() == read_manifest(two).stages.keys()
    files = [
        {f.relative_to(run).as_posix() for f in run.rglob("*") if f.is_file()} for run in (one, two)
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_train_the_weights_of_one(runs, model):
    first, second = (load_file(run / model / "adapter_model.safetensors") for run in runs[:2])
    assert first.keys() == second.keys()
    for name, weights in first.items():
        assert abs(weights - second[name]).max() <= 1e-5, name
    logs = [
        [json.loads(line) for line in (run / model / "training.jsonl").read_text().splitlines()]
        for run in runs[:2]
    ]
    assert len(logs[0]) == len(logs[1])
    for entry, other in zip(*logs, strict=True):
        # Counted in micro-batches, of which two processes have an empty one.
        del entry["epoch"], other["epoch"]
        assert entry == pytest.approx(other, abs=1e-4)


def test_two_processes_write_the_scores_of_one(runs):
    names = [sorted(f.name for f in (run / "scores").glob("*.parquet")) for run in runs[:2]]
    assert len(names[0]) == 3
    assert names[0] == names[1]
    for name in names[0]:
        first, second = (read_table(run / "scores" / name) for run in runs[:2])
        assert first["sample_id"].equals(second["sample_id"])
        # The base model is the same to the bit.
        assert first["base_log_probs"].equals(second["base_log_probs"])
        own, other = (list_column(t, "reference_log_probs")[0] for t in (first, second))
        assert np.abs(own - other).max() <= 1e-5


def test_two_processes_plant_and_score_the_copies_of_one(runs):
    names = [sorted(f.name for f in (run / "probe").iterdir()) for run in runs[:2]]
    assert names[0] == names[1]
    assert len(names[0]) == 1 + 4
    first, second = (read_table(run / "probe" / "samples.parquet") for run in runs[:2])
    assert first.equals(second)
    for name in names[0]:
        if name == "samples.parquet":
            continue
        first, second = (read_table(run / "probe" / name) for run in runs[:2])
        assert first.num_columns == 1 + 4 * 6
        assert first["base_empty_log_probs"].equals(second["base_empty_log_probs"])
        own, other = (list_column(t, "reference_empty_log_probs")[0] for t in (first, second))
        assert np.abs(own - other).max() <= 1e-5


@pytest.mark.parametrize("variant", ["ignoring", "forgetting", "self-evolving"])
def test_two_processes_choose_the_tokens_of_one(runs, variant):
    first, second = (
        read_table(run / "selection" / variant / "polarity.parquet") for run in runs[:2]
    )
    assert first.equals(second)


@pytest.mark.parametrize("variant", ["base", *VARIANTS])
def test_two_processes_measure_what_one_does(runs, variant):
    first, second = (
        json.loads((run / "evaluation" / variant / "heldout.json").read_text())["metrics"]
        for run in runs[:2]
    )
    for name, figures in first.items():
        assert second[name] == pytest.approx(figures, rel=1e-4, abs=1e-6), name
