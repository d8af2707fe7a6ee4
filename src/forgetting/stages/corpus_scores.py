"""Scores of response tokens under the base and the reference model, in shards.

Input: samples as tokens, the names of the columns, and models. Output: Parquet files with
these columns. Some are of responses after their contrast, which is an empty prompt or that of
another record (`detector.prompt`). Each process scores its own shards, one model after the other,
and keeps the files of each model until all are there. Memory use is one shard and one model.
`score` uses it for D_train and held-out samples, `probe` for copies with planted noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.console import progress
from forgetting.data.alignment import Tokenization, Tokens
from forgetting.errors import InputError
from forgetting.method.columns import columns_of, of_reference
from forgetting.models.adapters import SharedBase
from forgetting.models.tokenization import load_tokenization
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.samples import IGNORE_INDEX, ROWS_PER_GROUP, SampleFile, Samples
from forgetting.rundir.scores import EMPTY, join_scores, model_column, write_scores
from forgetting.rundir.stats import DataSummary
from forgetting.scoring import score_samples
from forgetting.stages.reference import fold_of_samples

if TYPE_CHECKING:
    from forgetting.scoring import Scores

# Tells these random numbers from others that begin with the recipe's seed.
_STREAM = 0x50524D50


@dataclass(frozen=True)
class ModelScoring:
    """Some samples under one model, with their own prompts, with a contrast, or both."""

    name: str
    path: Path | str | None
    """Folder or Hub id of a fine-tuned model; None: the base model."""
    covers: NDArray[np.bool_]
    """Which of the samples, shape (samples,)."""
    statistics: tuple[str, ...]
    """Names of the columns without the model; those with a contrast begin with `empty_`."""

    def rows(self, shard: range) -> NDArray[np.int64]:
        """Which samples of a shard, counted from its first."""
        return np.flatnonzero(self.covers[shard.start : shard.stop])

    def file(self, work: Work, index: int) -> Path:
        """Where the scores of a shard are kept until the other models have scored it too."""
        return work.path / f"{self.name}-{index:05d}.parquet"

    @property
    def own(self) -> list[str]:
        """Statistics with the samples' own prompts."""
        return [name for name in self.statistics if not name.startswith(EMPTY)]

    @property
    def empty(self) -> list[str]:
        """Statistics with a contrast."""
        return [name.removeprefix(EMPTY) for name in self.statistics if name.startswith(EMPTY)]


@dataclass(frozen=True)
class ScoringJob:
    """What is scored: samples of a run, and the columns of their scores.

    Args:
        recipe: models, columns and the size of a shard.
        run: the run directory.
        samples: the samples.
        folds: the fold of each sample, shape (samples,), if the reference is cross-fitted.
        label: what the samples are, for the progress bar.
        records: row in D_train of the record of each sample, shape (samples,). Default: their
            places.
    """

    recipe: Recipe
    run: Path
    samples: SampleFile
    columns: Sequence[str]
    folds: NDArray[np.int64] | None = None
    label: str = "Scoring"
    records: NDArray[np.int64] | None = None

    @classmethod
    def of_train(cls, recipe: Recipe, run: Path) -> ScoringJob:
        """D_train with the columns that the recipe needs."""
        samples = SampleFile(layout.train_file(run))
        folds = fold_of_samples(recipe, len(samples)) if recipe.fold_names else None
        return cls(recipe, run, samples, recipe.score_columns, folds)

    @classmethod
    def of_heldout(cls, recipe: Recipe, run: Path) -> ScoringJob:
        """The held-out samples with the columns that the detector needs."""
        samples = SampleFile(layout.split_file(layout.data_dir(run), "heldout"))
        # No fold's reference has seen them, so any may score them.
        folds = np.arange(len(samples)) % len(recipe.fold_names) if recipe.fold_names else None
        columns = columns_of(recipe.detector_passes)
        return cls(recipe, run, samples, columns, folds, label="Scoring held-out samples")

    @property
    def shards(self) -> list[range]:
        """Ranges of samples."""
        size, total = self.recipe.scoring.samples_per_shard, len(self.samples)
        return [range(begin, min(begin + size, total)) for begin in range(0, total, size)]

    @cached_property
    def tokenization(self) -> Tokenization:
        """The tokenization of the run's data."""
        return load_tokenization(self.recipe, DataSummary.load(layout.data_dir(self.run)).date)

    def models(self) -> dict[str, list[ModelScoring]]:
        """By `base` and `reference`, who gives their columns; together they cover all samples."""
        every = np.ones(len(self.samples), dtype=bool)
        base, reference = (
            tuple(model_column(column)[1] for column in self.columns if of_reference(column) == own)
            for own in (False, True)
        )
        recipe = self.recipe
        given = recipe.reference.name_or_path
        found = {}
        if base:
            found["base"] = [ModelScoring("base", None, every, base)]
        if reference and self.folds is None:
            path = given or layout.reference_dir(self.run)
            found["reference"] = [ModelScoring("reference", path, every, reference)]
        elif reference:
            found["reference"] = [
                ModelScoring(
                    name,
                    layout.reference_dir(self.run, name),
                    np.asarray(self.folds == fold),
                    reference,
                )
                for fold, name in enumerate(recipe.fold_names)
            ]
        return found

    def after_contrast(self, shard: range, samples: Samples, rows: NDArray[np.integer]) -> Samples:
        """As the function of this name.

        Args:
            shard: the samples.
            rows: which of them, counted from the first of the shard.

        Raises:
            InputError: D_train has no other record.
        """
        prompts = None
        if self.recipe.detector.prompt == "other":
            places = np.asarray(rows) + shard.start
            records = places if self.records is None else self.records[places]
            train = SampleFile(layout.train_file(self.run))
            lenders = other_records(records, len(train), self.recipe.seed)
            prompts = prompts_of(train, lenders)
        return after_contrast(
            samples, rows, self.tokenization, self.recipe.data.max_length, prompts
        )

    def scorings(self) -> list[ModelScoring]:
        """Every model once, in the order in which they are loaded."""
        return list({s.name: s for group in self.models().values() for s in group}.values())


