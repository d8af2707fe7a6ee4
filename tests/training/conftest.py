"""Samples with polarity, and a tiny model that is trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig

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
    """Trains the tiny model and returns the trainer."""

    def run(samples, cls=ForgettingTrainer, resume=None, callbacks=None, peft_config=None, **more):
        config_class = ForgettingConfig if cls is ForgettingTrainer else SFTConfig
        trainer = cls(
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=config_class(**config(tmp_path / "out", **more)),
            train_dataset=Dataset.from_list(samples),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
            callbacks=callbacks,
            peft_config=peft_config,
        )
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
