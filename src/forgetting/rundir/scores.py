"""Scores of response tokens: Parquet shards, one row per sample, one value per token.

A shard holds the samples of one range of D_train (or of the probe), in order, and carries the
fingerprint of all of them. Its columns are `sample_id` and those of `method.columns` that the
recipe needs: `<pass>_<statistic>`, int32 for ranks, float32 for all others.

`write_scores` writes what one model makes of some samples, `join_scores` puts the models side by
side in one shard, and `ScoredSamples` is the only reader: it never returns scores that do not fit
their tokens. Memory is bounded by one shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.method.columns import POSTERIOR, split_column
from forgetting.rundir import layout
from forgetting.rundir.findings import posterior_parts, require_lengths
from forgetting.rundir.samples import (
    SampleFile,
    Samples,
    check_fingerprint,
    list_column,
    lists,
    num_response_tokens,
    read_table,
    response_mask,
    rows_in_parts,
    write_table,
)

REFERENCE = "reference_log_probs"
LOG_PROBS = ("base_log_probs", REFERENCE)
EMPTY = "empty_"
"""Before the names of a model's statistics with an empty prompt."""
Part = TypeVar("Part")


def write_scores(
    path: Path,
    samples: Samples,
    rows: NDArray[np.integer],
    columns: dict[str, NDArray[Any]],
    fingerprint: str,
) -> None:
    """Write the scores of some samples.

    Args:
        rows: which of `samples`, in order.
        columns: by name, each of shape (response tokens of `rows`,). For `join_scores` without the
            name of the model, such as `rank` or `empty_rank`.
        fingerprint: of all samples that are scored.
    """
    starts = np.r_[0, np.cumsum(samples.num_response_tokens[rows])]
    table = pa.table(
        {
            "sample_id": samples.sample_ids[rows],
            **{name: lists(values, starts) for name, values in columns.items()},
        }
    )
    write_table(table, path, fingerprint)


def join_scores(
    models: Mapping[str, Sequence[Path]],
    columns: Sequence[str],
    sample_ids: NDArray[np.int64],
    path: Path,
    fingerprint: str,
) -> int:
    """Write a shard from the scores of each model; returns its number of response tokens.

    Args:
        models: by `base` and `reference`, files of `write_scores` that together hold the samples
            of the shard.
        columns: of the shard, at least one.
        sample_ids: of the shard, in its order.
        fingerprint: of all samples that are scored.
    """
    tables = {}
    for model, files in models.items():
        table = pa.concat_tables(read_table(file, fingerprint) for file in files)
        tables[model] = table.take(pc.index_in(pa.array(sample_ids), table["sample_id"]))
    found: dict[str, Any] = {"sample_id": sample_ids}
    for column in columns:
        model, name = model_column(column)
        found[column] = tables[model][name]
    joined = pa.table(found)
    write_table(joined, path, fingerprint)
    _, starts = list_column(joined, columns[0])
    return int(starts[-1])


def model_column(column: str) -> tuple[str, str]:
    """The model of a score column, and the column's name without it."""
    name, statistic = split_column(column)
    model, is_empty, _ = name.partition("_empty")
    return model, f"{EMPTY if is_empty else ''}{statistic}"


def has_scores(run: Path) -> bool:
    """Whether there are scores in the run, fitting or not."""
    return bool(layout.score_files(layout.scores_dir(run)))


