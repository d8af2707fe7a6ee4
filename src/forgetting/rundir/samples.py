"""Tables of samples on disk, and the fingerprint of their tokens.

The order of tokens is the same everywhere: samples in the order of the table, and the response
tokens of a sample (labels other than -100) from left to right. Everything that is derived from a
table (scores, polarity) carries the fingerprint of its tokens. A mismatch is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.rundir.storage import sync

IGNORE_INDEX = -100
FINGERPRINT_KEY = b"forgetting.tokens"
ROWS_PER_GROUP = 1000
"""Rows of a row group, the unit of reading."""
READ_BUFFER = 1 << 20
SAMPLE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("source", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("noise", pa.list_(pa.int8())),
        ("noise_kind", pa.string()),
        # One per response token; null: all are 1.
        ("weights", pa.list_(pa.float32())),
        # Whether its response is one to forget; null: it is not.
        ("is_negative", pa.bool_()),
    ]
)


def write_table(table: pa.Table, path: Path, fingerprint: str | None = None) -> None:
    """Write a table as Parquet, atomically, with the fingerprint of its tokens."""
    if fingerprint is not None:
        table = table.replace_schema_metadata({FINGERPRINT_KEY: fingerprint.encode()})
    partial = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table, partial, compression="zstd", row_group_size=ROWS_PER_GROUP)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class TableWriter:
    """Writes rows as Parquet with one row group in memory.

    The file appears when the context ends without an error.
    """

    def __init__(self, path: Path, schema: pa.Schema, group_size: int) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._schema = schema
        self._group_size = group_size
        self._columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        self._num_waiting = 0

    def __enter__(self) -> TableWriter:
        self._writer = pq.ParquetWriter(self._partial, self._schema, compression="zstd")
        return self

    def write(self, row: dict[str, Any]) -> None:
        """Write one row; columns that it lacks are null."""
        for name, values in self._columns.items():
            values.append(row.get(name))
        self._num_waiting += 1
        if self._num_waiting == self._group_size:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.table(self._columns, schema=self._schema))
        self._columns = {name: [] for name in self._schema.names}
        self._num_waiting = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._num_waiting:
                self._flush()
            self._writer.close()
            if kind is None:
                sync(self._partial)
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)


class ResponseWriter:
    """Writes values of response tokens with the samples' identities, a row group at a time.

    Args:
        file: the Parquet file.
        fingerprint: of the samples.
        columns: name and type of each value.
    """

    def __init__(self, file: Path, fingerprint: str, columns: Mapping[str, pa.DataType]) -> None:
        lists_of = [(name, pa.list_(kind)) for name, kind in columns.items()]
        self._schema = pa.schema(
            [("sample_id", pa.int64()), *lists_of], {FINGERPRINT_KEY: fingerprint.encode()}
        )
        self._file = file

    def __enter__(self) -> Self:
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        return self

    def write_group(
        self, sample_ids: NDArray[np.int64], starts: NDArray[np.int64], *values: NDArray
    ) -> None:
        """Write a row group.

        Args:
            sample_ids: shape (samples,).
            starts: sample i has the tokens [starts[i], starts[i + 1]); shape (samples + 1,).
            values: of each column, shape (response tokens of these samples,).
        """
        columns = [sample_ids, *(lists(each, starts) for each in values)]
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error of reading a file into an `InputError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def read_table(path: Path, fingerprint: str | None = None) -> pa.Table:
    """Read a table that `write_table` wrote.

    Args:
        fingerprint: of the tokens that it must belong to; None: any.

    Raises:
        InputError: the file is missing or broken, or belongs to other tokens.
    """
    with _reading(path):
        table = pq.read_table(path)
    if fingerprint is not None:
        _check_fingerprint(path, table.schema, fingerprint)
    return table


def check_fingerprint(path: Path, fingerprint: str) -> None:
    """Refuse a table that belongs to other tokens, without reading its rows.

    Raises:
        InputError: the file is missing or broken, or belongs to other tokens.
    """
    with _reading(path):
        schema = pq.read_schema(path)
    _check_fingerprint(path, schema, fingerprint)


def _check_fingerprint(path: Path, schema: pa.Schema, fingerprint: str) -> None:
    found = (schema.metadata or {}).get(FINGERPRINT_KEY, b"").decode()
    advice = "Run its stage again, or all with `forgetting run`"
    require_fingerprint(path, found, fingerprint, advice)


def require_fingerprint(path: Path, found: str, expected: str, advice: str) -> None:
    """Refuse a file that belongs to other tokens.

    Args:
        found: the fingerprint in the file, or "".
        expected: the fingerprint of the corpus.
        advice: what the user can do.

    Raises:
        InputError: the fingerprints differ.
    """
    if found != expected:
        raise InputError(
            f"{path} belongs to other tokens than those of the corpus (fingerprint "
            f"{found[:12] or 'missing'}, expected {expected[:12]}). {advice}"
        )


class Samples:
    """The samples of one split, as arrays.

    Args:
        table: with the columns of `SAMPLE_SCHEMA`.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        # All tokens of the table, concatenated; sample i is [token_starts[i], token_starts[i + 1]).
        self.input_ids, self.token_starts = list_column(self.table, "input_ids")
        self.labels, _ = list_column(self.table, "labels")
        self.is_response = response_mask(self.labels, self.token_starts)
        per_sample = num_response_tokens(self.is_response, self.token_starts)
        self.response_starts = np.r_[0, np.cumsum(per_sample)]
        """Sample i's response tokens are [response_starts[i], response_starts[i + 1])."""

    @classmethod
    def read(cls, path: Path) -> Samples:
        """Read a split that `prepare` wrote."""
        return cls(read_table(path))

    @classmethod
    def from_lists(
        cls,
        input_ids: Sequence[Sequence[int]],
        labels: Sequence[Sequence[int]],
        sample_ids: Sequence[int] | None = None,
    ) -> Samples:
        """Samples from token ids and labels.

        Args:
            sample_ids: id of each sample. Default: sample i has the id i.

        Raises:
            ValueError: ids and labels of a sample differ in length, or a sample is empty.
        """
        if len(input_ids) != len(labels):
            raise ValueError(f"{len(input_ids)} samples, but labels for {len(labels)}")
        for index, (ids, row) in enumerate(zip(input_ids, labels, strict=True)):
            if len(ids) != len(row) or not len(ids):
                raise ValueError(f"sample {index} has {len(ids)} tokens and {len(row)} labels")
        columns = {
            "sample_id": list(range(len(input_ids)) if sample_ids is None else sample_ids),
            "source": [""] * len(input_ids),
            "input_ids": [list(ids) for ids in input_ids],
            "labels": [list(row) for row in labels],
            "noise": [None] * len(input_ids),
            "noise_kind": [None] * len(input_ids),
            "weights": [None] * len(input_ids),
            "is_negative": [None] * len(input_ids),
        }
        return cls(pa.table(columns, schema=SAMPLE_SCHEMA))

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """Id of each sample, shape (samples,)."""
        return self.table["sample_id"].to_numpy()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, shape (samples,)."""
        return np.diff(self.token_starts)

    @property
    def num_response_tokens(self) -> NDArray[np.int64]:
        """Response tokens of each sample, shape (samples,)."""
        return np.diff(self.response_starts)

    @property
    def response_ids(self) -> NDArray[np.int32]:
        """Ids of all response tokens, shape (response tokens,)."""
        return self.input_ids[self.is_response]

    @property
    def fingerprint(self) -> str:
        """Checksum of all tokens, labels and sample boundaries."""
        return _fingerprint([self])

    def per_response_token(self, per_sample: NDArray) -> NDArray:
        """Values per sample, repeated for each response token."""
        return np.repeat(per_sample, self.num_response_tokens)

    @property
    def weights(self) -> NDArray[np.float32]:
        """Weight of each response token by its turn, shape (response tokens,)."""
        weights = np.ones(self.response_ids.size, np.float32)
        values, _ = list_column(self.table, "weights")
        known = self.table["weights"].is_valid().to_numpy(zero_copy_only=False)
        weights[self.per_response_token(known)] = values
        return weights

    @property
    def is_negative(self) -> NDArray[np.bool_]:
        """Whether each sample's response is one to forget, shape (samples,)."""
        return negative_column(self.table)

    def noise(self) -> NDArray[np.bool_] | None:
        """Known noise, shape (response tokens,); None unless it is known for every sample."""
        column = self.table["noise"]
        if column.null_count or not len(self):
            return None
        flags, _ = list_column(self.table, "noise")
        return flags.astype(bool)

    def aligned(self, per_response: NDArray, fill: int = 0) -> pa.ListArray:
        """Values of response tokens as lists as long as `input_ids`, with `fill` elsewhere."""
        values = np.full(self.input_ids.size, fill, dtype=per_response.dtype)
        values[self.is_response] = per_response
        return pa.ListArray.from_arrays(pa.array(self.token_starts, pa.int32()), pa.array(values))


