"""Where raw records come from: local files, data sets on the hub, the demo's world.

Goes in: the settings of one source. Comes out: (origin, raw record) pairs, in order. Knows
nothing of formats or of what the records are used for.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.data.world import chat_records
from forgetting.errors import InputError
from forgetting.recipe import SourceSettings
from forgetting.rundir import file_sha256

TEXT_FORMS = (".json", ".jsonl", ".csv", ".tsv")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def read_source(source: SourceSettings, seed: int) -> Iterator[tuple[str, Any]]:
    """Yield (origin, raw record) pairs, at most `source.limit` of them.

    Raises:
        InputError: the source is missing, empty, or broken; the message says where.
    """
    if source.world is not None:
        pairs = _read_world(source, seed)
    elif is_local(source):
        pairs = _read_file(Path(str(source.path)))
    else:
        pairs = _read_hub(source)
    empty = True
    for pair in islice(pairs, source.limit):
        empty = False
        yield pair
    if empty:
        raise InputError(f"{source.path or source.label} holds no records")


def is_local(source: SourceSettings) -> bool:
    """Whether a source's path names a file here; anything else may be a hub id."""
    path = str(source.path)
    if Path(path).is_file():
        return True
    if Path(path).is_dir():
        raise InputError(f"{path} is a directory; name the data files in it one by one")
    if _form(path) is None and HUB_ID.fullmatch(path):
        return False
    raise InputError(f"no data file at {path}")


def source_fingerprint(source: SourceSettings) -> dict[str, Any]:
    """What identifies a source's content: settings, and the bytes of a local file."""
    settings = source.model_dump(mode="json")
    if source.world is None and is_local(source):
        settings["path"] = file_sha256(Path(str(source.path)))
    return settings


def _form(path: str) -> str | None:
    plain = path.removesuffix(".gz")
    form = next((f for f in TEXT_FORMS if plain.endswith(f)), None)
    return form or (".parquet" if path.endswith(".parquet") else None)


def _read_world(source: SourceSettings, seed: int) -> Iterator[tuple[str, Any]]:
    world = source.world
    assert world is not None
    try:
        records = chat_records(
            world.num_records,
            seed=seed,
            noise_rate=world.noise_rate,
            noise_kinds={str(kind): weight for kind, weight in world.noise_kinds.items()},
        )
        for number, record in enumerate(records, 1):
            yield f"{source.label}:{number}", record
    except ValueError as error:
        raise InputError(f"source {source.label}: {error}") from error


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    form = _form(path.name)
    if form is None:
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(TEXT_FORMS)} or .parquet"
        )
    if form == ".parquet":
        records = _read_parquet(path)
    else:
        text = _decode(_content(path), path)
        if form == ".json":
            records = _read_json(text, path)
        elif form == ".jsonl":
            records = _read_jsonl(text, path)
        else:
            records = _read_csv(text, path, "\t" if form == ".tsv" else ",")
    for number, record in enumerate(records, 1):
        yield f"{path.name}:{number}", record


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if not path.name.endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is no whole gzip file: {error}") from error


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} is not UTF-8: line {line} holds the byte 0x{content[error.start]:02x}. "
            "Convert the file to UTF-8"
        ) from error


def _read_json(text: str, path: Path) -> Iterator[Any]:
    if not text.strip():
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        # Many a .json file holds one object a line; its second line is "extra data".
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _read_jsonl(text, path)
            return
        raise InputError(f"{path} is broken JSON at line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply to be read") from error
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of records, found {type(content).__name__}")
    yield from content


def _read_jsonl(text: str, path: Path) -> Iterator[Any]:
    # Not splitlines(): a JSON string may hold U+2028 and the like unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is broken JSON at line {number}: {error.msg}") from error
        except RecursionError as error:
            raise InputError(f"{path} is nested too deeply at line {number}") from error


def _read_csv(text: str, path: Path, delimiter: str) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise InputError(f"{path}: line {reader.line_num} has more fields than the header")
            yield row
    except csv.Error as error:
        raise InputError(f"{path} is broken at line {reader.line_num}: {error}") from error


def _read_parquet(path: Path) -> Iterator[Any]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {error}") from error


def _read_hub(source: SourceSettings) -> Iterator[tuple[str, Any]]:
    # Imported here: it takes seconds, and local files do not need it.
    import datasets

    try:
        records = datasets.load_dataset(
            source.path, source.subset, split=source.split, streaming=True
        )
        for number, record in enumerate(records, 1):
            yield f"{source.path}:{number}", record
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{source.path} is no local file, and cannot be read from the hub: {reason}"
        ) from error
