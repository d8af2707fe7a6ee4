"""Judges what an interrupted audit has scored so far.

Input: the `Audit` that was interrupted. Output: an audit of the scored records alone, in the folder
`partial` of the other, with the same files. D_train is in random order, so the scored records are a
random part of the data. Scores nothing, and leaves the interrupted run as it is, so that it can be
continued.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from forgetting.auditing.audit import Audit, remove_partial
from forgetting.config import dump_recipe
from forgetting.console import progress
from forgetting.pipeline import plan_with_state, unfinished_work
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.folders import new_folder
from forgetting.rundir.samples import SampleFile, read_table, write_table
from forgetting.rundir.scores import ScoredCorpus, join_scores
from forgetting.rundir.train_records import train_records, write_records
from forgetting.stages.corpus_detection import detect
from forgetting.stages.corpus_scores import ScoringJob


@dataclass(frozen=True)
class Progress:
    """How far the scoring of an interrupted audit has come."""

    job: ScoringJob
    work: Work
    """Where the scores of each shard wait."""
    num_shards: int
    """Shards that are scored."""

    @property
    def num_scored(self) -> int:
        """Records that are scored, the first ones of D_train."""
        return self.job.shards[self.num_shards - 1].stop if self.num_shards else 0

    @property
    def num_samples(self) -> int:
        """Records of D_train."""
        return len(self.job.samples)


def progress_of(audit: Audit) -> Progress | None:
    """How far scoring has come; None if it was not interrupted there, or the copies with planted
    noise are not scored."""
    run = audit.run
    if not layout.recipe_file(run).is_file():
        return None
    folder = unfinished_work(audit.recipe, run, "score")
    if folder is None or "probe" not in plan_with_state(audit.recipe, run)[1]:
        return None
    job, work = ScoringJob.of_train(audit.recipe, run), Work(folder)
    (scoring,) = job.scorings()
    number = 0
    while number < len(job.shards) and work.has(scoring.file(work, number)):
        number += 1
    return Progress(job, work, number)


def judge_part(audit: Audit, scored: Progress) -> Audit:
    """Judge the records that are scored.

    Args:
        audit: the interrupted audit.
        scored: with at least one shard.

    Returns:
        The audit of these records. One of an earlier interruption is replaced.

    Raises:
        InputError: a part of the run is missing or damaged.
    """
    part = Audit(audit.partial)
    remove_partial(audit)
    with new_folder(part.folder) as folder:
        _take(audit.run, scored, Audit(folder).run)
        _detect(Audit(folder))
    return part


def _take(run: Path, scored: Progress, target: Path) -> None:
    """Copy the scored part of a run, as a run of its own."""
    job, size = scored.job, scored.num_scored
    data, scores = layout.data_dir(target), layout.scores_dir(target)
    for folder in (data, scores):
        folder.mkdir(parents=True)
    fields = job.recipe.data.model_copy(update={"num_train": size})
    recipe = job.recipe.model_copy(update={"data": fields})
    layout.recipe_file(target).write_text(dump_recipe(recipe), encoding="utf-8")
    shutil.copyfile(layout.summary_file(layout.data_dir(run)), layout.summary_file(data))
    write_table(job.samples.read(0, size).table, layout.train_file(target))
    fingerprint = SampleFile(layout.train_file(target)).fingerprint
    (records,) = train_records(run, job.samples.fingerprint, [size])
    write_records(data, records)
    for index, shard in enumerate(job.shards[: scored.num_shards]):
        ids = job.samples.read(shard.start, shard.stop).sample_ids
        files = {
            model: [scoring.file(scored.work, index) for scoring in group]
            for model, group in job.models().items()
        }
        file = layout.score_file(scores, index, scored.num_shards)
        join_scores(files, job.columns, ids, file, job.samples.fingerprint)
        # It belongs to fewer tokens now.
        write_table(read_table(file), file, fingerprint)
    shutil.copytree(layout.probe_dir(run), layout.probe_dir(target))
    copies = layout.probe_file(layout.probe_dir(target))
    write_table(read_table(copies), copies, fingerprint)


def _detect(part: Audit) -> None:
    output = layout.detector_dir(part.run)
    output.mkdir()
    scratch = part.run / layout.WORK
    scratch.mkdir()
    corpus = ScoredCorpus(part.run)
    with progress("Weighing tokens", corpus.num_samples) as advance:
        detect(part.recipe, part.run, corpus, output, scratch, advance).save(output)
    shutil.rmtree(scratch)
