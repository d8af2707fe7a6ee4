"""D_train with its scores on disk, shard by shard: what does not fit in memory.

Goes in: a run directory in which `prepare` and `score` are done. Comes out: the scores and what
of the samples is asked for, one shard of samples at a time, in the one order of tokens. Memory
is bounded by a shard. Knows nothing of what the scores are for.
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

from forgetting.data.samples import SampleFile, list_column, read_table, rows_in_parts
from forgetting.errors import InputError

Part = TypeVar("Part")


@dataclass(frozen=True)
class ScoreShard:
    """The scores of some neighbouring samples."""

    sample_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Response tokens of each sample, shape (samples,)."""
    columns: dict[str, NDArray]
    """Scores by name, each of shape (response tokens of the shard,)."""


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
        self._files = sorted(self.folder.glob("scores-*-of-*.parquet"))
        expected = int(self._files[0].stem.rsplit("-", 1)[1]) if self._files else 1
        if len(self._files) != expected:
            raise InputError(
                f"{self.folder} holds {len(self._files)} of {expected} shards. Score again with "
                "`forgetting score`"
            )
        self.shard_sizes = [pq.read_metadata(file).num_rows for file in self._files]
        """Samples of each shard."""
        self.num_samples = pq.read_metadata(self.train_path).num_rows
        if sum(self.shard_sizes) != self.num_samples:
            raise InputError(f"{self.folder} does not hold the samples of data/train.parquet")

    def scores(self, columns: Sequence[str]) -> Iterator[ScoreShard]:
        """Scores, a shard at a time.

        Raises:
            InputError: a shard belongs to other tokens, or holds a number that is not finite or
                no such column; the message names the shard, and the sample where there is one.
        """
        return _ahead(self._read(file, columns) for file in self._files)

    def samples(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of D_train's samples, as many rows at a time as the shards have."""
        return _ahead(rows_in_parts(self.train_path, columns, self.shard_sizes))

    def _read(self, file: Path, columns: Sequence[str]) -> ScoreShard:
        table = read_table(file, self.fingerprint)
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise InputError(f"{file} holds no {missing[0]}. Score again with `forgetting score`")
        sample_ids = table["sample_id"].to_numpy()
        found: dict[str, NDArray] = {}
        lengths = None
        for name in columns:
            values, starts = list_column(table, name)
            if lengths is not None and not np.array_equal(np.diff(starts), lengths):
                raise InputError(
                    f"{file} does not hold one {name} for each response token. Score again with "
                    "`forgetting score`"
                )
            lengths = np.diff(starts)
            if not np.isfinite(values).all():
                token = int(np.flatnonzero(~np.isfinite(values))[0])
                row = int(np.searchsorted(starts, token, side="right")) - 1
                raise InputError(
                    f"{file}: {name} of sample {sample_ids[row]} holds {values[token]}. Score "
                    "again with `forgetting score`"
                )
            found[name] = values
        assert lengths is not None
        return ScoreShard(sample_ids, lengths, found)


def _ahead(parts: Iterator[Part]) -> Iterator[Part]:
    """The same parts; the next is read while one is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = reader.submit(next, parts, None)
            yield part
