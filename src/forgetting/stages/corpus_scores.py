"""Scores of D_train's response tokens under the base and the reference model, in shards.

Goes in: D_train as tokens, and models. Comes out: Parquet files with the scores of both models
side by side. Each process scores its own shards, one model after the other, and keeps the files
of each model until all are there. Memory use is one shard and one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.console import progress
from forgetting.models.adapters import SharedBase
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.scores import join_scores, write_scores
from forgetting.rundir.stats import DataSummary
from forgetting.scoring import score_samples
from forgetting.stages.reference import fold_of_samples


@dataclass(frozen=True)
class ScoringPass:
    """Some samples of D_train under one model."""

    name: str
    path: Path | str | None
    """Folder or Hub id of a fine-tuned model; None: the base model."""
    covers: NDArray[np.bool_]
    """Which samples of D_train, shape (samples,)."""

    def rows(self, shard: range) -> NDArray[np.int64]:
        """Which samples of a shard, counted from its first."""
        return np.flatnonzero(self.covers[shard.start : shard.stop])

    def file(self, work: Work, index: int) -> Path:
        """Where the scores of a shard are kept until the other passes have scored it too."""
        return work.path / f"{self.name}-{index:05d}.parquet"


def scoring_passes(recipe: Recipe, run: Path, num_samples: int) -> list[ScoringPass]:
    """The base over all samples, then the reference, or each fold's over the fold's samples."""
    every = np.ones(num_samples, dtype=bool)
    passes = [ScoringPass("base", None, every)]
    if not recipe.fold_names:
        own = recipe.reference.name_or_path
        if own == recipe.model.name_or_path and recipe.model.revision is None:
            # The reference is the base: it is not scored twice.
            return [*passes, *passes]
        return [*passes, ScoringPass("reference", own or layout.reference_dir(run), every)]
    folds = fold_of_samples(recipe, num_samples)
    for fold, name in enumerate(recipe.fold_names):
        passes.append(ScoringPass(name, layout.reference_dir(run, name), folds == fold))
    return passes


def score_shards(recipe: Recipe, run: Path, work: Work) -> None:
    """Score the shards of this process; shards that are there from before are kept."""
    corpus = SampleFile(layout.train_file(run))
    shards = _shard_ranges(recipe, corpus)
    own = range(work.processes.index, len(shards), work.processes.count)
    # Adapters go onto the one base model, those of folds one after the other. Whole weights
    # replace it.
    base = SharedBase(recipe.model)
    for scoring in scoring_passes(recipe, run, len(corpus)):
        _score_pass(recipe, work, corpus, {index: shards[index] for index in own}, scoring, base)


def _score_pass(
    recipe: Recipe,
    work: Work,
    corpus: SampleFile,
    shards: Mapping[int, range],
    scoring: ScoringPass,
    base: SharedBase,
) -> None:
    # A function of its own, so that nothing holds the model when the next one is loaded.
    missing = [index for index in shards if not scoring.file(work, index).is_file()]
    if not missing:
        return
    total = sum(len(scoring.rows(shard)) for shard in shards.values())
    done = total - sum(len(scoring.rows(shards[index])) for index in missing)
    extra = {column.partition("_")[2] for column in recipe.score_columns} - {"log_probs"}
    with (
        base.lend(scoring.path, is_last=not recipe.fold_names) as model,
        progress(f"Scoring, {scoring.name} model", total, done) as advance,
    ):
        for index in missing:
            samples = corpus.read(shards[index].start, shards[index].stop)
            rows = scoring.rows(shards[index])
            scores = score_samples(
                model,
                samples,
                rows,
                statistics=extra,
                tokens_per_batch=recipe.scoring.tokens_per_batch,
                advance=advance,
            )
            columns = {"log_probs": scores.log_probs}
            columns |= {column: getattr(scores, column) for column in sorted(extra)}
            write_scores(scoring.file(work, index), samples, rows, columns, corpus.fingerprint)


def join_shards(recipe: Recipe, run: Path, work: Work) -> None:
    """Write base and reference side by side, once every process has scored its shards."""
    corpus = SampleFile(layout.train_file(run))
    base, *references = scoring_passes(recipe, run, len(corpus))
    num_shards = len(_shard_ranges(recipe, corpus))
    num_tokens = 0
    for index in range(num_shards):
        parts = [reference.file(work, index) for reference in references]
        target = layout.score_file(work.output, index, num_shards)
        num_tokens += join_scores(base.file(work, index), parts, target, corpus.fingerprint)
    # A reference that is the base was read once; folds together read the corpus once.
    num_passes = len({scoring.name for scoring in (base, references[0])})
    num_read = DataSummary.load(layout.data_dir(run)).splits["train"].tokens
    work.details["tokens"] = num_passes * num_read
    work.details["response_tokens"] = num_tokens


def _shard_ranges(recipe: Recipe, corpus: SampleFile) -> list[range]:
    size = recipe.scoring.samples_per_shard
    starts = range(0, len(corpus), size)
    return [range(begin, min(begin + size, len(corpus))) for begin in starts]
