"""A run that was killed while it planted, scored the copies and judged ends like any other."""

from __future__ import annotations

import os
import signal
import time

import pytest

from forgetting.rundir.manifest import read_manifest
from tests.conftest import NUM_TREES, few_trees, save_detector_recipe
from tests.forked import fork_server
from tests.integration.test_kill_and_resume import CHILD

pytestmark = pytest.mark.slow
# As `few_trees`.
FEW_TREES = f"""
from forgetting.method import classifiers
for trees in (classifiers.TREES, classifiers._FAST_TREES, classifiers.KIND_TREES):
    trees["max_iter"] = {NUM_TREES}
"""

STOPS = [
    # The first of the copies are encoded.
    ("forgetting.stages.copies.cut", 40, "before"),
    # One shard of the copies is scored, with both prompts.
    ("forgetting.stages.corpus_scores.write_scores", 2, "before"),
    ("forgetting.stages.corpus_scores.write_scores", 2, "before"),
    # Some of the posterior is written.
    ("forgetting.stages.corpus_detection._judged", 2, "before"),
    # The posterior is written, the summary is not.
    ("forgetting.stages.corpus_detection.detect", 1, "after"),
    # The step with the first checkpoint of the weighted model is done.
    ("forgetting.training.safe_trainer.seal", 2, "after"),
    None,
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model):
    """The directory of a run that was never killed, and of one that was killed at each stop."""
    from forgetting.pipeline import run as run_stages

    folder = tmp_path_factory.mktemp("killed-detector")
    recipe = save_detector_recipe(folder, tiny_model, variants={"weighted": {}})
    whole, killed = folder / "whole", folder / "killed"
    with few_trees():
        run_stages(recipe, whole)
    server = fork_server()
    for stop in STOPS:
        log, reached = folder / "log", folder / "reached"
        reached.unlink(missing_ok=True)
        names = {"recipe": recipe, "run": killed, "log": log, "reached": reached}
        # Nothing lets the process go on: it is killed where it waits.
        names["released"] = folder / "never"
        scope = {**{key: str(value) for key, value in names.items()}, "stop": stop}
        process = server.Process(target=exec, args=(FEW_TREES + CHILD, scope))
        process.start()
        try:
            if stop is not None:
                while process.is_alive() and not reached.exists():
                    time.sleep(0.02)
                assert reached.exists(), (stop, log.read_text())
                os.kill(process.pid, signal.SIGKILL)
            process.join(15 * 60)
        finally:
            process.kill()
            process.join()
    assert process.exitcode == 0, log.read_text()
    return whole, killed


def test_every_file_of_the_detector_is_the_same(pair):
    whole, killed = (
        {
            name: output.sha256
            for stage, entry in read_manifest(path).stages.items()
            if stage in ("prepare", "score", "probe", "detect")
            for name, output in entry.outputs.items()
        }
        for path in pair
    )
    assert len(whole) == 6 + (3 + 1) + (1 + 4) + 5
    assert whole == killed


def test_the_weights_are_the_same(pair):
    from safetensors.numpy import load_file

    first, second = (load_file(path / "models/weighted/adapter_model.safetensors") for path in pair)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert abs(values - second[name]).max() <= 1e-6, name


def test_nothing_unfinished_is_left(pair):
    whole, killed = (
        {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()} for path in pair
    )
    assert whole == killed
    assert not [name for name in killed if ".partial" in name or name.startswith(".work")]
