"""Samples with polarity, and a tiny model that is trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from forgetting.training.config import ForgettingConfig
from forgetting.training.trainer import ForgettingTrainer


class StopAt(TrainerCallback):
    """Ends training after a step, as a kill after its checkpoint would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def rows(number: int, seed: int = 0, negatives: str = "some") -> list[dict[str, list[int]]]:
    """Samples of 6 to 20 tokens, the first 3 a prompt.

    With "some", only every fourth sample has negative tokens and one has no positive token, so
    that whole micro-batches lack one of them.
    """
    random = np.random.default_rng(seed)
    samples = []
    for index in range(number):
        length = int(random.integers(6, 20))
        ids = random.integers(3, 259, length).tolist()
        polarity = np.ones(length, dtype=int)
        if negatives == "some" and index % 4 == 0:
            polarity = random.choice([-1, 0, 1], length)
        if negatives == "some" and index % 8 == 0:
            polarity[:] = -1
        polarity[:3] = 0
        samples.append(
            {
                "input_ids": ids,
                "labels": [-100] * 3 + ids[3:],
                "polarity": polarity.tolist(),
            }
        )
    return samples


def tagged(lengths: list[int]) -> Dataset:
    """Samples whose values tell which token they belong to: weight = token id / 100."""
    rows = []
    for number, length in enumerate(lengths):
        ids = [100 * (number + 1) + position for position in range(length)]
        rows.append(
            {
                "input_ids": ids,
                "labels": [-100, *ids[1:]],
                "polarity": [0] + [1 if token % 3 else -1 for token in ids[1:]],
                "token_weights": [token / 100 for token in ids],
            }
        )
    return Dataset.from_list(rows)


def assert_together(ids, polarity, weights, labels):
    """That each labelled token has the polarity and the weight made for it."""
    labelled = np.asarray(labels) != -100
    ids, polarity, weights = (np.asarray(v)[labelled] for v in (ids, polarity, weights))
    assert np.array_equal(ids, np.asarray(labels)[labelled])
    assert np.array_equal(polarity, np.where(ids % 3, 1, -1))
    assert np.allclose(weights, ids / 100)


def padded(examples, side="right"):
    width = max(len(e["input_ids"]) for e in examples)

    def row(values, fill):
        padding = [fill] * (width - len(values))
        return padding + list(values) if side == "left" else list(values) + padding

    return {
        "input_ids": torch.tensor([row(e["input_ids"], 0) for e in examples]),
        "labels": torch.tensor([row(e["labels"], -100) for e in examples]),
        "attention_mask": torch.tensor([row([1] * len(e["input_ids"]), 0) for e in examples]),
    }


def config(folder: Path, **changes) -> dict:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "max_length": None,
        "gradient_checkpointing": False,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_grad_norm": 0.0,
        **changes,
    }


@pytest.fixture
def train(tiny_model, tmp_path):
    """Trains the tiny model and returns the trainer; `late` arguments are set after it is made."""

    def run(
        samples,
        resume=None,
        callbacks=None,
        peft_config=None,
        eval_dataset=None,
        late=None,
        **more,
    ):
        args = ForgettingConfig(**config(tmp_path / "out", **more))
        trainer = ForgettingTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=args,
            train_dataset=Dataset.from_list(samples),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
            callbacks=callbacks,
            peft_config=peft_config,
            eval_dataset=eval_dataset,
        )
        for name, value in (late or {}).items():
            setattr(args, name, value)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(first, second, tolerance=0.0):
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name] - second[name]).abs().max().item() <= tolerance, name


def assert_took_the_step(trainer, model, rate):
    """That the trainer's weights are those of `model`, one SGD step along its gradients."""
    expected = {
        name: (p - rate * p.grad).float()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    got = {name: value for name, value in weights(trainer).items() if name in expected}
    assert_same(expected, got, 2e-6)
