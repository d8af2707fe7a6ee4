"""A signal to one of two processes stops both after the same step, and nothing is lost."""

import json

import pytest
from safetensors.torch import load_file

from forgetting.training.checkpoints import latest_checkpoint
from tests.distributed import stop_and_resume
from tests.distributed.launched import launch
from tests.distributed.test_processes import COMMON, samples

pytestmark = pytest.mark.slow
# Stopped after two steps, between two logs.
OPTIONS = {**COMMON, "optim": "adamw_torch", "max_steps": 4, "logging_steps": 4}
OPTIONS |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "samples.json").write_text(json.dumps(samples()))
    arguments = map(str, (tiny_model, folder / "samples.json", folder))
    launch(stop_and_resume.main, *arguments, json.dumps(OPTIONS))
    return folder


def found(folder, name):
    return [json.loads((folder / f"{name}-{index}.json").read_text()) for index in (0, 1)]


def test_both_stop_after_the_same_step_with_a_checkpoint(folder):
    for each in found(folder, "stopped"):
        assert (each["step"], each["stopped_by"]) == (2, 15)
    for each in found(folder, "straight") + found(folder, "resumed"):
        assert (each["step"], each["stopped_by"]) == (4, None)
    # The resumed run has written no other.
    assert latest_checkpoint(folder / "stopped").name == "checkpoint-2"


def test_the_resumed_training_ends_with_the_same_weights_and_figures(folder):
    straight, resumed, stopped = (
        load_file(folder / f"{name}.safetensors") for name in ("straight", "resumed", "stopped")
    )
    for name, weights in straight.items():
        assert weights.equal(resumed[name]), name
    assert not all(weights.equal(stopped[name]) for name, weights in straight.items())
    (whole, _), (parts, _) = found(folder, "straight"), found(folder, "resumed")
    assert len(whole["log"]) == len(parts["log"]) == 1
    assert parts["log"][0] == pytest.approx(whole["log"][0], rel=1e-6)
