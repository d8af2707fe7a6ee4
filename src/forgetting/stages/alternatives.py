"""`alternatives`: what the reference model expects in the place of the tokens that may be bad.

If the run has no reference model, the base model is asked. With folds, a sample is read by the
reference model that has not seen it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import check_named_reference
from forgetting.stages.score import scoring_settings

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Reads the samples with such tokens in the shards of this process; the first joins them."""
    from forgetting.stages.corpus_alternatives import (
        find_in_shards,
        job_of_alternatives,
        join_found,
    )

    job = job_of_alternatives(step.recipe, run_dir)
    find_in_shards(job, work)
    work.processes.wait()
    if work.processes.is_main:
        join_found(job, work)


def parts(recipe: Recipe) -> Sequence[str | None]:
    """One step, if any variant corrects tokens."""
    return (None,) if recipe.needs_alternatives else ()


def settings(step: Step) -> Mapping[str, Any]:
    """The model, how many tokens are kept, and the size of a shard."""
    from forgetting.stages.corpus_alternatives import columns_of_model

    return {
        **scoring_settings(step, columns_of_model(step.recipe)),
        "alternatives": step.recipe.detector.alternatives,
    }


def check(recipe: Recipe) -> None:
    """Refuses a reference model that is not there or does not fit."""
    if recipe.needs_alternatives:
        check_named_reference(recipe)


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """How many other tokens are kept for each."""
    del done
    return {"tokens kept for each": step.recipe.detector.alternatives}


ALTERNATIVES = Stage(
    name="alternatives",
    summary="Find what the model expects in the place of tokens that may be bad.",
    folder="alternatives",
    reads=("prepare", "reference", "detect"),
    parts=parts,
    settings=settings,
    run=run,
    check=check,
    facts=facts,
    is_shared=True,
)
