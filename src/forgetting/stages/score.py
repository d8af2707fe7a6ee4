"""`score`: log-probabilities of D_train's response tokens under the base and the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import check_named_reference, model_settings, split_sizes

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Scores the shards of this process; the first process joins them."""
    from forgetting.stages.corpus_scores import join_shards, score_shards

    score_shards(step.recipe, run_dir, work)
    work.processes.wait()
    if work.processes.is_main:
        join_shards(step.recipe, run_dir, work)


def parts(recipe: Recipe) -> Sequence[str | None]:
    """One step, if any variant selects tokens."""
    return (None,) if recipe.selecting_variants else ()


def settings(step: Step) -> Mapping[str, Any]:
    """The models, the columns and the size of a shard."""
    from forgetting.models.loading import model_fingerprint

    recipe = step.recipe
    reference = {}
    if recipe.reference.name_or_path:
        named = {"name_or_path": recipe.reference.name_or_path, "revision": None}
        reference = model_fingerprint(recipe.model.model_copy(update=named))
    # The seed says which fold a sample is in.
    folds = {"folds": recipe.reference.folds, "seed": recipe.seed} if recipe.fold_names else {}
    # Log-probabilities are always there, so a change of measure alone scores nothing again.
    more = [column for column in recipe.score_columns if not column.endswith("log_probs")]
    columns = {"columns": more} if more else {}
    return {
        "model": model_settings(step),
        "reference": reference,
        "samples_per_shard": recipe.scoring.samples_per_shard,
        **folds,
        **columns,
    }


def check(recipe: Recipe) -> None:
    """Refuses a reference model that is not there or does not fit."""
    check_named_reference(recipe)


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """Samples and response tokens of D_train."""
    split = split_sizes(step, done)["train"]
    return {"samples": split.samples, "response tokens": split.response_tokens}


SCORE = Stage(
    name="score",
    summary="Score D_train's response tokens under the base and the reference model.",
    folder="scores",
    reads=("prepare", "reference"),
    parts=parts,
    settings=settings,
    run=run,
    check=check,
    facts=facts,
    is_shared=True,
)