def score_shards(job: ScoringJob, work: Work) -> None:
    """Score the shards of this process; shards that are there from before are kept."""
    shards = job.shards
    own = range(work.processes.index, len(shards), work.processes.count)
    # Adapters go onto the one base model, those of folds one after the other. Whole weights
    # replace it.
    base = SharedBase(job.recipe.model)
    is_last = not job.recipe.fold_names
    for scoring in job.scorings():
        of_process = {index: shards[index] for index in own}
        score_with(job, work, of_process, scoring, base, is_last=is_last)


def score_with(
    job: ScoringJob,
    work: Work,
    shards: Mapping[int, range],
    scoring: ModelScoring,
    base: SharedBase,
    *,
    is_last: bool,
) -> None:
    """Score shards under one model; files that are there from before are kept.

    Args:
        shards: by their numbers.
        base: lends the model.
        is_last: as for `SharedBase.lend`.
    """
    # A function of its own, so that nothing holds the model when the next one is loaded.
    missing = [index for index in shards if not work.has(scoring.file(work, index))]
    if not missing:
        return
    passes = bool(scoring.own) + bool(scoring.empty)
    total = passes * sum(len(scoring.rows(shard)) for shard in shards.values())
    done = total - passes * sum(len(scoring.rows(shards[index])) for index in missing)
    with (
        base.lend(scoring.path, is_last=is_last) as model,
        progress(f"{job.label}, {scoring.name} model", total, done) as advance,
    ):
        for index in missing:
            samples = job.samples.read(shards[index].start, shards[index].stop)
            rows = scoring.rows(shards[index])

            def score(part: Samples, indices: NDArray | None, statistics: list[str]) -> Scores:
                return score_samples(
                    model,
                    part,
                    indices,
                    statistics=set(statistics) - {"log_probs"},
                    tokens_per_batch=job.recipe.scoring.tokens_per_batch,
                    advance=advance,
                )

            columns: dict[str, NDArray] = {}
            if scoring.own:
                scores = score(samples, rows, scoring.own)
                columns |= {name: getattr(scores, name) for name in scoring.own}
            if scoring.empty:
                alone = job.after_contrast(shards[index], samples, rows)
                scores = score(alone, None, scoring.empty)
                columns |= {f"{EMPTY}{name}": getattr(scores, name) for name in scoring.empty}
            file = scoring.file(work, index)
            write_scores(file, samples, rows, columns, job.samples.fingerprint)
            work.keep(file)