@dataclass(frozen=True)
class ScoreShard:
    """The scores of consecutive samples."""

    sample_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Response tokens of each sample, shape (samples,)."""
    columns: dict[str, NDArray]
    """Scores by name, each of shape (response tokens of the shard,)."""
    samples: pa.Table
    """The requested columns of the samples."""


class ScoredSamples:
    """Samples with their scores, read one shard at a time.

    Args:
        path: the samples.
        folder: the shards of their scores.
        fingerprint: of the samples.
        stage: the stage that writes the scores, for messages.

    Raises:
        InputError: a shard is missing, or the shards hold other samples.
    """

    def __init__(self, path: Path, folder: Path, fingerprint: str, stage: str) -> None:
        self.path = path
        self.folder = folder
        self.fingerprint = fingerprint
        """Fingerprint of the samples."""
        self.num_samples = pq.read_metadata(path).num_rows
        self._again = f"Score again with `forgetting {stage}`"
        self._files = self._shard_files()
        self.shard_sizes = [self._num_rows(file) for file in self._files]
        """Samples of each shard."""
        if sum(self.shard_sizes) != self.num_samples:
            raise InputError(
                f"{folder} does not hold the samples of {path}: it has scores of "
                f"{sum(self.shard_sizes)} samples, and there are {self.num_samples}. {self._again}"
            )

    @property
    def column_names(self) -> list[str]:
        """The scores that are there."""
        with unreadable(self._files[0], self._again):
            return [name for name in pq.read_schema(self._files[0]).names if name != "sample_id"]

    def scores(
        self, columns: Sequence[str], sample_columns: Sequence[str] = ()
    ) -> Iterator[ScoreShard]:
        """Scores and their samples, one shard at a time.

        Raises:
            InputError: a shard belongs to other tokens, lacks a column, holds other samples, or
                does not have one finite number per response token. The message names the shard
                and, if there is one, the sample.
        """
        needed = dict.fromkeys(("sample_id", "labels", *sample_columns))
        parts = rows_in_parts(self.path, list(needed), self.shard_sizes)
        walk = zip(self._files, parts, strict=True)
        return _ahead(self._read(file, part, columns, sample_columns) for file, part in walk)

    def shard(
        self, index: int, columns: Sequence[str], sample_columns: Sequence[str] = ()
    ) -> ScoreShard:
        """One shard of `scores`, without reading the others.

        Raises:
            InputError: as `scores`.
        """
        end = sum(self.shard_sizes[: index + 1])
        part = SampleFile(self.path).read(end - self.shard_sizes[index], end).table
        return self._read(self._files[index], part, columns, sample_columns)

    def samples(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the samples, in parts as large as the shards."""
        return _ahead(rows_in_parts(self.path, columns, self.shard_sizes))

    def _read(
        self, file: Path, part: pa.Table, columns: Sequence[str], sample_columns: Sequence[str]
    ) -> ScoreShard:
        table = read_table(file, self.fingerprint)
        sample_ids = table["sample_id"].to_numpy()
        if not np.array_equal(sample_ids, part["sample_id"].to_numpy()):
            raise InputError(f"{file} does not hold the samples of {self.path}. {self._again}")
        labels, token_starts = list_column(part, "labels")
        lengths = num_response_tokens(response_mask(labels, token_starts), token_starts)
        found = {name: self._column(file, table, name, lengths) for name in columns}
        return ScoreShard(sample_ids, lengths, found, part.select(list(sample_columns)))

    def _column(
        self, file: Path, table: pa.Table, name: str, lengths: NDArray[np.int64]
    ) -> NDArray:
        """One column of a shard: a finite number for each response token."""
        if name not in table.column_names:
            raise InputError(f"{file} has no {name}. {self._again}")
        values, starts = list_column(table, name)
        sample_ids = table["sample_id"].to_numpy()
        different = np.flatnonzero(np.diff(starts) != lengths)
        if different.size:
            row = int(different[0])
            raise InputError(
                f"{file}: {name} of sample {sample_ids[row]} has {starts[row + 1] - starts[row]} "
                f"values for {lengths[row]} response tokens. {self._again}"
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            row = int(np.searchsorted(starts, bad[0], side="right")) - 1
            raise InputError(
                f"{file}: {name} of sample {sample_ids[row]} holds {values[bad[0]]}. {self._again}"
            )
        return values

    def _shard_files(self) -> list[Path]:
        folder = self.folder
        files = layout.score_files(folder)
        if not files:
            raise InputError(f"{folder} holds no scores. {self._again}")
        num_shards = layout.num_shards(files[0])
        expected = [layout.score_file(folder, index, num_shards) for index in range(num_shards)]
        missing = [file.name for file in expected if file not in files]
        if missing or len(files) != num_shards:
            which = f", without {missing[0]}" if missing else ""
            raise InputError(
                f"{folder} holds {len(files)} of {num_shards} shards{which}. {self._again}"
            )
        return files

    def _num_rows(self, file: Path) -> int:
        with unreadable(file, self._again):
            return pq.read_metadata(file).num_rows


class ScoredCorpus(ScoredSamples):
    """D_train with its scores and, if the detector has run, its posterior.

    Args:
        run: the run directory.
        fingerprint: of D_train, if the caller knows it; by default it is computed.
        own: log-probabilities under a variant's own reference, see `layout.own_scores_file`, to
            use in the place of those of the run's reference.

    Raises:
        InputError: a shard is missing, or the shards hold other samples than D_train.
    """

    def __init__(self, run: Path, fingerprint: str | None = None, own: Path | None = None) -> None:
        train = layout.train_file(run)
        fingerprint = fingerprint or SampleFile(train).fingerprint
        super().__init__(train, layout.scores_dir(run), fingerprint, "score")
        self._run = run
        self._own = own
        if own is not None:
            check_fingerprint(own, fingerprint)

    @property
    def column_names(self) -> list[str]:
        """The scores that are there."""
        found = super().column_names
        return found if self._own is None else list(dict.fromkeys((*found, REFERENCE)))

    def scores(
        self, columns: Sequence[str], sample_columns: Sequence[str] = ()
    ) -> Iterator[ScoreShard]:
        """As `ScoredSamples.scores`; `posterior` may be among the columns."""
        elsewhere = {POSTERIOR} if self._own is None else {POSTERIOR, REFERENCE}
        shards = super().scores([c for c in columns if c not in elsewhere], sample_columns)
        if self._own is not None and REFERENCE in columns:
            shards = self._with_own(shards, self._own)
        return self._with_posterior(shards) if POSTERIOR in columns else shards

    def _with_posterior(self, shards: Iterator[ScoreShard]) -> Iterator[ScoreShard]:
        parts = posterior_parts(self._run, self.fingerprint, self.shard_sizes)
        for shard, part in zip(shards, parts, strict=True):
            file = layout.posterior_file(layout.detector_dir(self._run))
            require_lengths(file, part.lengths, shard.lengths)
            yield replace(shard, columns={**shard.columns, POSTERIOR: part.posterior})

    def _with_own(self, shards: Iterator[ScoreShard], file: Path) -> Iterator[ScoreShard]:
        parts = rows_in_parts(file, ["sample_id", REFERENCE], self.shard_sizes)
        for shard, part in zip(shards, parts, strict=True):
            values = self._column(file, part, REFERENCE, shard.lengths)
            yield replace(shard, columns={**shard.columns, REFERENCE: values})


@contextmanager
def unreadable(file: Path, advice: str) -> Iterator[None]:
    """Turn what goes wrong with a shard into bad input."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read: {error}. {advice}") from error


def _ahead(parts: Iterator[Part]) -> Iterator[Part]:
    """The same parts, reading the next one while the current one is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            yield part
