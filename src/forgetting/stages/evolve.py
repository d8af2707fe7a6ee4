"""`evolve`: the self-evolving reference of each variant with rounds (TokenCleaning, 2502.01968).

D_train is divided into parts. The first is learned whole. Then, part by part, the model says which
tokens of the next one are learned, and goes on with these. This stage does all but the training on
the last part, which is left to `train`, and keeps what `select` and `train` read: the model so far,
and every token's log-probability under the model that had not seen its part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import InputError
from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import (
    SplitSize,
    split_sizes,
    training_facts,
    training_settings,
)

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Trains on all parts but the last, and scores and selects each but the first."""
    from forgetting.stages.corpus_rounds import Evolution

    Evolution(step.recipe, str(step.part), run_dir, work).run()


def part_of(num_samples: int, rounds: int, index: int) -> range:
    """The samples of a part of D_train, which is in random order. Sizes differ by one at most."""
    return range(num_samples * index // rounds, num_samples * (index + 1) // rounds)


def num_steps(recipe: Recipe, num_samples: int, rounds: int) -> int:
    """Optimizer steps on all parts but the last."""
    parts = (part_of(num_samples, rounds, index) for index in range(rounds - 1))
    return sum(recipe.training.num_steps(len(part)) for part in parts)


def last_size(recipe: Recipe, variant: str, size: SplitSize) -> SplitSize:
    """What a variant is trained on by `train`: D_train, or the last of its parts."""
    rounds = recipe.variants[variant].rounds
    if not rounds:
        return size
    # How many of the tokens are in the last part is known once it is trained.
    return SplitSize(len(part_of(size.samples, rounds, rounds - 1)))


def parts(recipe: Recipe) -> Sequence[str | None]:
    """The variants with rounds."""
    return recipe.evolving_variants


def reads(recipe: Recipe, part: str | None) -> Collection[str]:
    """The scores, which hold those of the base model."""
    del recipe, part
    return ("prepare", "score")


def settings(step: Step) -> Mapping[str, Any]:
    """How the variant is trained and selects its tokens."""
    variant = step.recipe.variants[str(step.part)]
    selection = variant.selection
    return {
        **training_settings(step, step.recipe.training),
        "rounds": variant.rounds,
        "rho": selection.rho,
        "quality": selection.quality,
        "keep_eos": selection.keep_eos,
        "loss": variant.loss.model_dump(mode="json"),
    }


def check(recipe: Recipe) -> None:
    """Refuses rounds on a model that processes share, whose parts no process can begin with."""
    from forgetting.rundir.processes import share_one_model

    for name in recipe.evolving_variants:
        if share_one_model():
            raise InputError(
                f"variants.{name}.rounds does not work with FSDP or ZeRO-3, which divide the model "
                "over the processes. Use another configuration, such as ddp, or remove the variant"
            )


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """Samples, optimizer steps and trainable parameters, of all rounds together."""
    recipe, train = step.recipe, split_sizes(step, done)["train"]
    rounds = recipe.variants[str(step.part)].rounds
    assert rounds is not None
    first = SplitSize(train.samples - len(part_of(train.samples, rounds, rounds - 1)))
    return {
        **training_facts(step, recipe.training, first),
        "optimizer steps": num_steps(recipe, train.samples, rounds),
        "rounds": rounds - 1,
    }


EVOLVE = Stage(
    name="evolve",
    summary="Train and select in rounds, for variants with a self-evolving reference.",
    folder="evolution",
    reads=reads,
    parts=parts,
    settings=settings,
    run=run,
    check=check,
    facts=facts,
    is_shared=True,
)
