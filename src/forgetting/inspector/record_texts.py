"""The records behind the samples: messages as the user wrote them, their place, their own fields.

Input: the records that the run stores and, where there are some, the tokenization and the data.
Output: what the page shows of a sample next to its tokens. Text is made on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from forgetting.data.alignment import Tokenization, TokenPlace
from forgetting.data.stored import as_record
from forgetting.errors import InputError
from forgetting.escaping import visible
from forgetting.formats import Unusable
from forgetting.rundir.storage import json_text
from forgetting.rundir.train_records import TrainRecord, TrainRecordTable

MAX_VALUE = 2000
"""Characters of a field's value that are shown."""
SURELY_SAME = 20
"""Length from which a value that is a part of a message is a part of the prompt, not a chance."""


class RecordTexts:
    """Text around the samples of D_train.

    Args:
        table: the records, one for each sample.
        tokenization: tells which characters a token covers. Without it, tokens have no places.
    """

    def __init__(self, table: TrainRecordTable, tokenization: Tokenization | None = None) -> None:
        self._table = table
        self._tokenization = tokenization
        self._fields: dict[int, list[tuple[str, str]]] = {}
        names = ("source", "file", "line", "record")
        self._source, self._file, self._line, self._record = map(table.column, names)

    def add_fields(self, source: str, records: Iterable[tuple[int, Any]]) -> None:
        """Add the fields of a source's records that are in no message.

        Args:
            source: label of the source.
            records: (number of the record, the record as it is in the data).
        """
        places = enumerate(zip(self._source, self._record, strict=True))
        row_of = {number: row for row, (name, number) in places if name == source}
        for number, raw in records:
            row = row_of.get(number)
            if row is not None and isinstance(raw, Mapping):
                fields = other_fields(raw, [m.content for m in self._table[row].messages])
                if fields:
                    self._fields[row] = fields

    def order(self) -> list[int]:
        """Rows of D_train in the order of the data."""
        key = list(zip(self._source, self._record, strict=True))
        return sorted(range(len(key)), key=key.__getitem__)

    def origin(self, row: int) -> dict[str, Any]:
        """Where a sample's record is."""
        return {
            "file": visible(self._file[row]),
            "line": self._line[row],
            "row": self._record[row],
        }

    def text(self, row: int) -> str:
        """What is searched: the messages, the fields as `name: value`, and the file."""
        parts = [message.content for message in self._table[row].messages]
        parts += [f"{name}: {value}" for name, value in self._fields.get(row, ())]
        return "\n".join([*parts, self._file[row]])

    def shown(self, row: int, num_tokens: int) -> dict[str, Any]:
        """Messages, fields and places of tokens, as the page reads them.

        Args:
            num_tokens: first response tokens that are shown.
        """
        record = self._table[row]
        places = self._places(record, num_tokens)
        lengths = [len(message.content) for message in record.messages]
        fields = self._fields.get(row, [])
        return {
            "messages": [
                [visible(message.role), visible(_with_extra(message.content, message.extra))]
                for message in record.messages
            ],
            "fields": [[visible(name), visible(_cut(value))] for name, value in fields],
            "places": places and [number for place in places for number in place],
            # Tokens that are the end of a response, and no text of it.
            "ends": [
                token
                for token, place in enumerate(places or ())
                if place.start >= lengths[place.message]
            ],
        }

    def _places(self, record: TrainRecord, num_tokens: int) -> list[TokenPlace] | None:
        """The characters of each token; None if they cannot be known."""
        if self._tokenization is None:
            return None
        try:
            places = self._tokenization.token_places(as_record(record))
        except (Unusable, InputError):
            return None
        return places[:num_tokens] if len(places) >= num_tokens else None


def other_fields(record: Mapping[str, Any], messages: Iterable[str]) -> list[tuple[str, str]]:
    """Fields of a record that are not shown as messages, with their values as text."""
    known = {message.strip() for message in messages}
    whole = "\n".join(known)
    return [
        (str(name), value if isinstance(value, str) else json_text(value))
        for name, value in record.items()
        if not _is_message(value, known, whole)
    ]


def _is_message(value: Any, known: set[str], whole: str) -> bool:
    """Whether a field's value is text of the messages, or a list of messages."""
    if isinstance(value, str):
        text = value.strip()
        return not text or text in known or (len(text) >= SURELY_SAME and text in whole)
    if isinstance(value, Mapping):
        return any(text.strip() in known for text in _strings(value))
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and _is_message(item, known, whole) for item in value)
    )


def _strings(value: Mapping[str, Any]) -> Iterator[str]:
    yield from (each for each in value.values() if isinstance(each, str))


def _with_extra(content: str, extra: Mapping[str, Any] | None) -> str:
    """A message with what it holds next to its text, such as calls of tools."""
    return f"{content}\n{json_text(dict(extra))}".strip("\n") if extra else content


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"
