"""The conversations of D_train: what was written is read, other tokens are refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from forgetting.errors import InputError
from forgetting.formats import Message
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples, read_table, write_table
from forgetting.rundir.train_records import (
    TrainRecord,
    TrainRecordTable,
    train_records,
    write_records,
)

HOSTILE = "<script>\u2028\u202e\"'\\ \x07 é 🙂 {{7*7}}"


@pytest.fixture
def run(tmp_path):
    """A run directory with three samples."""
    data = layout.data_dir(tmp_path)
    data.mkdir()
    samples = Samples.from_lists([[1, 2], [3, 4], [5, 6]], [[-100, 2], [-100, 4], [-100, 6]])
    write_table(samples.table, layout.train_file(tmp_path))
    return tmp_path


def records():
    return [
        TrainRecord(
            number,
            HOSTILE,
            "data.jsonl",
            number + 1,
            None if number else 7,
            (Message("user", f"{HOSTILE}{number}"), Message("assistant", HOSTILE)),
        )
        for number in range(3)
    ]


def fingerprint(run):
    return Samples.read(layout.train_file(run)).fingerprint


@pytest.mark.parametrize("sizes", [None, [3], [1, 0, 2]])
def test_what_was_written_is_read(run, sizes):
    write_records(layout.data_dir(run), records())
    parts = list(train_records(run, fingerprint(run), sizes))
    assert [record for part in parts for record in part] == records()
    assert sizes is None or [len(part) for part in parts] == sizes


def test_a_table_gives_single_records(run):
    write_records(layout.data_dir(run), records())
    table = TrainRecordTable(run, fingerprint(run))
    assert [table[row] for row in (2, 0, 1)] == [records()[row] for row in (2, 0, 1)]
    assert (len(table), table.column("line")) == (3, [7, None, None])
    with pytest.raises(InputError, match="belongs to other tokens"):
        TrainRecordTable(run, "0" * 64)


def test_records_of_other_tokens_are_refused(run):
    write_records(layout.data_dir(run), records())
    with pytest.raises(InputError, match=r"train-records.parquet belongs to other tokens"):
        list(train_records(run, "0" * 64))


@pytest.mark.parametrize("text", ["{", "[1]", '[{"role": "user"}]', "null"])
def test_damaged_messages_name_the_sample(run, text):
    write_records(layout.data_dir(run), records())
    file = layout.train_records_file(layout.data_dir(run))
    table = read_table(file)
    place = table.column_names.index("messages")
    messages = pa.array([*table["messages"].to_pylist()[:2], text])
    write_table(table.set_column(place, "messages", messages), file, fingerprint(run))
    with pytest.raises(InputError, match="the messages of sample 2 cannot be read"):
        list(train_records(run, fingerprint(run)))
