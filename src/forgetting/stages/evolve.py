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
    parts_of_train,
    split_sizes,
    steps_before_last,
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
    first = SplitSize(parts_of_train(train.samples, rounds)[-1].start)
    return {
        **training_facts(step, recipe.training, first),
        "optimizer steps": steps_before_last(recipe, train.samples, rounds),
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
