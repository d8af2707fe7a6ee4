"""D_train with its scores on disk, shard by shard: what does not fit in memory.

Goes in: a run directory in which `prepare` and `score` are done. Comes out: the scores and what
of the samples is asked for, one shard of samples at a time, in the one order of tokens. This is
the one place that reads scores, and it hands out none that do not fit their tokens. Memory is
bounded by a shard. Knows nothing of what the scores are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.rundir.samples import (
    SampleFile,
    list_column,
    num_response_tokens,
    read_table,
    response_mask,
    rows_in_parts,
)
from forgetting.rundir.score_files import shard_name

AGAIN = "Score again with `forgetting score`"
Part = TypeVar("Part")


@dataclass(frozen=True)
class ScoreShard:
    """The scores of some neighbouring samples."""

    sample_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Response tokens of each sample, shape (samples,)."""
    columns: dict[str, NDArray]
    """Scores by name, each of shape (response tokens of the shard,)."""
    samples: pa.Table
    """What was asked for of the samples."""


class ScoredCorpus:
    """D_train and its scores.

    Args:
        run: the run directory.

    Raises:
        InputError: a shard is missing, or the shards hold other samples than D_train.
    """

    def __init__(self, run: Path) -> None:
        self.train_path = run / "data" / "train.parquet"
        self.fingerprint = SampleFile(self.train_path).fingerprint
        """Of the tokens of D_train."""
        self.folder = run / "scores"
        self._files = _shard_files(self.folder)
        self.shard_sizes = [_num_rows(file) for file in self._files]
        """Samples of each shard."""
        self.num_samples = pq.read_metadata(self.train_path).num_rows
        if sum(self.shard_sizes) != self.num_samples:
            raise InputError(
                f"{self.folder} holds {sum(self.shard_sizes)} samples, and so does not hold the "
                f"samples of data/train.parquet, which are {self.num_samples}. {AGAIN}"
            )

    def scores(
        self, columns: Sequence[str], sample_columns: Sequence[str] = ()
    ) -> Iterator[ScoreShard]:
        """Scores and the samples that they belong to, a shard at a time.

        Raises:
            InputError: a shard belongs to other tokens, lacks a column, holds other samples, not
                one number for each response token or one that is not finite; the message names
                the shard, and the sample where there is one.
        """
        needed = dict.fromkeys(("sample_id", "labels", *sample_columns))
        parts = rows_in_parts(self.train_path, list(needed), self.shard_sizes)
        walk = zip(self._files, parts, strict=True)
        return _ahead(self._read(file, part, columns, sample_columns) for file, part in walk)

    def samples(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of D_train's samples, as many rows at a time as the shards have."""
        return _ahead(rows_in_parts(self.train_path, columns, self.shard_sizes))

    def _read(
        self, file: Path, part: pa.Table, columns: Sequence[str], sample_columns: Sequence[str]
    ) -> ScoreShard:
        table = read_table(file, self.fingerprint)
        sample_ids = table["sample_id"].to_numpy()
        if not np.array_equal(sample_ids, part["sample_id"].to_numpy()):
            raise InputError(f"{file} does not hold the samples of data/train.parquet. {AGAIN}")
        labels, token_starts = list_column(part, "labels")
        lengths = num_response_tokens(response_mask(labels, token_starts), token_starts)
        found: dict[str, NDArray] = {}
        for name in columns:
            if name not in table.column_names:
                raise InputError(f"{file} has no {name}. {AGAIN}")
            values, starts = list_column(table, name)
            different = np.flatnonzero(np.diff(starts) != lengths)
            if different.size:
                row = int(different[0])
                raise InputError(
                    f"{file}: {name} of sample {sample_ids[row]} has "
                    f"{starts[row + 1] - starts[row]} values for {lengths[row]} response tokens. "
                    f"{AGAIN}"
                )
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                row = int(np.searchsorted(starts, bad[0], side="right")) - 1
                raise InputError(
                    f"{file}: {name} of sample {sample_ids[row]} holds {values[bad[0]]}. {AGAIN}"
                )
            found[name] = values
        return ScoreShard(sample_ids, lengths, found, part.select(list(sample_columns)))


def _shard_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("scores-*-of-*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no scores. {AGAIN}")
    num_shards = int(files[0].stem.rsplit("-", 1)[1])
    expected = [folder / shard_name(index, num_shards) for index in range(num_shards)]
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
    """The same parts; the next is read while one is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            yield part
