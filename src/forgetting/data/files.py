"""Reads local data files, record by record.

In: the path of a file and the layout of its table. Out: (line, raw record) pairs in order. `line`
is where the record begins, counted from 1, or None if the file has no lines. At most one batch of
a file is in memory. Knows nothing about formats of records.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.errors import InputError

TEXT_FORMS = (".json", ".jsonl", ".csv", ".tsv")
BINARY_FORMS = (".parquet", ".arrow")
BATCH_ROWS = 256
CHUNK_BYTES = 1 << 20
_OPENERS: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(pa.input_stream(str(path), compression="zstd")),
}
# Raised by the compression and column libraries for broken content.
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
_ESCAPE = re.compile(r"\\([nt\\])")
_UNESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
Pairs = Iterator[tuple[int | None, Any]]


def form_of(path: str) -> str | None:
    """The file name extension without that of the compression; None if it is unknown."""
    for ending in BINARY_FORMS:
        if path.endswith(ending):
            return ending
    plain = path.removesuffix(_compression(path))
    return next((form for form in TEXT_FORMS if plain.endswith(form)), None)


def read_file(path: Path, columns: Sequence[str] | None = None, escaped: bool = False) -> Pairs:
    r"""Yield (line, raw record) pairs.

    Args:
        columns: column names of a .csv or .tsv file without a header.
        escaped: quotes in a .csv or .tsv file are ordinary text, and `\n`, `\t` and `\\` stand
            for a line break, a tab and a backslash.

    Raises:
        InputError: the file is broken; the message says at which line.
    """
    form = form_of(path.name)
    if form is None:
        raise InputError(
            f"{path}: unknown file type. Supported: {', '.join((*TEXT_FORMS, *BINARY_FORMS))}; the "
            f"first {len(TEXT_FORMS)} also with .gz, .bz2, .xz or .zst"
        )
    if form in BINARY_FORMS:
        yield from _read_columnar(path, form)
        return
    try:
        with _OPENERS[_compression(path.name)](path) as file:
            if form == ".json":
                yield from _read_json(file, path)
            elif form == ".jsonl":
                yield from _read_jsonl(file, path)
            else:
                delimiter = "\t" if form == ".tsv" else ","
                yield from _read_table(file, path, delimiter, columns, escaped)
    except _BROKEN as error:
        raise InputError(f"{path} cannot be read to its end: {error}") from error


def _compression(path: str) -> str:
    return next((ending for ending in _OPENERS if ending and path.endswith(ending)), "")


def _decoded_lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, str]]:
    # Not by str.splitlines: a JSON string may hold U+2028 and the like unescaped.
    for number, line in enumerate(file, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, line[error.start]) from error


def _not_utf8(path: Path, line: int, byte: int) -> InputError:
    return InputError(
        f"{path} is not UTF-8: line {line} holds the byte 0x{byte:02x}. Convert the file to UTF-8"
    )


def _read_jsonl(file: IO[bytes], path: Path) -> Pairs:
    for number, line in _decoded_lines(file, path):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is broken JSON at line {number}: {error.msg}") from error
        except ValueError as error:
            # A number with thousands of digits.
            raise InputError(f"{path} cannot be read at line {number}: {error}") from error
        except RecursionError as error:
            raise InputError(f"{path} is nested too deeply at line {number}") from error


class _JsonText:
    """The text of a JSON file. Only the part being read is in memory."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file = file
        self.path = path
        self.text = ""
        self.position = 0
        self.line = 1
        """Line number at `position`."""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._ended = False

    def peek(self) -> str:
        """The next character other than white space; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.position)
            assert match is not None
            self._go_to(match.end())
            if self.position < len(self.text) or not self._read_more(CHUNK_BYTES):
                return self.text[self.position : self.position + 1]

    def skip(self) -> None:
        """Skip the character that `peek` returned."""
        self._go_to(self.position + 1)

    def value(self) -> Any:
        """The value that begins at the next character other than white space."""
        self.peek()
        size = CHUNK_BYTES
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                # If only the end of the text read so far cut the value off, read more.
                cut_off = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated")
                if not cut_off or not self._read_more(size):
                    raise self.broken(error.msg, error.pos) from error
            except ValueError as error:
                raise InputError(
                    f"{self.path} cannot be read in the record of line {self.line}: {error}"
                ) from error
            except RecursionError as error:
                raise InputError(
                    f"{self.path} is nested too deeply in the record of line {self.line}"
                ) from error
            else:
                # A number cut off after `1` may continue with `e+`.
                if end < len(self.text) - 2 or not self._read_more(size):
                    self._go_to(end)
                    return value
            size *= 2

    def broken(self, message: str, position: int) -> InputError:
        """An error that names the line."""
        if position == len(self.text):
            # Something missing at the end is reported on the last line with text.
            position = len(self.text.rstrip())
        line = self.line + self.text.count("\n", self.position, position)
        return InputError(f"{self.path} is broken JSON at line {line}: {message}")

    def _go_to(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _read_more(self, size: int) -> bool:
        while not self._ended:
            content = self.file.read(size)
            self._ended = not content
            try:
                more = self._decoder.decode(content, final=self._ended)
            except UnicodeDecodeError as error:
                line = self.line + self.text.count("\n", self.position)
                line += error.object.count(b"\n", 0, error.start)
                raise _not_utf8(self.path, line, error.object[error.start]) from error
            if more:
                self.text = self.text[self.position :] + more
                self.position = 0
                return True
        return False


def _read_json(file: IO[bytes], path: Path) -> Pairs:
    text = _JsonText(file, path)
    first = text.peek()
    if first == "{":
        # Some .json files hold one object after another.
        line, record = text.line, text.value()
        if text.peek() == "":
            raise InputError(f"{path}: expected a list of records, found one dict")
        yield line, record
        while text.peek():
            yield text.line, text.value()
    elif first == "[":
        text.skip()
        while text.peek() != "]":
            yield text.line, text.value()
            if text.peek() == ",":
                text.skip()
            elif text.peek() != "]":
                raise text.broken("Expecting ',' delimiter", text.position)
        text.skip()
        if text.peek():
            raise text.broken("Extra data", text.position)
    elif first:
        found = type(text.value()).__name__
        raise InputError(f"{path}: expected a list of records, found {found}")


def _read_table(
    file: IO[bytes], path: Path, delimiter: str, columns: Sequence[str] | None, escaped: bool
) -> Pairs:
    csv.field_size_limit(sys.maxsize)
    style: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if escaped else {}
    lines = (line for _, line in _decoded_lines(file, path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True, **style)
    header = columns
    line = 1
    try:
        for row in reader:
            begin, line = line, reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = row
                continue
            if len(row) > len(header):
                raise InputError(f"{path}: line {begin} has more fields than the header")
            if escaped:
                row = [_ESCAPE.sub(lambda m: _UNESCAPED[m[1]], field) for field in row]
            yield begin, dict(_padded(header, row))
    except csv.Error as error:
        raise InputError(f"{path} is broken at line {reader.line_num}: {error}") from error


def _padded(header: Sequence[str], row: Sequence[str]) -> Iterable[tuple[str, str | None]]:
    return zip(header, [*row, *[None] * (len(header) - len(row))], strict=True)


def _read_columnar(path: Path, form: str) -> Pairs:
    try:
        for batch in _parquet_batches(path) if form == ".parquet" else _arrow_batches(path):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for record in batch.slice(start, BATCH_ROWS).to_pylist():
                    yield None, record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "Parquet" if form == ".parquet" else "Arrow"
        raise InputError(f"{path} is not a readable {kind} file: {error}") from error


def _parquet_batches(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Batches of both layouts: the stream, as `datasets` writes it, and the file (Feather)."""
    with pa.OSFile(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        else:
            batches = map(file.get_batch, range(file.num_record_batches))
        for batch in batches:
            # Arrow trusts its buffers and would read beyond the end of a damaged one.
            batch.validate(full=True)
            yield batch
