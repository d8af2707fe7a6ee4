"""How long a training step takes, by a few steps with the settings of a recipe.

Input: a recipe, its `training` or `reference`, and samples. Output: seconds per token. The trained
weights are dropped, and nothing is left on the disk.
"""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import TrainerCallback

from forgetting.config import Recipe, TrainingSettings, VariantSettings
from forgetting.models import loading
from forgetting.models.prompting import prompting_tokenizer
from forgetting.rundir.samples import Samples
from forgetting.training.dataset import trainer_columns
from forgetting.training.fit import make_trainer, trainer_config

NUM_STEPS = 3
"""Measured steps. The first of several is left out, since it also sets up the optimizer."""


class _StepTimes(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The loss is read in every step, which waits for the accelerator.
        self.seconds.append(time.perf_counter() - self._begin)


def training_seconds_per_token(
    recipe: Recipe, training: TrainingSettings, samples: Samples
) -> float:
    """Seconds that a training of all tokens takes for each token, prompts included.

    Args:
        samples: those of a few optimizer steps, at least one; see `num_timed_samples`.
    """
    columns = trainer_columns(samples, np.ones(samples.response_ids.size, np.int8))
    dataset = Dataset(pa.table(columns))
    with tempfile.TemporaryDirectory(prefix="forgetting-") as folder:
        variant = VariantSettings(objective="full")
        config = trainer_config(recipe, training, variant, Path(folder), "Timing", 1, len(dataset))
        config.num_train_epochs, config.save_strategy = 1, "no"
        config.report_to, config.logging_steps = [], 1
        dtype = loading.pick_dtype(recipe.model) if training.lora else torch.float32
        model = loading.load_base_model(recipe.model, dtype)
        times = _StepTimes()
        trainer = make_trainer(
            recipe, training, config, model, prompting_tokenizer(recipe), dataset, [times]
        )
        trainer.train()
        del trainer, model
        gc.collect()
    counted = times.seconds[1:] or times.seconds
    num_tokens = int(samples.lengths.sum()) * len(counted) / len(times.seconds)
    return sum(counted) / num_tokens


def num_timed_samples(training: TrainingSettings) -> int:
    """Samples of the measured steps."""
    return NUM_STEPS * training.batch_size
