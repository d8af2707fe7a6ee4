"""`detect`: learns from the planted noise, and says which tokens of D_train are bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.console import logger, progress
from forgetting.stages.base import Stage, Step
from forgetting.stages.score import facts

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Fits the detector, weighs D_train, and prints the verdict."""
    from forgetting.report.sentences import detector_sentences
    from forgetting.rundir.scores import ScoredCorpus
    from forgetting.stages.corpus_detection import detect

    corpus = ScoredCorpus(run_dir)
    with progress("Weighing tokens", corpus.num_samples) as advance:
        summary = detect(step.recipe, run_dir, corpus, work.output, work.path, advance)
    summary.save(work.output)
    work.details["tokens"] = sum(source.num_tokens for source in summary.by_source)
    work.details["found"] = int(summary.found)
    for sentence in detector_sentences(summary):
        logger.info("%s", sentence)


def parts(recipe: Recipe) -> Sequence[str | None]:
    """One step, if any variant uses the detector."""
    return (None,) if recipe.needs_detector else ()


VERSION = 3
"""Raise it when the same scores give other findings."""


def settings(step: Step) -> Mapping[str, Any]:
    """The passes, and the seed of folds, trees and bootstrap."""
    return {"version": VERSION, "passes": step.recipe.detector_passes, "seed": step.recipe.seed}


DETECT = Stage(
    name="detect",
    summary="Learn from the planted noise which tokens of D_train are bad.",
    folder="detector",
    reads=("prepare", "score", "probe"),
    parts=parts,
    settings=settings,
    run=run,
    facts=facts,
)
