"""Two processes take the steps that one takes, also where one of them lacks a set of tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_rows.py")
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


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_model):
    """Trains in a process of its own, or in several; returns its weights and its log."""
    folder = tmp_path_factory.mktemp("distributed")
    files = {}
    for name, rows in (("signs", samples()), ("corrected", corrected_samples())):
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(rows))

    def run(processes, data="signs", **changes):
        file = files[data]
        output = folder / f"{processes}-{len(list(folder.iterdir()))}"
        output.mkdir()
        config = json.dumps({**COMMON, **changes})
        python = [sys.executable]
        if processes > 1:
            launch = ["-m", "accelerate.commands.launch", "--multi_gpu"]
            # Processes of torch.distributed; `use_cpu` in COMMON makes gloo their backend. With
            # --cpu, accelerate would start them by MPI.
            # A free port, so that two test runs on one machine do not meet.
            python += [*launch, f"--num_processes={processes}", "--main_process_port=0"]
            python += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        command = [*python, str(SCRIPT), str(tiny_model), str(file), str(output), config]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=15 * 60, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (output / "processes.txt").read_text() == str(processes)
        log = json.loads((output / "log.json").read_text())
        return load_file(output / "weights.safetensors"), log

    return run


OPTIONS = [
    {},
    {"term": "npo"},
    {"normalization": "token"},
    {"term": "inverted_hinge", "loss": "truncation", "loss_parameters": {"keep": 0.5}},
    {"data": "corrected"},
    {"data": "corrected", "loss": "rho1", "loss_parameters": {"keep": 0.6}},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_two_processes_end_with_the_weights_of_one(train, options):
    whole, log = train(1, per_device_train_batch_size=8, **options)
    parts, log_of_parts = train(
        2, per_device_train_batch_size=2, gradient_accumulation_steps=2, **options
    )
    assert whole.keys() == parts.keys()
    for name in whole:
        assert (whole[name] - parts[name]).abs().max().item() <= 1e-5, name
    assert max(entry.get("grad_norm", 0) for entry in log) > 0.1
    of_set = ("negative_loss", "negative_prob")
    if "data" in options:
        of_set = ("correction_loss", "share_corrected")
    for figure in ("loss", "positive_loss", "entropy", *of_set):
        first, second = (
            [entry[figure] for entry in entries if figure in entry]
            for entries in (log, log_of_parts)
        )
        assert len(first) == 5
        assert first == pytest.approx(second, abs=1e-4), figure
