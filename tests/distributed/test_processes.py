"""Two processes take the steps that one takes, also where one of them lacks a set of tokens."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.distributed import train_rows
from tests.distributed.launched import launch

COMMON = {
    # Adam would hide a gradient that is wrong by a factor.
    "optim": "sgd",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "max_steps": 5,
    "max_length": None,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "max_grad_norm": 0.0,
    "schedule": "constant",
    "t_max": 0.3,
    "divergence_ratio": None,
    # In the order of the list, so that it is known which process has which samples.
    "train_sampling_strategy": "sequential",
}


def samples():
    """40 samples in the order of the file. Of each step's 8, four have negative tokens only, and
    four positive ones only, so that micro-batches, and at some steps a whole process, lack one of
    the sets."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(40):
        length = int(random.integers(6, 20))
        ids = random.integers(3, 259, length).tolist()
        is_negative = index % 8 < 4 if index < 16 else index % 4 < 2
        sign = -1 if is_negative else 1
        rows.append(
            {
                "input_ids": ids,
                "labels": [-100] * 3 + ids[3:],
                "polarity": [0] * 3 + [sign] * (length - 3),
                "base_log_probs": (-5 * random.random(length)).tolist(),
            }
        )
    return rows


def corrected_samples():
    """The same, all positive, with weights, scores of a reference, and alternatives of some
    tokens: at some steps only one of the processes has any."""
    random = np.random.default_rng(1)
    rows = samples()
    for index, row in enumerate(rows):
        length = len(row["labels"])
        row["polarity"] = [0] * 3 + [1] * (length - 3)
        c = random.random(length) * (random.random(length) < 0.4) * (index % 8 < 3)
        c[:3] = 0
        row["token_weights"] = (1 - c).tolist()
        row["alternative_weights"] = c.tolist()
        row["reference_log_probs"] = (-6 * random.random(length)).tolist()
        row["alternative_ids"] = [
            [(token + 1) % 259, (token + 7) % 259] if weight else []
            for token, weight in zip(row["input_ids"], c, strict=True)
        ]
        row["alternative_log_probs"] = [np.log([0.5, 0.2, 0.3]).tolist() if x else [] for x in c]
    return rows


OPTIONS = {
    "default": {},
    "npo": {"term": "npo"},
    "by token": {"normalization": "token"},
    "truncation": {
        "term": "inverted_hinge",
        "loss": "truncation",
        "loss_parameters": {"keep": 0.5},
    },
}
CORRECTED = {"corrected": {}, "rho1": {"loss": "rho1", "loss_parameters": {"keep": 0.6}}}
WHOLE = {"per_device_train_batch_size": 8}
PARTS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    """Folders of what one process and two processes have trained, with all options."""
    folder = tmp_path_factory.mktemp("distributed")
    outputs = folder / "one", folder / "two"
    for rows, options in ((samples(), OPTIONS), (corrected_samples(), CORRECTED)):
        file = folder / "samples.json"
        file.write_text(json.dumps(rows))
        arguments = [
            [
                *(str(tiny_model), str(file), str(output)),
                json.dumps({name: {**COMMON, **batches, **own} for name, own in options.items()}),
            ]
            for output, batches in zip(outputs, (WHOLE, PARTS), strict=True)
        ]
        train_rows.main(*arguments[0])
        # `use_cpu` in COMMON makes gloo their backend.
        launch(train_rows.main, *arguments[1])
    return outputs


def read(folder, processes):
    """Weights and log."""
    assert (folder / "processes.txt").read_text() == str(processes)
    return load_file(folder / "weights.safetensors"), json.loads((folder / "log.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OPTIONS, *CORRECTED])
def test_two_processes_end_with_the_weights_of_one(trained, name):
    whole, log = read(trained[0] / name, 1)
    parts, log_of_parts = read(trained[1] / name, 2)
    of_set = ("negative_loss", "negative_prob")
    if name in CORRECTED:
        of_set = ("correction_loss", "share_corrected")
    assert whole.keys() == parts.keys()
    for name in whole:
        assert (whole[name] - parts[name]).abs().max().item() <= 1e-5, name
    assert max(entry.get("grad_norm", 0) for entry in log) > 0.1
    for figure in ("loss", "positive_loss", "entropy", *of_set):
        first, second = (
            [entry[figure] for entry in entries if figure in entry]
            for entries in (log, log_of_parts)
        )
        assert len(first) == 5
        assert first == pytest.approx(second, abs=1e-4), figure
