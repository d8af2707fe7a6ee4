"""How long the steps of a run will take, by a few batches that are measured on this machine.

Input: a recipe whose corpus is prepared. Output: seconds by step. Scoring, training and generation
are measured once each, and multiplied by the tokens of each step. Benchmark tasks and steps that
run no model are not counted.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forgetting.config import Recipe, TrainingSettings
from forgetting.console import logger
from forgetting.data.planting import default_num_copies
from forgetting.errors import InputError
from forgetting.method.columns import split_column
from forgetting.models import loading
from forgetting.models.generation import generate_greedily
from forgetting.models.gguf import with_folders
from forgetting.pipeline import is_prepared, plan_with_state
from forgetting.rundir import layout
from forgetting.rundir.samples import SampleFile, Samples
from forgetting.rundir.stats import DataSummary
from forgetting.scoring import score_samples
from forgetting.stages import Step
from forgetting.training.timing import num_timed_samples, training_seconds_per_token

NUM_SCORED = 32
"""Samples that are scored to measure the pace."""
NUM_GENERATED = 16
"""Tokens of each answer that is generated to measure the pace."""


@dataclass(frozen=True)
class Paces:
    """What was measured, in seconds."""

    scoring: float
    """Per token of one pass."""
    training: float
    """Per token of `training`."""
    reference: float
    """Per token of `reference`."""
    generation: float
    """Per batch of answers and new token."""


def estimate_seconds(recipe: Recipe, path: Path) -> dict[str, float]:
    """Seconds of each step that is to do and runs the model, by its key.

    Raises:
        InputError: the corpus is not prepared, or the recipe cannot be run as it is.
    """
    recipe = with_folders(recipe)
    if not is_prepared(recipe, path):
        raise InputError(
            "--time needs the corpus, whose lengths it measures. Run `forgetting prepare` with the "
            "same recipe first"
        )
    steps, done = plan_with_state(recipe, path)
    paces = measure_paces(recipe, path)
    summary = DataSummary.load(layout.data_dir(path))
    estimates = {
        step.key: _seconds(recipe, step, summary, paces) for step in steps if step.key not in done
    }
    return {key: seconds for key, seconds in estimates.items() if seconds is not None}


def measure_paces(recipe: Recipe, path: Path) -> Paces:
    """Load the base model, score, generate and train a little. Writes nothing into the run."""
    logger.info("Measuring a few batches")
    file = SampleFile(layout.train_file(path))
    samples = file.read(0, min(NUM_SCORED, len(file)))
    scoring, generation = _forward_paces(recipe, samples)
    training = _training_pace(recipe, recipe.training, file)
    reference = training
    # What costs no other time is not measured again.
    if recipe.needs_reference and _cost(recipe.reference) != _cost(recipe.training):
        reference = _training_pace(recipe, recipe.reference, file)
    return Paces(scoring, training, reference, generation)


def _forward_paces(recipe: Recipe, samples: Samples) -> tuple[float, float]:
    model = loading.load_base_model(recipe.model, loading.pick_dtype(recipe.model))
    size = recipe.scoring.tokens_per_batch
    places = np.arange(len(samples))
    # The first pass also sets up the libraries.
    score_samples(model, samples, places[:1], tokens_per_batch=size)
    begin = time.perf_counter()
    score_samples(model, samples, places, tokens_per_batch=size)
    scoring = (time.perf_counter() - begin) / int(samples.lengths.sum())
    prompts = [
        samples.input_ids[first : first + 1 + length // 2].tolist()
        for first, length in zip(samples.token_starts[:-1], samples.lengths, strict=True)
    ][: recipe.evaluation.batch_size]
    begin = time.perf_counter()
    answers = generate_greedily(
        model,
        prompts,
        end_token_ids=(),
        max_new_tokens=NUM_GENERATED,
        batch_size=recipe.evaluation.batch_size,
    )
    generation = (time.perf_counter() - begin) / max(map(len, answers), default=1)
    del model
    gc.collect()
    return scoring, generation


def _training_pace(recipe: Recipe, training: TrainingSettings, file: SampleFile) -> float:
    number = min(num_timed_samples(training), len(file))
    return training_seconds_per_token(recipe, training, file.read(0, number))


def _cost(training: TrainingSettings) -> dict[str, object]:
    """The settings that the time of a token depends on."""
    names = {"batch_size", "micro_batch_size", "lora", "gradient_checkpointing"}
    return training.model_dump(include=names)


def _seconds(recipe: Recipe, step: Step, summary: DataSummary, paces: Paces) -> float | None:
    """Seconds of a step; None if its stage runs no model."""
    splits, stage = summary.splits, step.stage.name
    train = splits["train"]
    if stage == "reference":
        folds = recipe.reference.folds
        tokens = train.tokens * (folds - 1) / folds if folds else splits["reference"].tokens
        return recipe.reference.epochs * tokens * paces.reference
    if stage in ("evolve", "train"):
        rounds = recipe.variants[str(step.part)].rounds or 1
        trained = recipe.training.epochs * train.tokens / rounds * paces.training
        # Rounds score every part, and leave the training on the last one to `train`.
        is_last = stage == "train"
        return trained if is_last else (rounds - 1) * trained + train.tokens * paces.scoring
    if stage == "score":
        passes = {split_column(column)[0] for column in recipe.score_columns}
        heldout = len(recipe.detector_passes) * splits["heldout"].tokens * recipe.scores_heldout
        return (len(passes) * train.tokens + heldout) * paces.scoring
    if stage == "probe":
        copies = recipe.detector.copies or default_num_copies(train.samples)
        tokens = copies * train.tokens / max(train.samples, 1)
        return len(recipe.detector_passes) * tokens * paces.scoring
    if stage == "alternatives":
        return train.tokens * paces.scoring
    if stage == "evaluate":
        return _evaluation_seconds(recipe, splits["heldout"].tokens, paces)
    return None


def _evaluation_seconds(recipe: Recipe, num_tokens: int, paces: Paces) -> float:
    """At most: answers may end before they reach their largest number of tokens."""
    own = recipe.evaluation
    if not (own.heldout and recipe.data.num_heldout):
        return 0.0
    batches = math.ceil(min(own.num_answers, recipe.data.num_heldout) / own.batch_size)
    new_tokens = min(own.answer_tokens, recipe.data.max_length)
    return num_tokens * paces.scoring + batches * new_tokens * paces.generation
