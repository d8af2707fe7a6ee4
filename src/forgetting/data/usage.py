"""Which fields of raw records nobody reads.

In: a raw record, as a file has it. Out: the same record as a `TrackedFields`, which afterwards
lists the keys that the reader of its format did not look at. Knows nothing about formats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from forgetting.turns import decoded, is_turns

EXAMPLE_LENGTH = 60
DECODED = frozenset({"messages", "conversations", "history", "tools", "functions"})
"""Fields with lists. In tables they are text."""
TEXTS_OR_TURNS = frozenset({"prompt", "completion", "response", "chosen", "rejected"})
"""Fields with a text, or with turns, which are text in tables."""
TEMPLATE_MARKS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|user|>",
    "<|assistant|>",
    "<|channel|>",
    "<start_of_turn>",
    "<|start|>",
    "[INST]",
    "<<SYS>>",
    "### Instruction:",
    "### Response:",
)
"""What chat templates begin turns with."""
_ANY_MARK = re.compile("|".join(map(re.escape, TEMPLATE_MARKS)))


class TrackedFields(dict[str, Any]):
    """A record, or a part of one, that remembers which of its keys were read.

    Objects in it, and objects in its lists, are tracked too. Looking whether a key is there does
    not read it; going over all keys reads all of them.

    Args:
        raw: the record; it is not changed.
        path: where the part is in the record, such as `messages[]`.
    """

    def __init__(self, raw: Mapping[str, Any], path: str = "") -> None:
        super().__init__(raw)
        self._path = path
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key not in self._read:
            self._read.add(key)
            value = self._tracked(key, value)
            super().__setitem__(key, value)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        # Through `__getitem__`, which dict.get would not call.
        return self[key] if key in self else default  # noqa: SIM401

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():
            self._read.add(key)
            yield key

    def keys(self) -> Any:
        self._read.update(super().keys())
        return super().keys()

    def values(self) -> Any:
        self._read.update(super().keys())
        return super().values()

    def items(self) -> Any:
        self._read.update(super().keys())
        return super().items()

    def _tracked(self, key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return TrackedFields(value, _joined(self._path, str(key)))
        if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
            path = _joined(self._path, f"{key}[]")
            return [
                TrackedFields(part, path) if isinstance(part, Mapping) else part for part in value
            ]
        return value

    def unread(self) -> Iterator[tuple[str, Any]]:
        """(path, value) of each key that was not read and holds something, parts included."""
        for key, value in super().items():
            if key not in self._read:
                if value not in (None, "", [], {}):
                    yield _joined(self._path, str(key)), value
                continue
            for part in value if isinstance(value, list) else (value,):
                if isinstance(part, TrackedFields):
                    yield from part.unread()


def tracked(raw: Mapping[str, Any], fields: Mapping[str, str]) -> TrackedFields:
    """A record with the names of its format, with lists in place of their text.

    Tables hold turns, tools and histories as JSON text, or as Python writes lists.

    Args:
        fields: as in `renamed`.
    """
    record = dict(renamed(raw, fields))
    for name in (DECODED | TEXTS_OR_TURNS).intersection(record):
        value = record[name]
        if not isinstance(value, str) or not value.lstrip().startswith("["):
            continue
        try:
            found = decoded(value)
        except ValueError:
            # The reader of the field reports it.
            continue
        if name in DECODED or is_turns(found):
            record[name] = found
    return TrackedFields(record)


def renamed(raw: Mapping[str, Any], fields: Mapping[str, str]) -> Mapping[str, Any]:
    """A record whose keys have the names that a format expects.

    Args:
        fields: the record's key for each expected name.
    """
    if not fields:
        return raw
    taken = set(fields.values()) - set(fields)
    others = {key: value for key, value in raw.items() if key not in taken}
    return {**others, **{name: raw.get(key) for name, key in fields.items()}}


def example_of(value: Any) -> str:
    """A value as short JSON."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= EXAMPLE_LENGTH else f"{text[: EXAMPLE_LENGTH - 3]}..."


def find_template_mark(text: str) -> str | None:
    """The first template mark that is written out in a text."""
    match = _ANY_MARK.search(text)
    return match and match[0]


def _joined(path: str, name: str) -> str:
    # A tree repeats the same keys at every depth.
    if path == name or path.endswith(f".{name}"):
        return path
    return f"{path}.{name}" if path else name
