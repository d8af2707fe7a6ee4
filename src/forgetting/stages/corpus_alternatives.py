"""What a model expects in the place of those tokens of D_train that may be bad, in shards.

Input: the posterior of D_train's tokens, and the reference or the base model. Output: Parquet
shards of `rundir.token_alternatives`. Only samples with such a token are read, each once. Each
process reads its own shards, and keeps the files of each model until all are there. Memory use is
one shard and one model; no model is loaded if the detector found nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.console import progress
from forgetting.method.columns import CORRECTED_FROM
from forgetting.models.adapters import SharedBase
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.findings import posterior_parts
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.token_alternatives import join_alternatives, write_alternatives
from forgetting.scoring import find_alternatives
from forgetting.stages.corpus_scores import ModelScoring, ScoringJob
from forgetting.stages.reference import fold_of_samples


def columns_of_model(recipe: Recipe) -> list[str]:
    """A score column of the model that is asked: of the reference, if the run has one."""
    return ["reference_log_probs" if recipe.needs_reference else "base_log_probs"]


def job_of_alternatives(recipe: Recipe, run: Path) -> ScoringJob:
    """D_train, and the models that are asked."""
    samples = SampleFile(layout.train_file(run))
    folds = fold_of_samples(recipe, len(samples)) if recipe.fold_names else None
    return ScoringJob(recipe, run, samples, columns_of_model(recipe), folds, "Finding alternatives")


@dataclass(frozen=True)
class _Task:
    """A shard under one model."""

    shard: range
    file: Path
    tokens: NDArray[np.int64]
    """Places among the response tokens of the shard."""
    num_samples: int
    """Samples with such a token."""


def find_in_shards(job: ScoringJob, work: Work) -> None:
    """Find the alternatives in the shards of this process; files from before are kept."""
    base = SharedBase(job.recipe.model)
    own = job.shards[work.processes.index :: work.processes.count]
    total = sum(map(len, own))
    for scoring in job.scorings():
        with (
            ExitStack() as lent,
            progress(f"{job.label}, {scoring.name} model", total) as advance,
        ):
            model = None
            for task in _tasks(job, scoring, work):
                num_read = 0
                if not work.has(task.file):
                    if model is None and task.num_samples:
                        is_last = not job.recipe.fold_names
                        model = lent.enter_context(base.lend(scoring.path, is_last=is_last))
                    _find(job, task, model, advance)
                    work.keep(task.file)
                    num_read = task.num_samples
                advance(len(task.shard) - num_read, "")


def _tasks(job: ScoringJob, scoring: ModelScoring, work: Work) -> Iterator[_Task]:
    """This process's shards, with the tokens that a model is asked about."""
    sizes = [len(shard) for shard in job.shards]
    parts = posterior_parts(job.run, job.samples.fingerprint, sizes)
    for index, (shard, part) in enumerate(zip(job.shards, parts, strict=True)):
        if index % work.processes.count != work.processes.index:
            continue
        covered = np.repeat(scoring.covers[shard.start : shard.stop], part.lengths)
        chosen = covered & (part.posterior >= CORRECTED_FROM)
        sample = np.repeat(np.arange(len(part.lengths)), part.lengths)
        num_samples = np.unique(sample[chosen]).size
        yield _Task(shard, scoring.file(work, index), np.flatnonzero(chosen), num_samples)


def _find(job: ScoringJob, task: _Task, model: Any, advance: Callable[[int, str], None]) -> None:
    samples = job.samples.read(task.shard.start, task.shard.stop)
    found = find_alternatives(
        model,
        samples,
        task.tokens,
        job.recipe.detector.alternatives,
        tokens_per_batch=job.recipe.scoring.tokens_per_batch,
        advance=advance,
    )
    write_alternatives(task.file, samples, found, job.samples.fingerprint)


def join_found(job: ScoringJob, work: Work) -> None:
    """Write the models side by side, once every process is done with its shards."""
    shards = job.shards
    num_tokens = 0
    for index, shard in enumerate(shards):
        num_tokens += join_alternatives(
            [scoring.file(work, index) for scoring in job.scorings()],
            job.samples.read(shard.start, shard.stop),
            layout.alternatives_file(work.output, index, len(shards)),
            job.samples.fingerprint,
        )
    work.details["corrected_tokens"] = num_tokens
