"""`objective: corrected` from the detector's posterior to the weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.samples import Samples, read_table

VARIANTS = "variants={full: {}, corrected: {}}"
STAGES = ("alternatives", "train")
# One step over all samples, so that the order of samples does not matter.
ONE_STEP = [
    "training.batch_size=60",
    "training.micro_batch_size=60",
    "training.warmup_ratio=0",
    "training.lora.dropout=0",
]


def size(run):
    return Samples.read(layout.train_file(run)).response_ids.size


def some_posterior(run):
    random = np.random.default_rng(1)
    posterior = random.random(size(run))
    posterior[random.random(posterior.size) < 0.6] *= 0.08
    return posterior.astype(np.float32)


def weights(run, variant):
    return load_file(layout.model_dir(run, variant) / "adapter_model.safetensors")


def test_if_nothing_is_found_corrected_is_full_bit_for_bit(judged, detected_run):
    nothing = np.zeros(size(detected_run[1]), np.float32)
    # Trained on its own, as there is no model to copy; full follows.
    run = judged(nothing, False, "variants={corrected: {}}", stages=STAGES)
    run_stages(detected_run[0], run, stages=("train",), overrides=[VARIANTS])
    full, corrected = weights(run, "full"), weights(run, "corrected")
    assert full.keys() == corrected.keys()
    for name, values in full.items():
        assert np.array_equal(values, corrected[name]), name
    logs = [
        (layout.model_dir(run, name) / "training.jsonl").read_text()
        for name in ("full", "corrected")
    ]
    assert logs[0] == logs[1]
    files = layout.alternatives_files(layout.alternatives_dir(run))
    assert [read_table(file).num_rows for file in files] == [0, 0, 0]


def test_if_nothing_is_found_no_model_is_asked(judged, detected_run, monkeypatch):
    monkeypatch.setattr(loading, "load_base_model", None)
    nothing = np.zeros(size(detected_run[1]), np.float32)
    run = judged(nothing, False, VARIANTS, stages=("alternatives",))
    assert read_manifest(run).stages["alternatives"].details["corrected_tokens"] == 0


def test_the_loss_of_a_step_is_the_formula_in_float64(judged, detected_run):
    recipe, source = detected_run
    posterior = some_posterior(source)
    run = judged(posterior, True, VARIANTS, "detector.alternatives=7", *ONE_STEP, stages=STAGES)
    (row,) = (layout.model_dir(run, "corrected") / "training.jsonl").read_text().splitlines()
    samples = Samples.read(layout.train_file(run))
    model = AutoModelForCausalLM.from_pretrained(load_recipe(recipe).model.name_or_path).double()
    total, corrections, token = 0.0, [], 0
    for ids, labels in zip(
        samples.table["input_ids"].to_pylist(), samples.table["labels"].to_pylist(), strict=True
    ):
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
        for place, label in enumerate(labels):
            if label == -100 or place == 0:
                continue
            c = posterior[token].astype(float) if posterior[token] >= 0.05 else 0.0
            token += 1
            p = np.exp(log_probs[place - 1])
            total += (1 - c) * -np.log(p[label])
            if c:
                # The reference is the base, which training starts from.
                q = p.copy()
                q[label] = 0
                q /= q.sum()
                best = np.argsort(-q)[:7]
                rest = 1 - p[best].sum() - p[label]
                value = -(q[best] * np.log(p[best])).sum() - (1 - q[best].sum()) * np.log(rest)
                corrections.append(value)
                total += c * value
    logged = json.loads(row)
    assert token == posterior.size
    assert 0.3 < len(corrections) / token < 0.6
    assert logged["share_corrected"] == pytest.approx(len(corrections) / token)
    # Alternatives are stored in half precision.
    assert logged["correction_loss"] == pytest.approx(np.mean(corrections), rel=1e-3)
    assert logged["loss"] == pytest.approx(total / token, rel=1e-3)


def test_alternatives_of_another_posterior_are_refused(judged, detected_run, monkeypatch):
    from forgetting.stages import train

    posterior = some_posterior(detected_run[1])
    run = judged(posterior, True, VARIANTS, stages=("alternatives",))
    settings = load_recipe(detected_run[0], [VARIANTS]).variants["corrected"]
    parts = list(train._parts(run, "corrected", settings, False))
    assert len(parts) == 3
    file = layout.alternatives_files(layout.alternatives_dir(run))[1]
    (run / "elsewhere").mkdir()
    file.rename(run / "elsewhere" / file.name)
    with pytest.raises(InputError, match=r"alternatives-00001-of-00003.parquet"):
        list(train._parts(run, "corrected", settings, False))
    other = layout.alternatives_files(layout.alternatives_dir(run))[0]
    file.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match="holds a token of sample"):
        list(train._parts(run, "corrected", settings, False))