def other_records(records: NDArray[np.integer], num_records: int, seed: int) -> NDArray[np.int64]:
    """Another record for each of some records: that which follows at a distance drawn by the seed.

    No record has itself, and two records have two others. Neighbors stay neighbors, so that the
    others of a shard are read at once.

    Args:
        records: rows in D_train. Held-out samples count on from its start, as they are not in it.
        num_records: of D_train.
        seed: of the recipe.

    Raises:
        InputError: there is no other record.
    """
    if num_records < 2:
        raise InputError(
            f"detector.prompt other needs the prompt of another record, but D_train has "
            f"{num_records}. Set detector.prompt to empty"
        )
    distance = 1 + np.random.default_rng([seed, _STREAM]).integers(num_records - 1)
    return (np.asarray(records, dtype=np.int64) + distance) % num_records


def prompts_of(train: SampleFile, records: NDArray[np.int64]) -> list[list[int] | None]:
    """The tokens before the first response of some records; None if a record has no prompt.

    Args:
        train: D_train.
        records: rows in it.
    """
    found: dict[int, list[int] | None] = {}
    for block in np.unique(records // ROWS_PER_GROUP).tolist():
        begin = block * ROWS_PER_GROUP
        part = train.read(begin, min(begin + ROWS_PER_GROUP, len(train)))
        inside = np.unique(records[records // ROWS_PER_GROUP == block]) - begin
        for row in inside.tolist():
            tokens = slice(part.token_starts[row], part.token_starts[row + 1])
            size = int(np.argmax(part.is_response[tokens]))
            # Texts start with a token that is not predicted.
            found[begin + row] = part.input_ids[tokens][:size].tolist() if size > 1 else None
    return [found[record] for record in records.tolist()]


def after_contrast(
    samples: Samples,
    rows: NDArray[np.integer],
    tokenization: Tokenization,
    max_length: int,
    prompts: Sequence[Sequence[int] | None] | None = None,
) -> Samples:
    """Each response of some samples alone, after a prompt that is not its own.

    Of several turns, each response is a sample of its own, so that the response tokens of all
    are those of the given samples, in their order. A text without a prompt stays as it is. What
    is longer than `max_length` loses the start of its prompt.

    Args:
        samples: some samples.
        rows: which of them.
        tokenization: the tokenization of the run's data.
        max_length: tokens of a sample.
        prompts: token ids for each of `rows`. Default, and where one is None: the prompt of an
            empty question.
    """
    ids, labels, sample_ids = [], [], []
    for place, row in enumerate(rows.tolist()):
        tokens = slice(samples.token_starts[row], samples.token_starts[row + 1])
        inside, is_response = samples.input_ids[tokens], samples.is_response[tokens]
        edges = np.flatnonzero(np.diff(np.r_[False, is_response, False]))
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            own = np.full(end, IGNORE_INDEX)
            own[begin:] = inside[begin:end]
            found = tokenization.encode_after_prompt(
                Tokens(inside[:end].tolist(), own.tolist(), None),
                None if prompts is None else prompts[place],
            )
            left_out = max(len(found.input_ids) - max_length, 0)
            ids.append(found.input_ids[left_out:])
            labels.append(found.labels[left_out:])
            sample_ids.append(int(samples.sample_ids[row]))
    return Samples.from_lists(ids, labels, sample_ids)


def join_shards(job: ScoringJob, work: Work) -> None:
    """Write the models side by side, once every process has scored its shards."""
    models = job.models()
    shards = job.shards
    num_response_tokens = num_read = 0
    for index, shard in enumerate(shards):
        samples = job.samples.read(shard.start, shard.stop)
        files = {
            name: [scoring.file(work, index) for scoring in group] for name, group in models.items()
        }
        num_response_tokens += join_scores(
            files,
            job.columns,
            samples.sample_ids,
            layout.score_file(work.output, index, len(shards)),
            job.samples.fingerprint,
        )
        for scoring in job.scorings():
            rows = scoring.rows(shard)
            if scoring.own:
                num_read += int(samples.lengths[rows].sum())
            if scoring.empty:
                num_read += int(job.after_contrast(shard, samples, rows).lengths.sum())
    work.details["tokens"] = num_read
    work.details["response_tokens"] = num_response_tokens
