"""The conversations of D_train as text, one row for each sample, in the order of D_train.

`write_records` writes them, `train_records` reads them in parts, and `TrainRecordTable` gives
single ones. Both refuse records of other tokens. A run keeps them because the detector plants noise
into texts, and an export holds texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.formats import Message
from forgetting.rundir import layout
from forgetting.rundir.samples import (
    FINGERPRINT_KEY,
    ROWS_PER_GROUP,
    SampleFile,
    TableWriter,
    check_fingerprint,
    read_table,
    rows_in_parts,
)

AGAIN = "Prepare the run again with `forgetting prepare`"
_COLUMNS = [
    ("sample_id", pa.int64()),
    ("source", pa.string()),
    ("file", pa.string()),
    ("record", pa.int64()),
    ("line", pa.int64()),
    ("messages", pa.string()),
    ("tools", pa.string()),
]


@dataclass(frozen=True, slots=True)
class TrainRecord:
    """A record of D_train."""

    sample_id: int
    source: str
    file: str
    """Name of the file or data set that it was read from."""
    record: int
    """Its number in the file, from 1."""
    line: int | None
    """The line where it begins; None if the file has no lines."""
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tools that the responses may call, as JSON objects."""


def write_records(data: Path, records: Iterable[TrainRecord]) -> None:
    """Write the records of D_train, whose tokens are written, into the folder of the corpus.

    Memory is bounded by a group of rows.
    """
    fingerprint = SampleFile(layout.split_file(data, "train")).fingerprint
    schema = pa.schema(_COLUMNS, {FINGERPRINT_KEY: fingerprint.encode()})
    with TableWriter(layout.train_records_file(data), schema, ROWS_PER_GROUP) as writer:
        for record in records:
            row = {name: getattr(record, name) for name, _ in _COLUMNS}
            turns = [message.dump() for message in record.messages]
            row["messages"] = json.dumps(turns, ensure_ascii=False)
            row["tools"] = json.dumps(record.tools, ensure_ascii=False)
            writer.write(row)


def train_records(
    run: Path, fingerprint: str, sizes: Sequence[int] | None = None
) -> Iterator[list[TrainRecord]]:
    """The records of D_train in parts, in bounded memory.

    Args:
        fingerprint: of D_train.
        sizes: records of each part; default: parts of at most 1,000.

    Raises:
        InputError: the records are missing or damaged, or belong to other tokens.
    """
    file = layout.train_records_file(layout.data_dir(run))
    check_fingerprint(file, fingerprint)
    for part in rows_in_parts(file, [name for name, _ in _COLUMNS], sizes):
        yield [_record(file, row) for row in part.to_pylist()]


def records_at(run: Path, fingerprint: str, places: NDArray[np.int64]) -> Iterator[TrainRecord]:
    """Some records of D_train in any order. In memory are the texts of all.

    Args:
        fingerprint: of D_train.
        places: of the records in D_train, from 0.

    Raises:
        InputError: as `train_records`.
    """
    file = layout.train_records_file(layout.data_dir(run))
    table = read_table(file, fingerprint)
    for begin in range(0, len(places), ROWS_PER_GROUP):
        rows = table.take(pa.array(places[begin : begin + ROWS_PER_GROUP]))
        yield from (_record(file, row) for row in rows.to_pylist())


class TrainRecordTable:
    """The records of D_train by their place in it. In memory is the table, messages as JSON text.

    Args:
        run: the run directory.
        fingerprint: of D_train.

    Raises:
        InputError: as `train_records`.
    """

    def __init__(self, run: Path, fingerprint: str) -> None:
        self._file = layout.train_records_file(layout.data_dir(run))
        check_fingerprint(self._file, fingerprint)
        parts = rows_in_parts(self._file, [name for name, _ in _COLUMNS])
        self._table = pa.concat_tables(parts).combine_chunks()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, row: int) -> TrainRecord:
        return _record(self._file, self._table.slice(row, 1).to_pylist()[0])

    def column(self, name: str) -> list[Any]:
        """A field of all records."""
        return list(self._table[name].to_pylist())


def _record(file: Path, row: dict[str, object]) -> TrainRecord:
    try:
        messages = tuple(map(Message.load, json.loads(str(row["messages"]))))
        tools = tuple(json.loads(str(row["tools"])))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{file}: the messages of sample {row['sample_id']} cannot be read. {AGAIN}"
        ) from error
    return TrainRecord(**{**row, "messages": messages, "tools": tools})  # type: ignore[arg-type]
