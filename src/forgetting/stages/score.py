"""`score`: scores of D_train's response tokens under the models that the recipe needs.

Where a detector judges the held-out samples too, they are scored by the passes that it looks at.
"""

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
    from forgetting.stages.corpus_scores import ScoringJob, join_shards, score_shards

    jobs = [(ScoringJob.of_train(step.recipe, run_dir), work)]
    if step.recipe.scores_heldout:
        jobs.append((ScoringJob.of_heldout(step.recipe, run_dir), _work_on_heldout(work)))
    for job, own in jobs:
        score_shards(job, own)
    work.processes.wait()
    if work.processes.is_main:
        for job, own in jobs:
            join_shards(job, own)
        for figure in ("tokens", "response_tokens"):
            work.details[figure] = sum(int(own.details[figure] or 0) for _, own in jobs)


def _work_on_heldout(work: Work) -> Work:
    """Work within that of the stage, so that the samples' shards have files of their own."""
    from forgetting.rundir import layout
    from forgetting.rundir.directory import Work

    own = Work(work.path / "heldout", work.processes)
    own.output = layout.heldout_scores_dir(work.output)
    for folder in (own.path, own.output):
        folder.mkdir(exist_ok=True)
    return own


def parts(recipe: Recipe) -> Sequence[str | None]:
    """One step, if any variant or the detector needs scores."""
    return (None,) if recipe.score_columns else ()


def settings(step: Step) -> Mapping[str, Any]:
    """The models, the columns and the size of a shard."""
    from forgetting.method.columns import columns_of

    recipe = step.recipe
    heldout = {"heldout": columns_of(recipe.detector_passes)} if recipe.scores_heldout else {}
    return {**scoring_settings(step, recipe.score_columns), **heldout}


def scoring_settings(step: Step, columns: Sequence[str]) -> dict[str, Any]:
    """What scores depend on, apart from the samples."""
    from forgetting.method.columns import of_reference
    from forgetting.models.loading import model_fingerprint

    recipe = step.recipe
    reference, folds = {}, {}
    if any(map(of_reference, columns)):
        if recipe.reference.name_or_path:
            named = {"name_or_path": recipe.reference.name_or_path, "revision": None}
            reference = model_fingerprint(recipe.model.model_copy(update=named))
        elif recipe.fold_names:
            # The seed says which fold a sample is in.
            folds = {"folds": recipe.reference.folds, "seed": recipe.seed}
    return {
        "model": model_settings(step),
        "reference": reference,
        "samples_per_shard": recipe.scoring.samples_per_shard,
        "columns": list(columns),
        **folds,
        **_contrast(recipe, columns),
    }


def _contrast(recipe: Recipe, columns: Sequence[str]) -> dict[str, Any]:
    """The prompt of the second passes. The default is left out, so that what was scored before
    there was a choice stays."""
    from forgetting.method.columns import split_column

    is_read = any(split_column(column)[0].endswith("_empty") for column in columns)
    if not is_read or recipe.detector.prompt == "empty":
        return {}
    # The seed says which record the prompt is from.
    return {"prompt": recipe.detector.prompt, "prompt_seed": recipe.seed}


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
