"""Scores of D_train's response tokens: Parquet shards, one row per sample, one value per token.

A shard holds the samples of one range of D_train, in order, and carries the fingerprint of all of
D_train. Its columns are `sample_id` and, for the models `base` and `reference`, `log_probs`
(float32, nats) and, if a measure needs them, `entropy` (float32, nats, of the whole prediction)
and `rank` (int32, number of tokens that the model finds more probable; 0 is greedy).

`write_scores` writes what one model makes of some samples, `join_scores` puts two models side by
side in one shard, and `ScoredCorpus` is the only reader: it never returns scores that do not fit
their tokens. Memory is bounded by one shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.samples import (
    SampleFile,
    Samples,
    list_column,
    lists,
    num_response_tokens,
    read_table,
    response_mask,
    rows_in_parts,
    write_table,
)

MODELS = ("base", "reference")
LOG_PROBS = ("base_log_probs", "reference_log_probs")
AGAIN = "Score again with `forgetting score`"
Part = TypeVar("Part")


def write_scores(
    path: Path,
    samples: Samples,
    rows: NDArray[np.integer],
    columns: dict[str, NDArray[Any]],
    fingerprint: str,
) -> None:
    """Write the scores of some samples under one model.

    Args:
        rows: which of `samples`, in order.
        columns: by name, without the model's; each of shape (response tokens of `rows`,).
        fingerprint: of D_train.
    """
    starts = np.r_[0, np.cumsum(samples.num_response_tokens[rows])]
    table = pa.table(
        {
            "sample_id": samples.sample_ids[rows],
            **{name: lists(values, starts) for name, values in columns.items()},
        }
    )
    write_table(table, path, fingerprint)


def join_scores(base: Path, references: Sequence[Path], path: Path, fingerprint: str) -> int:
    """Write a shard from the scores of both models; returns its number of response tokens.

    Args:
        base: a file of `write_scores` with the shard's samples, in the shard's order.
        references: files of `write_scores` that together hold the same samples.
        fingerprint: of D_train.
    """
    untrained = read_table(base, fingerprint)
    tuned = pa.concat_tables(read_table(part, fingerprint) for part in references)
    tuned = tuned.take(pc.index_in(untrained["sample_id"], tuned["sample_id"]))
    columns = {"sample_id": untrained["sample_id"]}
    for model, table in zip(MODELS, (untrained, tuned), strict=True):
        columns |= {f"{model}_{name}": table[name] for name in table.column_names[1:]}
    joined = pa.table(columns)
    write_table(joined, path, fingerprint)
    _, starts = list_column(joined, LOG_PROBS[0])
    return int(starts[-1])


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


class ScoredCorpus:
    """D_train with its scores, read one shard at a time.

    Args:
        run: the run directory.
        fingerprint: of D_train, if the caller knows it; by default it is computed.

    Raises:
        InputError: a shard is missing, or the shards hold other samples than D_train.
    """

    def __init__(self, run: Path, fingerprint: str | None = None) -> None:
        self.train_path = layout.train_file(run)
        self.fingerprint = fingerprint or SampleFile(self.train_path).fingerprint
        """Of the tokens of D_train."""
        self.folder = layout.scores_dir(run)
        self._files = _shard_files(self.folder)
        self.shard_sizes = [_num_rows(file) for file in self._files]
        """Samples of each shard."""
        self.num_samples = pq.read_metadata(self.train_path).num_rows
        if sum(self.shard_sizes) != self.num_samples:
            raise InputError(
                f"{self.folder} does not hold the samples of {self.train_path}: it has scores of "
                f"{sum(self.shard_sizes)} samples, and D_train has {self.num_samples}. {AGAIN}"
            )

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
        parts = rows_in_parts(self.train_path, list(needed), self.shard_sizes)
        walk = zip(self._files, parts, strict=True)
        return _ahead(self._read(file, part, columns, sample_columns) for file, part in walk)

    def samples(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of D_train's samples, in parts as large as the shards."""
        return _ahead(rows_in_parts(self.train_path, columns, self.shard_sizes))

    def _read(
        self, file: Path, part: pa.Table, columns: Sequence[str], sample_columns: Sequence[str]
    ) -> ScoreShard:
        table = read_table(file, self.fingerprint)
        sample_ids = table["sample_id"].to_numpy()
        if not np.array_equal(sample_ids, part["sample_id"].to_numpy()):
            raise InputError(f"{file} does not hold the samples of {self.train_path}. {AGAIN}")
        labels, token_starts = list_column(part, "labels")
        lengths = num_response_tokens(response_mask(labels, token_starts), token_starts)
        found = {name: _score_column(file, table, name, lengths) for name in columns}
        return ScoreShard(sample_ids, lengths, found, part.select(list(sample_columns)))


def _score_column(file: Path, table: pa.Table, name: str, lengths: NDArray[np.int64]) -> NDArray:
    """One column of a shard: a finite number for each response token."""
    if name not in table.column_names:
        raise InputError(f"{file} has no {name}. {AGAIN}")
    values, starts = list_column(table, name)
    sample_ids = table["sample_id"].to_numpy()
    different = np.flatnonzero(np.diff(starts) != lengths)
    if different.size:
        row = int(different[0])
        raise InputError(
            f"{file}: {name} of sample {sample_ids[row]} has {starts[row + 1] - starts[row]} "
            f"values for {lengths[row]} response tokens. {AGAIN}"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        row = int(np.searchsorted(starts, bad[0], side="right")) - 1
        raise InputError(
            f"{file}: {name} of sample {sample_ids[row]} holds {values[bad[0]]}. {AGAIN}"
        )
    return values


def _shard_files(folder: Path) -> list[Path]:
    files = layout.score_files(folder)
    if not files:
        raise InputError(f"{folder} holds no scores. {AGAIN}")
    num_shards = layout.num_shards(files[0])
    expected = [layout.score_file(folder, index, num_shards) for index in range(num_shards)]
    missing = [file.name for file in expected if file not in files]
    if missing or len(files) != num_shards:
        which = f", without {missing[0]}" if missing else ""
        raise InputError(f"{folder} holds {len(files)} of {num_shards} shards{which}. {AGAIN}")
    return files


def _num_rows(file: Path) -> int:
    try:
        return pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read: {error}. {AGAIN}") from error


def _ahead(parts: Iterator[Part]) -> Iterator[Part]:
    """The same parts, reading the next one while the current one is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            yield part
