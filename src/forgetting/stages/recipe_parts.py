"""What several stages read of a recipe: the model, and how a model is trained.

Input: a step or a section of the recipe. Output: settings for fingerprints, facts for the
dry run, and errors for what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import InputError

if TYPE_CHECKING:
    from forgetting.config import Recipe, TrainingSettings
    from forgetting.stages.base import Facts, Step

NO_EFFECT_ON_WEIGHTS = {"save_steps", "report_to"}


def model_files(step: Step) -> dict[str, Any]:
    """Checksums of the base model's files, or its commit on the Hub."""
    from forgetting.models.loading import model_fingerprint

    return step.once("base model", lambda: model_fingerprint(step.recipe.model))


def model_settings(step: Step) -> dict[str, Any]:
    """The base model, and how it computes."""
    own = step.recipe.model.model_dump(include={"dtype", "attn_implementation", "quantization"})
    return {**model_files(step), **own}


def training_settings(step: Step, training: TrainingSettings) -> dict[str, Any]:
    """What the weights of a fine-tuned model depend on, apart from its data."""
    return {
        "training": training.model_dump(
            mode="json", exclude={*NO_EFFECT_ON_WEIGHTS, "sources", "folds"}
        ),
        "seed": step.recipe.seed,
        "model": model_settings(step),
    }


def training_facts(step: Step, training: TrainingSettings, size: SplitSize) -> Facts:
    """What a training costs; trainable parameters are counted without loading weights."""
    from forgetting.models.loading import count_trainable

    return {
        "samples": size.samples,
        "response tokens": size.response_tokens,
        "optimizer steps": training.num_steps(size.samples),
        "trainable parameters": step.once(
            f"trainable parameters, {training.lora}",
            lambda: count_trainable(step.recipe.model, training.lora),
        ),
    }


@dataclass(frozen=True)
class SplitSize:
    """Size of a split of the corpus; None: not known before it is prepared."""

    samples: int
    response_tokens: int | None = None


def split_sizes(step: Step, done: Mapping[str, Path]) -> dict[str, SplitSize]:
    """Samples and response tokens of each split: as prepared, else as the recipe asks for."""
    if "prepare" in done:
        from forgetting.rundir.stats import DataSummary

        splits = DataSummary.load(done["prepare"]).splits
        return {
            name: SplitSize(split.samples, split.response_tokens) for name, split in splits.items()
        }
    recipe = step.recipe
    sizes = {
        "reference": recipe.num_reference,
        "train": recipe.data.num_train,
        "heldout": recipe.data.num_heldout,
    }
    return {name: SplitSize(size) for name, size in sizes.items()}


def parts_of_train(num_samples: int, rounds: int) -> list[range]:
    """The samples of each part of D_train, which is in random order, in sizes that differ by one at
    most."""
    ends = [num_samples * index // rounds for index in range(rounds + 1)]
    return [range(begin, end) for begin, end in pairwise(ends)]


def steps_before_last(recipe: Recipe, num_samples: int, rounds: int) -> int:
    """Optimizer steps on all parts but the last."""
    parts = parts_of_train(num_samples, rounds)[:-1]
    return sum(recipe.training.num_steps(len(part)) for part in parts)


def last_part(recipe: Recipe, variant: str, size: SplitSize) -> SplitSize:
    """What a variant is trained on by `train`: D_train, or the last of its parts."""
    rounds = recipe.variants[variant].rounds
    if not rounds:
        return size
    # How many of the tokens are in the last part is known once it is trained.
    return SplitSize(len(parts_of_train(size.samples, rounds)[-1]))


def check_model(field: str, name_or_path: str) -> None:
    """Refuse a model that is neither a folder with weights nor an id on the Hub.

    Raises:
        InputError: the message names the field.
    """
    from forgetting.data.sources import HUB_ID

    folder = Path(name_or_path)
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            raise InputError(
                f"{field}: {folder} holds no safetensors weights. Save the model with "
                "`save_pretrained`, or set another folder"
            )
    elif not HUB_ID.fullmatch(name_or_path):
        raise InputError(f"{field}: there is no folder {name_or_path}")


def check_base_model(recipe: Recipe) -> None:
    """Refuse a base model that is not there, or that cannot be trained and saved.

    Raises:
        InputError: see `models.fitness.check_base`.
    """
    from forgetting.models.fitness import check_base

    check_model("model.name_or_path", recipe.model.name_or_path)
    check_base(recipe.model)


def check_named_reference(recipe: Recipe) -> None:
    """Refuse a reference model that is not there, or that does not fit the base model.

    Raises:
        InputError: see `models.fitness.check_reference`.
    """
    from forgetting.models.fitness import check_reference

    name = recipe.reference.name_or_path
    if name is not None:
        check_model("reference.name_or_path", name)
        check_reference(recipe.model, name, recipe.data.max_length)


def check_training(recipe: Recipe, section: str) -> None:
    """Refuse trackers that are not installed, and adapters on modules that are not there.

    Args:
        section: `training` or `reference`.

    Raises:
        InputError: the message names the field.
    """
    from forgetting.models.fitness import check_adapted_modules

    settings = recipe.reference if section == "reference" else recipe.training
    check_trackers(section, settings)
    is_inherited = settings.lora == recipe.training.lora
    if settings.lora is not None and not (section == "reference" and is_inherited):
        check_adapted_modules(section, recipe.model, settings.lora)


def check_trackers(section: str, training: TrainingSettings) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        InputError: the message names the package.
    """
    for tracker in training.report_to:
        if find_spec(tracker) is None:
            raise InputError(
                f"{section}.report_to: the package {tracker} is not installed. "
                f"Install it with `pip install {tracker}`, or remove it from the list"
            )
