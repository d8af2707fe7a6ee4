"""Ctrl-C ends a run of several processes in one line, whenever it comes.

Where it reaches the workers first is in `test_launch.py`, whose run goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from forgetting.cli.interrupt import MESSAGE

pytestmark = pytest.mark.slow

MINUTES = 15 * 60
OVERRIDES = ["data.num_reference=16", "training.epochs=1000", "variants={full: {}}"]


@pytest.fixture
def run(finished_run, tmp_path):
    """Starts a training of two processes that takes longer than anybody waits."""
    recipe, _ = finished_run
    options = [part for override in OVERRIDES for part in ("--set", override)]
    command = [sys.executable, "-m", "forgetting", "run", recipe, "--run-dir", tmp_path / "run"]
    process = subprocess.Popen(
        [*map(str, command), *options, "--processes", "2", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # As a terminal starts it: a process group of its own.
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    yield process
    process.kill()
    process.communicate()


def workers_of(process):
    found = []
    for child in psutil.Process(process.pid).children():
        # The launcher has other children too, which end soon.
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if "worker" in child.cmdline() else []
    return found


def wait_for_workers(process):
    """Until both are started, and still import what they need."""
    while len(workers_of(process)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return workers_of(process)


def wait_for_training(process, folder):
    """Until both take optimizer steps, and wait for each other."""
    while not any(folder.glob("run/.work/train_full-*/checkpoints/checkpoint-1/sealed.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return workers_of(process)


def interrupt(process):
    # One that is gone has heard of it.
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)


def test_a_worker_whose_launcher_is_gone_before_it_looks_does_not_wait_for_the_others(
    finished_run, tmp_path
):
    recipe, _ = finished_run
    launcher = subprocess.Popen([sys.executable, "-c", ""])
    launcher.wait()
    command = [sys.executable, "-m", "forgetting", "worker", str(recipe)]
    command += ["--run-dir", str(tmp_path / "run"), "--launcher", str(launcher.pid)]
    # Nobody listens there: without the launcher it would wait for half an hour.
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run(
        command, env={**os.environ, **place, **ranks}, timeout=MINUTES, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def check_one_line(process, workers):
    output, errors = process.communicate(timeout=MINUTES)
    assert (process.returncode, output, errors.splitlines()) == (130, "", [MESSAGE])
    _, alive = psutil.wait_procs(workers, timeout=MINUTES)
    assert alive == []


def test_in_a_terminal_while_workers_start(run):
    workers = wait_for_workers(run)
    os.killpg(run.pid, signal.SIGINT)
    check_one_line(run, workers)


def test_in_a_terminal_while_workers_train(run, tmp_path):
    workers = wait_for_training(run, tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    check_one_line(run, workers)


def test_twice(run):
    workers = wait_for_workers(run)
    interrupt(run)
    # The launcher is ending its workers, or has ended them.
    psutil.wait_procs(workers[:1], timeout=MINUTES)
    interrupt(run)
    check_one_line(run, workers)
