"""`probe`: plants noise into copies of D_train records, and scores the copies.

Records that the reference model was trained on are never copied, and no text of theirs is planted
into a copy. D_ref and D_train are disjoint; if `data.duplicates_in_reference` mixes them, records
of D_ref are passed over. With folds, each fold has its own copies: they take foreign text from the
fold's records only, and the reference model that was trained without the fold scores them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import split_sizes
from forgetting.stages.score import scoring_settings

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """The first process plants; each scores its shards; the first joins them."""
    from forgetting.rundir import layout
    from forgetting.stages.copies import plant_copies, probe_job
    from forgetting.stages.corpus_scores import join_shards, score_shards

    file = layout.probe_file(work.path)
    if work.processes.is_main and not work.has(file):
        plant_copies(step.recipe, run_dir, file)
        work.keep(file)
    work.processes.wait()
    job = probe_job(step.recipe, run_dir, work.path)
    score_shards(job, work)
    work.processes.wait()
    if work.processes.is_main:
        join_shards(job, work)
        work.details["copies"] = len(job.samples)
        shutil.copyfile(file, layout.probe_file(work.output))


def parts(recipe: Recipe) -> Sequence[str | None]:
    """One step, if any variant uses the detector."""
    return (None,) if recipe.needs_detector else ()


VERSION = 2
"""Raise it when the same records get other copies."""


def settings(step: Step) -> Mapping[str, Any]:
    """What is planted, and how it is scored."""
    from forgetting.method.columns import columns_of

    recipe = step.recipe
    return {
        **scoring_settings(step, columns_of(recipe.detector_passes)),
        "version": VERSION,
        "copies": recipe.detector.copies,
        "corruptions": recipe.detector.corruptions,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """Number of copies."""
    from forgetting.data.planting import default_num_copies

    num_train = split_sizes(step, done)["train"].samples
    return {"copies": step.recipe.detector.copies or default_num_copies(num_train)}


PROBE = Stage(
    name="probe",
    summary="Plant noise into copies of D_train records, and score the copies.",
    folder="probe",
    reads=("prepare", "reference"),
    parts=parts,
    settings=settings,
    run=run,
    facts=facts,
    is_shared=True,
)