class SampleFile:
    """A part of the corpus on disk, read by ranges of samples.

    Args:
        path: a table that `write_table` wrote, with the columns of `SAMPLE_SCHEMA`.

    Raises:
        InputError: the file is missing or broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path):
            self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._group_starts = np.r_[0, np.cumsum(sizes, dtype=np.int64)]

    def __len__(self) -> int:
        return int(self._group_starts[-1])

    def read(self, begin: int, end: int) -> Samples:
        """Samples `begin` to `end`, not included."""
        # A group overlaps the range if it starts before its end and ends after its start.
        first = int(np.searchsorted(self._group_starts, begin, side="right")) - 1
        last = int(np.searchsorted(self._group_starts, end, side="left"))
        with _reading(self.path):
            table = self._file.read_row_groups(range(first, max(first, last)))
        offset = begin - int(self._group_starts[first])
        return Samples(table.slice(offset, end - begin))

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the whole table, equal to `Samples.fingerprint`."""
        ranges = zip(self._group_starts[:-1].tolist(), self._group_starts[1:].tolist(), strict=True)
        return _fingerprint(self.read(begin, end) for begin, end in ranges)


def _fingerprint(parts: Iterable[Samples]) -> str:
    """One checksum per column, so that the result does not depend on how the table is cut."""
    columns = [hashlib.sha256() for _ in range(4)]
    for samples in parts:
        arrays = (samples.sample_ids, samples.lengths, samples.input_ids, samples.labels)
        for checksum, array in zip(columns, arrays, strict=True):
            checksum.update(np.ascontiguousarray(array).data)
    return hashlib.sha256(b"".join(column.digest() for column in columns)).hexdigest()


