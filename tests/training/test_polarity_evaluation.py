"""The evaluation loss counts positive tokens: the best model is not the one that keeps bad ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.training.conftest import rows

pytestmark = pytest.mark.slow


def with_polarity(samples, choose):
    return [{**row, "polarity": [choose(i) for i in row["input_ids"]]} for row in samples]


@torch.no_grad()
def expected(trainer, samples, *, weighted=False):
    """Mean cross-entropies of positive and of negative tokens, sample by sample in float64."""
    model = trainer.model.eval()
    found = {1: [], -1: []}
    for row in samples:
        ids = torch.tensor([row["input_ids"]])
        log_probs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        for place, label in enumerate(row["labels"][1:]):
            sign = row["polarity"][place + 1]
            if label != -100 and sign:
                weight = row["token_weights"][place + 1] if weighted else 1.0
                found[sign].append((-log_probs[place, label].item(), weight))
    return {
        sign: np.average([v for v, _ in values], weights=[w for _, w in values]) if values else 0
        for sign, values in found.items()
    }


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("padding_free", [False, True])
def test_it_is_the_mean_over_positive_tokens_of_all_batches(train, batch_size, padding_free):
    samples = with_polarity(rows(8), lambda token: 1 if token % 3 else -1)
    trainer = train(
        rows(8),
        eval_dataset=Dataset.from_list(samples),
        max_steps=1,
        per_device_eval_batch_size=batch_size,
        padding_free=padding_free,
    )
    found, wanted = trainer.evaluate(), expected(trainer, samples)
    assert found["eval_loss"] == pytest.approx(wanted[1], abs=1e-5)
    assert found["eval_negative_loss"] == pytest.approx(wanted[-1], abs=1e-5)
    assert trainer.state.log_history[-1]["eval_loss"] == found["eval_loss"]
    assert "test_negative_loss" in trainer.evaluate(metric_key_prefix="test")


def test_the_sign_of_a_token_matters(train):
    samples = rows(6)
    flipped = [
        Dataset.from_list(with_polarity(samples, lambda token, s=s: s if token % 2 else -s))
        for s in (1, -1)
    ]
    trainer = train(rows(6), eval_dataset={"one": flipped[0], "two": flipped[1]}, max_steps=1)
    found = trainer.evaluate()
    assert found["eval_one_loss"] == pytest.approx(found["eval_two_negative_loss"], abs=1e-6)
    assert found["eval_one_negative_loss"] == pytest.approx(found["eval_two_loss"], abs=1e-6)
    assert found["eval_one_loss"] != pytest.approx(found["eval_two_loss"], abs=1e-4)


def test_weights_count_in_the_mean(train):
    random = np.random.default_rng(0)
    samples = [
        {**row, "token_weights": random.random(len(row["input_ids"])).tolist()}
        for row in with_polarity(rows(6), lambda token: 1)
    ]
    trainer = train(rows(6), eval_dataset=Dataset.from_list(samples), max_steps=1)
    found = trainer.evaluate()
    wanted = expected(trainer, samples, weighted=True)[1]
    assert found["eval_loss"] == pytest.approx(wanted, abs=1e-5)
    assert "eval_negative_loss" not in found


def test_without_negatives_it_is_the_parents_and_without_positives_no_number(train):
    samples = rows(6)
    sets = {
        "plain": [{k: v for k, v in row.items() if k != "polarity"} for row in samples],
        "positive": with_polarity(samples, lambda token: 1),
        "negative": with_polarity(samples, lambda token: -1),
    }
    sets = {name: Dataset.from_list(value) for name, value in sets.items()}
    found = train(rows(6), eval_dataset=sets, max_steps=1).evaluate()
    assert found["eval_plain_loss"] == found["eval_positive_loss"]
    assert math.isnan(found["eval_negative_loss"])
    assert found["eval_negative_negative_loss"] > 0
    assert "eval_positive_negative_loss" not in found
