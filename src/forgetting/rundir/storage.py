"""Files that are there whole or not at all, checksums, and JSON files with a schema.

Knows nothing of run directories.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from forgetting.errors import InputError
from forgetting.rundir import layout


def file_sha256(file: Path) -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Mapping[str, Any] | list[Any]) -> str:
    """Checksum of a JSON value. The order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def checked_text(value: Mapping[str, Any]) -> str:
    """A JSON object with its own checksum, so that `checked_value` notices any damage."""
    return json.dumps({**value, "checksum": digest(value)}, indent=1)


def checked_value(text: str | bytes) -> dict[str, Any]:
    """What `checked_text` wrote. An object without a checksum is not checked.

    Raises:
        ValueError: the text is damaged.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    checksum = value.pop("checksum", None)
    if checksum is not None and checksum != digest(value):
        raise ValueError("its checksum does not fit its content")
    return value


def sync(file: Path) -> None:
    """Wait until a file is on the disk, so that a power cut does not empty it."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def json_text(value: Any, **options: Any) -> str:
    """JSON on one line that UTF-8 can hold.

    Half a surrogate pair, which JSON files can hold as an escape, stays one.

    Args:
        options: of `json.dumps`. By default, what is not JSON becomes its `str`.
    """
    options = {"default": str, **options}
    text = json.dumps(value, ensure_ascii=False, **options)
    return text if text.isascii() or _is_encodable(text) else json.dumps(value, **options)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_atomically(file: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new one, never a part.

    Only one process may write a file at a time. What a killed process left is overwritten.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def readable(file: Path, stage: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into one message that names the file.

    Args:
        stage: the stage that writes the file, for the message.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "file"
        reason = f"{field}: {first['msg']}"
        raise InputError(_unreadable(file, reason, stage)) from error
    # An error of json is a ValueError.
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(_unreadable(file, reason, stage)) from error


def _unreadable(file: Path, reason: str, stage: str) -> str:
    return f"{file} cannot be read ({reason}). Run `forgetting {stage}` again"


class StageSummary(BaseModel):
    """The `summary.json` of a stage. A subclass declares the fields and names its stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def stage(cls) -> str:
        """The stage that writes it."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the summary in a stage's folder.

        Raises:
            InputError: the file is missing, damaged, or lacks a field.
        """
        file = layout.summary_file(folder)
        with readable(file, cls.stage()):
            return cls.model_validate_json(file.read_bytes())

    def save(self, folder: Path) -> None:
        """Write the summary into a stage's folder."""
        write_atomically(layout.summary_file(folder), self.model_dump_json(indent=1))