def rows_in_parts(
    path: Path, columns: Sequence[str], sizes: Iterable[int] | None = None
) -> Iterator[pa.Table]:
    """Columns of a table that `write_table` wrote, in parts, in bounded memory.

    Args:
        sizes: rows of each part; by default at most 1,000.

    Raises:
        InputError: the file is missing or broken.
    """
    # Buffered, because a row group can be as large as the file.
    with _reading(path), pq.ParquetFile(path, buffer_size=READ_BUFFER) as file:
        schema = file.schema_arrow
        # One row group at a time: an iterator over several keeps all earlier pages in memory.
        batches = chain.from_iterable(
            file.iter_batches(ROWS_PER_GROUP, row_groups=[group], columns=list(columns))
            for group in range(file.num_row_groups)
        )
        if sizes is None:
            yield from (pa.Table.from_batches([batch]) for batch in batches)
            return
        pending = schema.empty_table().select(list(columns))
        for size in sizes:
            parts = [pending]
            while sum(part.num_rows for part in parts) < size:
                parts.append(pa.Table.from_batches([next(batches)]))
            pending = pa.concat_tables(parts)
            yield pending.slice(0, size).combine_chunks()
            pending = pending.slice(size)


def response_mask(labels: NDArray, token_starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens are response tokens, shape (tokens,)."""
    mask = labels != IGNORE_INDEX
    # The first token of a sample has no context.
    mask[token_starts[:-1]] = False
    return mask


def num_response_tokens(
    is_response: NDArray[np.bool_], token_starts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Response tokens of each sample, shape (samples,)."""
    return np.add.reduceat(is_response, token_starts[:-1], dtype=np.int64)


def negative_column(table: pa.Table) -> NDArray[np.bool_]:
    """The column `is_negative`, shape (rows,)."""
    return table["is_negative"].fill_null(False).to_numpy(zero_copy_only=False).astype(bool)


def list_column(table: pa.Table, name: str) -> tuple[NDArray, NDArray[np.int64]]:
    """A list column as a flat array and the starts of its rows, shape (rows + 1,)."""
    column = table[name].combine_chunks()
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.r_[0, np.cumsum(lengths, dtype=np.int64)]
    return column.flatten().to_numpy(zero_copy_only=False), starts


def lists(values: NDArray, starts: NDArray) -> pa.ListArray:
    """The inverse of `list_column`."""
    offsets = pa.array(np.asarray(starts), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values))
