"""Copies a data file without some of its records.

Input: a file that `data.files` reads, and the numbers of the records to leave out. Output: a file
of the same form and compression. In text files, every byte that does not belong to one of these
records stays as it is; in Parquet and Arrow files the schema does. A JSON file with one list is
read whole; of others, memory is a line or a batch. Knows nothing of why a record is left out.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
from collections.abc import Callable, Container, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.data.files import form_of

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


def copy_without(
    source: Path,
    target: Path,
    left_out: Container[int],
    *,
    has_header: bool = True,
    escaped: bool = False,
) -> None:
    """Copy a data file without some records.

    Args:
        source: a file that `data.files.read_file` reads to its end.
        target: file to write, of the same name or at least the same endings.
        left_out: numbers of records, from 1, as `data.sources` counts them.
        has_header: whether the first row of a .csv or .tsv file names the columns.
        escaped: as in `read_file`.
    """
    form = form_of(source.name)
    if form == ".parquet":
        _copy_parquet(source, target, left_out)
        return
    if form == ".arrow":
        _copy_arrow(source, target, left_out)
        return
    with _opened(source, "rb") as stream, _opened(target, "wb") as out:
        if form == ".json":
            _copy_json(stream, out, left_out)
        elif form == ".jsonl":
            _copy_lines(stream, out, left_out)
        else:
            delimiter = "\t" if form == ".tsv" else ","
            _copy_table(stream, out, left_out, delimiter, has_header, escaped)


def _opened(path: Path, mode: str) -> Any:
    if path.suffix == ".zst":
        stream = pa.input_stream if mode == "rb" else pa.output_stream
        opened = stream(str(path), compression="zstd")
        return io.BufferedReader(opened) if mode == "rb" else opened
    return _OPENERS.get(path.suffix, open)(path, mode)


def _copy_lines(stream: IO[bytes], out: IO[bytes], left_out: Container[int]) -> None:
    number = 0
    for index, line in enumerate(stream):
        # As the reader decides which lines are records.
        if line.decode("utf-8-sig" if not index else "utf-8").strip():
            number += 1
            if number in left_out:
                continue
        out.write(line)


def _copy_table(
    stream: IO[bytes],
    out: IO[bytes],
    left_out: Container[int],
    delimiter: str,
    has_header: bool,
    escaped: bool,
) -> None:
    csv.field_size_limit(sys.maxsize)
    pending: list[bytes] = []

    def lines() -> Iterator[str]:
        for index, line in enumerate(stream):
            pending.append(line)
            yield line.decode("utf-8-sig" if not index else "utf-8")

    style: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if escaped else {}
    number = -1 if has_header else 0
    for row in csv.reader(lines(), delimiter=delimiter, strict=True, **style):
        number += bool(row)
        if not row or number < 1 or number not in left_out:
            out.writelines(pending)
        pending.clear()


def _copy_json(stream: IO[bytes], out: IO[bytes], left_out: Container[int]) -> None:
    text = stream.read().decode("utf-8")
    position = _skip(text, 1 if text.startswith("\ufeff") else 0)
    is_list = text.startswith("[", position)
    spans = _values(text, _skip(text, position + 1) if is_list else position)
    kept = [span for number, span in enumerate(spans, 1) if number not in left_out]
    if len(kept) == len(spans):
        out.write(text.encode())
        return
    first, last = (spans[0][0], spans[-1][1]) if spans else (position, position)
    out.write(text[:first].encode())
    # What separates two records goes with the one before it.
    follower = {end: begin for (_, end), (begin, _) in pairwise(spans)}
    for index, (begin, end) in enumerate(kept):
        stop = end if index == len(kept) - 1 else follower[end]
        out.write(text[begin:stop].encode())
    out.write(text[last:].encode())


def _values(text: str, position: int) -> list[tuple[int, int]]:
    """Where each value is, in a list or one after another."""
    spans = []
    while position < len(text) and text[position] != "]":
        _, end = _DECODER.raw_decode(text, position)
        spans.append((position, end))
        position = _skip(text, end)
        if text.startswith(",", position):
            position = _skip(text, position + 1)
    return spans


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _copy_parquet(source: Path, target: Path, left_out: Container[int]) -> None:
    with pq.ParquetFile(source) as file:
        codec = file.metadata.row_group(0).column(0).compression if file.num_row_groups else "NONE"
        schema = file.schema_arrow
        with pq.ParquetWriter(target, schema, compression=codec.lower()) as writer:
            for batch in _kept(file.iter_batches(), left_out):
                writer.write_batch(batch)


def _copy_arrow(source: Path, target: Path, left_out: Container[int]) -> None:
    with pa.OSFile(str(source)) as opened:
        try:
            file = pa.ipc.open_file(opened)
        except pa.ArrowInvalid:
            opened.seek(0)
            stream = pa.ipc.open_stream(opened)
            writer = pa.ipc.new_stream(str(target), stream.schema)
            batches: Iterator[Any] = iter(stream)
        else:
            writer = pa.ipc.new_file(str(target), file.schema)
            batches = map(file.get_batch, range(file.num_record_batches))
        with writer:
            for batch in _kept(batches, left_out):
                writer.write_batch(batch)


def _kept(batches: Iterator[Any], left_out: Container[int]) -> Iterator[Any]:
    number = 0
    for batch in batches:
        mask = [number + row + 1 not in left_out for row in range(batch.num_rows)]
        number += batch.num_rows
        kept = batch.filter(pa.array(mask, pa.bool_()))
        if kept.num_rows:
            yield kept
