"""Reads raw records from local files, datasets on the Hub, and the demo's world.

In: the settings of one source. Out: (origin, raw record) pairs, in order. Knows nothing about
formats or about what the records are used for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from forgetting.config import MAX_RECORD_BYTES, SourceSettings
from forgetting.data.files import BINARY_FORMS, TEXT_FORMS, Pairs, form_of, read_file
from forgetting.demo.world import chat_records
from forgetting.errors import InputError, did_you_mean
from forgetting.rundir.storage import digest, file_sha256

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Origin(NamedTuple):
    """The place a record was read from."""

    name: str
    """Name of the file or dataset."""
    record: int
    """Number of the record, from 1."""
    line: int | None = None
    """Line of the file at which the record begins, from 1; None if the file has no lines."""

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.name}, record {self.record}{line}"


def read_source(
    source: SourceSettings, seed: int, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[Origin, Any]]:
    """Yield (origin, raw record) pairs, at most `source.limit` of them.

    Args:
        max_record_bytes: bytes that a record of a local file may take. In the place of one that
            cannot be read is an `Unreadable`.

    Raises:
        InputError: the source is missing, empty, or broken; the message says where.
    """
    path = Path(str(source.path))
    name = source.label if source.world is not None else str(source.path)
    if source.world is not None:
        pairs = _read_world(source, seed)
    elif is_local(source) and path.is_file():
        name = path.name
        pairs = read_file(path, source.columns, source.escaped, max_record_bytes)
    else:
        pairs = _read_dataset(source)
    number = 0
    for number, (line, raw) in enumerate(islice(pairs, source.limit), 1):
        yield Origin(name, number, line), raw
    if not number:
        raise InputError(f"{source.path or source.label} holds no records")


def is_local(source: SourceSettings) -> bool:
    """Whether a source's path is a local file or folder; anything else may be a Hub id."""
    path = str(source.path)
    if Path(path).exists():
        return True
    if form_of(path) is None and HUB_ID.fullmatch(path):
        return False
    raise InputError(f"no data file at {path}{_near_files(Path(path))}")


def source_fingerprint(source: SourceSettings) -> dict[str, Any]:
    """Identifies a source's content: its settings, and the bytes of local files."""
    settings = source.model_dump(mode="json")
    if source.world is None and is_local(source):
        path = Path(str(source.path))
        if path.is_file():
            settings["path"] = file_sha256(path)
        else:
            files = (file for file in sorted(path.rglob("*")) if file.is_file())
            settings["path"] = digest(
                {file.relative_to(path).as_posix(): file_sha256(file) for file in files}
            )
    return settings


def _read_world(source: SourceSettings, seed: int) -> Pairs:
    world = source.world
    assert world is not None
    try:
        for record in chat_records(
            world.num_records,
            seed=seed,
            noise_rate=world.noise_rate,
            noise_kinds={str(kind): weight for kind, weight in world.noise_kinds.items()},
            num_new_entities=world.num_new_entities,
        ):
            yield None, record
    except ValueError as error:
        raise InputError(f"source {source.label}: {error}") from error


def _read_dataset(source: SourceSettings) -> Pairs:
    """Read a dataset on the Hub, a folder laid out like one, or a folder of `save_to_disk`."""
    # Imported here: it takes seconds, and local files do not need it.
    import datasets

    path = str(source.path)
    saved = Path(path)
    try:
        if (saved / "dataset_dict.json").is_file():
            saved = saved / source.split
        if (saved / "state.json").is_file():
            records = datasets.load_from_disk(str(saved))
        else:
            records = datasets.load_dataset(
                path, source.subset, split=source.split, revision=source.revision, streaming=True
            )
        for record in records:
            yield None, record
    # `datasets` raises whatever its readers and the network do.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        where = (
            f"the folder {path} cannot be read as a dataset"
            if Path(path).is_dir()
            else f"{path} is not a local file and cannot be read from the Hub"
        )
        forms = ", ".join((*TEXT_FORMS, *BINARY_FORMS))
        hint = f" (data files end in {forms})" if not Path(path).exists() else ""
        hint += _near_files(Path(path)) if hint else ""
        raise InputError(f"{where}: {reason}{hint}") from error


def _near_files(path: Path) -> str:
    """A sentence with the files next to a path that are most like it, or ""."""
    if not path.parent.is_dir():
        return ""
    hint = did_you_mean(str(path), [str(f) for f in path.parent.iterdir() if f.is_file()])
    return hint and f". {hint}"
