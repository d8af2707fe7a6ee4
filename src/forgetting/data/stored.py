"""The conversation of a record that a run stores, as the tokenization reads it."""

from __future__ import annotations

from forgetting.data.records import Record
from forgetting.data.sources import Origin
from forgetting.rundir.train_records import TrainRecord


def as_record(record: TrainRecord) -> Record:
    """The conversation of a stored record."""
    origin = Origin(record.file, record.record, record.line)
    return Record(record.messages, record.source, origin, tools=tuple(record.tools))
