"""Held-out figures against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from forgetting.evaluation import evaluate_heldout
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples


def heldout(model, number=10):
    """Half of the responses are what the model itself would say."""
    import pyarrow as pa

    random = np.random.default_rng(0)
    rows = []
    for index in range(number):
        prompt = random.integers(3, 259, 5).tolist()
        length = 3 + index % 3
        if index % 2:
            response = random.integers(3, 259, length).tolist()
        else:
            ids = torch.tensor([prompt])
            out = model.generate(
                ids, max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=2
            )
            response = out[0, 5:].tolist()
        rows.append(
            {
                "sample_id": index,
                "source": "own" if index % 2 == 0 else "random",
                "input_ids": prompt + response,
                "labels": [-100] * 5 + response,
                "noise": None,
                "noise_kind": None,
            }
        )
    return Samples(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)), rows


def test_heldout_figures_are_those_of_their_definitions(model):
    samples, rows = heldout(model)
    measured = evaluate_heldout(model, samples, tokens_per_batch=30)
    result = measured.result
    losses, counts, every, greedy = [], [], [], []
    with torch.no_grad():
        double = AutoModelForCausalLM.from_pretrained(model.name_or_path).double()
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            log_probs = double(ids).logits[0, :-1].log_softmax(-1)
            taken = log_probs.gather(1, ids[0, 1:, None])[4:, 0]
            losses.append(-taken.sum().item())
            every += taken.tolist()
            greedy.append((log_probs.argmax(-1) == ids[0, 1:])[4:].numpy())
            counts.append(len(taken))
    assert measured.log_probs == pytest.approx(np.array(every), abs=1e-5)
    loss = sum(losses) / sum(counts)
    metrics = result.metrics
    assert result.num_items == 10
    assert metrics["loss"].value == pytest.approx(loss, abs=1e-5)
    assert metrics["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-4)
    residuals = [total - loss * count for total, count in zip(losses, counts, strict=True)]
    spread = math.sqrt(10 / 9 * sum(r * r for r in residuals)) / sum(counts)
    assert metrics["loss"].stderr == pytest.approx(spread, rel=1e-4)
    assert metrics["exact_match"].value == 0.5
    assert metrics["exact_match"].stderr == pytest.approx(math.sqrt(0.25 / 9))
    assert measured.is_greedy.tolist() == np.concatenate(greedy).tolist()
    hits = [own.sum() for own in greedy]
    accuracy = metrics["token_accuracy"]
    assert accuracy.value == pytest.approx(sum(hits) / sum(counts))
    gaps = [hit - accuracy.value * count for hit, count in zip(hits, counts, strict=True)]
    spread = math.sqrt(10 / 9 * sum(gap * gap for gap in gaps)) / sum(counts)
    assert accuracy.stderr == pytest.approx(spread)
    assert result.groups["own"].metrics["exact_match"].value == 1.0
    assert result.groups["random"].metrics["exact_match"].value == 0.0
    assert result.groups["own"].num_items == 5
