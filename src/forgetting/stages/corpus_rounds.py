"""Learns D_train part by part; the model so far says which tokens of the next part are learned.

Input: D_train and its scores under the base model. Output: the model after all parts but the last,
and for every response token its log-probability under the model of the parts before its own, and
the polarity that follows. The work folder keeps the scores and the selection of every part and the
newest model, from which an interrupted run goes on. The processes of a run work together. Memory
use is one shard and one model. No more than two trained models are on disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.method.measures import MEASURES
from forgetting.method.selection import Chunk, divide, spare_ends
from forgetting.models.adapters import SharedBase
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.samples import (
    ResponseWriter,
    SampleFile,
    Samples,
    list_column,
    read_table,
)
from forgetting.rundir.scores import LOG_PROBS, ScoredCorpus
from forgetting.rundir.selections import WEIGHED, PolarityWriter, own_polarity
from forgetting.rundir.stats import DataSummary
from forgetting.stages.corpus_scores import ModelScoring, ScoringJob, score_with
from forgetting.stages.recipe_parts import parts_of_train, steps_before_last
from forgetting.stages.ties import check_ties
from forgetting.training.checkpoints import is_whole, seal
from forgetting.training.dataset import trainer_columns
from forgetting.training.fit import Start, fine_tune

BASE, REFERENCE = LOG_PROBS


@dataclass(frozen=True)
class _Piece:
    """The samples of a part that are in one shard."""

    shard: int
    """Its number."""
    samples: Samples
    base: NDArray[np.float32]
    """Log-probabilities under the base model, shape (response tokens of the samples,)."""


class Evolution:
    """The rounds of one variant.

    Args:
        recipe: the recipe.
        variant: name of a variant with rounds.
        run: the run directory, with scores of the base model.
        work: of the stage.
    """

    def __init__(self, recipe: Recipe, variant: str, run: Path, work: Work) -> None:
        self.recipe, self.variant, self.work = recipe, variant, work
        self.settings = recipe.variants[variant]
        samples, label = SampleFile(layout.train_file(run)), f"Scoring for {variant}"
        self.job = ScoringJob(recipe, run, samples, [REFERENCE], label=label)
        self.corpus = ScoredCorpus(run, samples.fingerprint)
        self.data = DataSummary.load(layout.data_dir(run))
        rounds = self.settings.rounds
        assert rounds is not None
        self.parts = parts_of_train(len(samples), rounds)
        self.last = rounds - 2
        """The last part that is learned here."""

    def run(self) -> None:
        """Do the rounds that are missing, and write the output."""
        first = self._num_finished()
        # No process begins a round while another one still looks.
        self.work.processes.wait()
        for index in range(first, len(self.parts)):
            if index:
                self._score(index, index - 1)
            self._select(index)
            if index <= self.last:
                self._train(index)
        # Nothing is selected by it: so that the first part has a quality to show, too.
        self._score(0, self.last)
        if self.work.processes.is_main:
            self._publish()

    def _num_finished(self) -> int:
        """How many parts are scored, selected and learned."""

        def is_selected(index: int) -> bool:
            files = [self._selection(index)]
            files += [self._scores(index, shard) for shard in self._ranges(index) if index]
            return all(map(self.work.has, files))

        for index in range(self.last, -1, -1):
            whole = is_whole(self._work_on(index).output)
            if whole and all(map(is_selected, range(index + 1))):
                return index + 1
        return 0

    def _score(self, index: int, model: int) -> None:
        """Score a part under the model that has learned the parts up to another one."""
        processes, shards = self.work.processes, self.job.shards
        covers = np.zeros(len(self.job.samples), dtype=bool)
        covers[self.parts[index].start : self.parts[index].stop] = True
        path = self._work_on(model).output
        scoring = ModelScoring(self._name(index), path, covers, ("log_probs",))
        own = list(self._ranges(index))[processes.index :: processes.count]
        base = SharedBase(self.recipe.model)
        score_with(self.job, self.work, {n: shards[n] for n in own}, scoring, base, is_last=True)
        processes.wait()

    def _select(self, index: int) -> None:
        """Write which tokens of a part are learned."""
        file = self._selection(index)
        if self.work.processes.is_main and not self.work.has(file):
            ends = self.data.end_token_ids if self.settings.selection.keep_eos else []
            with PolarityWriter(file, self.corpus.fingerprint) as writer:
                for piece, chosen in zip(self._pieces(index), self._chosen(index), strict=True):
                    samples = piece.samples
                    is_negative = samples.per_response_token(samples.is_negative)
                    polarity = np.full(is_negative.size, -1, np.int8)
                    polarity[~is_negative] = chosen
                    spare_ends(polarity, samples.response_ids, is_negative, ends)
                    writer.write(samples.sample_ids, polarity, samples.response_starts)
            self.work.keep(file)
        self.work.processes.wait()

    def _chosen(self, index: int) -> Iterator[NDArray[np.int8]]:
        """Polarity of the tokens of a part by shard, without samples to forget."""
        measure = MEASURES[self.settings.selection.quality]

        def ranked() -> Iterator[Chunk]:
            for piece in self._pieces(index):
                columns = {BASE: piece.base, REFERENCE: self._own(index, piece) if index else None}
                quality = measure.compute(*(columns[name] for name in measure.columns))
                is_ranked = piece.samples.per_response_token(~piece.samples.is_negative)
                yield quality.astype(np.float32, copy=False)[is_ranked], None

        if index:
            division = divide(ranked, self.settings.selection.rho)
            check_ties(division, "tokens")
            yield from division.polarity(ranked())
            return
        for piece in self._pieces(index):
            number = piece.samples.num_response_tokens[~piece.samples.is_negative].sum()
            yield np.ones(number, np.int8)

    def _train(self, index: int) -> None:
        """Go on with the model of the parts before, on the selected tokens of a part."""
        recipe, own = self.recipe, self._work_on(index)
        own.output.mkdir(parents=True, exist_ok=True)
        # The next round begins with the adapter.
        training = recipe.training.model_copy(update={"merge": False})
        start = None
        if index:
            steps = (training.num_steps(len(part)) for part in self.parts[:index])
            start = Start(self._work_on(index - 1).output, sum(steps))
        label = f"Training {self.variant}, part {index + 1} of {len(self.parts)}"
        ends = self.data.end_token_ids
        fine_tune(recipe, training, self.settings, self._tables(index), label, own, ends, start)
        own.processes.wait()
        if own.processes.is_main:
            seal(own.output)
            for earlier in range(index):
                shutil.rmtree(self._work_on(earlier).path, ignore_errors=True)
        own.processes.wait()

    def _tables(self, index: int) -> Iterator[pa.Table]:
        """The samples of a part, with the columns of the trainer."""
        has_weights = self.data.splits["train"].weighted_tokens > 0
        for piece, polarity in self._selected(index):
            weights = piece.samples.weights if has_weights else None
            yield pa.table(trainer_columns(piece.samples, polarity, token_weights=weights))

    def _publish(self) -> None:
        """Write the model, and the scores and selections of all parts as one table."""
        model = layout.evolved_model_dir(self.work.output)
        # A part of it may be there from before.
        shutil.rmtree(model, ignore_errors=True)
        trained = self._work_on(self.last).output
        shutil.copytree(trained, model, ignore=shutil.ignore_patterns(layout.SEAL))
        num_trained = num_scored = 0
        file = layout.own_scores_file(self.work.output)
        columns = {REFERENCE: pa.float32(), "polarity": pa.int8()}
        with ResponseWriter(file, self.corpus.fingerprint, columns) as writer:
            for index in range(len(self.parts)):
                for piece, polarity in self._selected(index):
                    samples, own = piece.samples, self._own(index, piece)
                    writer.write_group(samples.sample_ids, samples.response_starts, own, polarity)
                    num_scored += samples.input_ids.size
                    num_trained += samples.input_ids.size * (index <= self.last)
        num_tokens = round(self.recipe.training.epochs * num_trained) + num_scored
        steps = steps_before_last(self.recipe, len(self.job.samples), len(self.parts))
        self.work.details |= {"tokens": num_tokens, "steps": steps}

    def _work_on(self, index: int) -> Work:
        """Work on the training on one part, within that of the stage."""
        return Work(self.work.path / f"part-{index}", self.work.processes)

    def _selection(self, index: int) -> Path:
        return self.work.path / f"selection-{index}.parquet"

    def _scores(self, index: int, shard: int) -> Path:
        return self.work.path / f"{self._name(index)}-{shard:05d}.parquet"

    def _name(self, index: int) -> str:
        return f"round-{index}"

    def _ranges(self, index: int) -> dict[int, range]:
        """The samples of a part in each shard that has some, counted from its first."""
        part, found = self.parts[index], {}
        for number, shard in enumerate(self.job.shards):
            begin, end = max(part.start, shard.start), min(part.stop, shard.stop)
            if begin < end:
                found[number] = range(begin - shard.start, end - shard.start)
        return found

    def _pieces(self, index: int) -> Iterator[_Piece]:
        """A part of D_train by shard."""
        for number, rows in self._ranges(index).items():
            shard = self.corpus.shard(number, [BASE], ["sample_id", *WEIGHED])
            starts = np.r_[0, np.cumsum(shard.lengths)]
            samples = Samples(shard.samples.slice(rows.start, len(rows)))
            yield _Piece(
                number, samples, shard.columns[BASE][starts[rows.start] : starts[rows.stop]]
            )

    def _own(self, index: int, piece: _Piece) -> NDArray[np.float32]:
        """Log-probabilities of a piece under the model that scored it."""
        table = read_table(self._scores(index, piece.shard), self.corpus.fingerprint)
        return list_column(table, "log_probs")[0]

    def _selected(self, index: int) -> Iterator[tuple[_Piece, NDArray[np.int8]]]:
        """A part by shard, with its polarity."""
        sizes = [len(rows) for rows in self._ranges(index).values()]
        return zip(self._pieces(index), own_polarity(self._selection(index), sizes), strict=True)
