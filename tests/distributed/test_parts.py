"""A model in parts over two processes (FSDP2) takes the steps of a whole one, and resumes."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from forgetting.launch import config_path
from tests.conftest import save_tiny_model, save_tiny_recipe
from tests.distributed import fine_tune_in_parts, train_in_parts
from tests.distributed.launched import launch

pytestmark = pytest.mark.slow
FSDP2 = [f"--config_file={config_path('fsdp2')}"]
CONFIG = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "max_steps": 5,
    "max_length": None,
    "gradient_checkpointing": True,
    "bf16": False,
    "save_steps": 2,
    "logging_steps": 1,
    "disable_tqdm": True,
    "report_to": "none",
    "dataloader_pin_memory": False,
    "max_grad_norm": 1.0,
    # Adam divides a tiny gradient by its own size, rounding and all, unless this is larger.
    "adam_epsilon": 1e-5,
    "schedule": "constant",
    "t_max": 0.3,
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, tiny_model):
    """Where one process, and two of one model, have put their weights."""
    folder = tmp_path_factory.mktemp("parts")
    # The embeddings are the head too: one tensor that two parts of the model use.
    model = folder / "model"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(model)
    samples = folder / "samples.json"
    rows = [
        {
            "input_ids": list(range(3 + n % 5, 20 + 3 * n % 7)),
            "labels": list(range(3 + n % 5, 20 + 3 * n % 7)),
            "polarity": [1 if (n + t) % 3 else -1 for t in range(3 + n % 5, 20 + 3 * n % 7)],
        }
        for n in range(40)
    ]
    samples.write_text(json.dumps(rows))

    def arguments(processes):
        config = {**CONFIG, "gradient_accumulation_steps": 4 // processes}
        config["use_cpu"] = processes == 1
        return [str(model), str(samples), str(folder / str(processes)), json.dumps(config)]

    train_in_parts.main(*arguments(1))
    launch(train_in_parts.main, *arguments(2), options=FSDP2)
    return [folder / "1", folder / "2"]


KINDS = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_hold_parts_and_end_with_the_weights_of_one(outputs, kind):
    one, two = (output / kind for output in outputs)
    assert ((one / "sharded.txt").read_text(), (two / "sharded.txt").read_text()) == (
        "False",
        "True",
    )
    expected = load_file(one / "whole" / KINDS[kind])
    for run in (two / "whole", two / "resumed"):
        weights = load_file(run / KINDS[kind])
        assert weights.keys() == expected.keys()
        for name, values in expected.items():
            assert abs(values - weights[name]).max() <= 1e-5, (run, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_in_parts_holds_no_pickle(outputs, kind):
    checkpoint = outputs[1] / kind / "checkpoint-2"
    names = {file.name for file in checkpoint.rglob("*")}
    assert {"weights.safetensors", "optimizer.safetensors", "sealed.json"} <= names
    assert {Path(name).suffix for name in names} == {".safetensors", ".json"}


def test_what_processes_saved_together_is_loaded_and_compared(tmp_path):
    model = save_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    recipe = save_tiny_recipe(tmp_path, model)
    ids = [list(range(3 + n % 5, 20 + 3 * n % 7)) for n in range(16)]
    rows = [{"input_ids": row, "labels": row, "polarity": [1] * len(row)} for row in ids]
    samples, output = tmp_path / "samples.json", tmp_path / "out"
    samples.write_text(json.dumps(rows))
    launch(fine_tune_in_parts.main, str(recipe), str(samples), str(output), options=FSDP2)
    found = json.loads((output / "found.json").read_text())
    assert found["sharded"] == [True]
    for kind, what in (("full", "model"), ("merged", "adapter")):
        assert "model.safetensors" in found[kind]
        message = f"the {what} in .* does not work like the trained model: its logits differ"
        assert re.match(message, found[f"{kind}, damaged"])
