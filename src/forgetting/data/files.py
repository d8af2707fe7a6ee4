"""Reads local data files, record by record.

In: the path of a file and the layout of its table. Out: (line, raw record) pairs in order. `line`
is where the record begins, counted from 1, or None if the file has no lines. In the place of a
record that has no single meaning or is too large is an `Unreadable`. In memory is at most one batch
of a file or one record, whose size is bounded. Knows nothing about formats of records.

One long module, because every file type shares the same bounds, messages and `Unreadable`.
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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.config import MAX_RECORD_BYTES
from forgetting.errors import InputError

HEADED = (".csv", ".tsv")
"""Tables whose first line may name the columns."""
TEXT_FORMS = (".json", ".jsonl", *HEADED)
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
# Raised for values that Python has no object for, such as a time in the year 30000.
_BEYOND_PYTHON = (ValueError, OverflowError)
_ESCAPE = re.compile(r"\\([nt\\])")
_UNESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}
_SPACE = re.compile(r"[ \t\r\n]*")
# Where strings, lists and objects begin and end. What follows a backslash is no mark.
_JSON_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
Pairs = Iterator[tuple[int | None, Any]]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In the place of a record that cannot be read, while the records after it can."""

    reason: str
    """What is wrong, in words that are the same for all records with this fault."""
    detail: str = ""


TOO_LARGE = Unreadable("larger than data.max_record_bytes")


def form_of(path: str) -> str | None:
    """The file name extension without that of the compression; None if it is unknown."""
    for ending in BINARY_FORMS:
        if path.endswith(ending):
            return ending
    plain = path.removesuffix(_compression(path))
    return next((form for form in TEXT_FORMS if plain.endswith(form)), None)


def read_file(
    path: Path,
    columns: Sequence[str] | None = None,
    escaped: bool = False,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Pairs:
    r"""Yield (line, raw record) pairs.

    Args:
        columns: column names of a .csv or .tsv file without a header.
        escaped: quotes in a .csv or .tsv file are ordinary text, and `\n`, `\t` and `\\` stand
            for a line break, a tab and a backslash.
        max_record_bytes: bytes that a record may take. A larger one is `TOO_LARGE`; in a .csv or
            .tsv file it is an error, because nobody knows where it ends.

    Raises:
        InputError: the file is broken, or two of its columns have one name; the message says at
            which line.
    """
    form = form_of(path.name)
    if form is None:
        raise InputError(
            f"{path}: unknown file type. Supported: {', '.join((*TEXT_FORMS, *BINARY_FORMS))}; the "
            f"first {len(TEXT_FORMS)} also with .gz, .bz2, .xz or .zst"
        )
    if form in BINARY_FORMS:
        yield from _read_columnar(path, form, max_record_bytes)
        return
    try:
        with _OPENERS[_compression(path.name)](path) as file:
            if form == ".json":
                yield from _read_json(file, path, max_record_bytes)
            elif form == ".jsonl":
                yield from _read_jsonl(file, path, max_record_bytes)
            else:
                delimiter = "\t" if form == ".tsv" else ","
                lines = _RecordLines(file, path, max_record_bytes)
                yield from _read_table(lines, path, delimiter, columns, escaped)
    except _BROKEN as error:
        raise InputError(f"{path} cannot be read to its end: {error}") from error


def _compression(path: str) -> str:
    return next((ending for ending in _OPENERS if ending and path.endswith(ending)), "")


def _bounded_lines(file: IO[bytes], path: Path, limit: int) -> Iterator[tuple[int, str | None]]:
    """Numbered lines. None: a line of more than `limit` bytes, which is passed over."""
    # Not by str.splitlines: a JSON string may hold U+2028 and the like unescaped.
    number = num_blank = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit:
            while not line.endswith(b"\n") and (line := file.readline(CHUNK_BYTES)):
                pass
            yield number, None
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, line[error.start]) from error
        num_blank = 0 if text.strip() else num_blank + len(line)
        if num_blank > limit:
            raise _too_blank(path, number, limit)
        yield number, text


def _too_blank(path: Path, line: int, limit: int) -> InputError:
    return InputError(
        f"{path} holds more than {limit:,} bytes without a record, up to line {line}. Remove the "
        "blank lines, or raise data.max_record_bytes"
    )


def _not_utf8(path: Path, line: int, byte: int) -> InputError:
    return InputError(
        f"{path} is not UTF-8: line {line} holds the byte 0x{byte:02x}. Convert the file to UTF-8"
    )


class _Objects:
    """Builds the objects of a JSON value, and notes a key that one of them has twice."""

    def __init__(self) -> None:
        self._repeated: str | None = None
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self._repeated = counts.most_common(1)[0][0]
        return found

    def forget(self) -> None:
        """Forget what was noted, before a value is read."""
        self._repeated = None

    def checked(self, value: Any) -> Any:
        """The value that was just read, or why it cannot be used."""
        if self._repeated is None:
            return value
        return Unreadable("a field is there twice", f"{self._repeated!a:.60}")


def _read_jsonl(file: IO[bytes], path: Path, limit: int) -> Pairs:
    objects = _Objects()
    for number, line in _bounded_lines(file, path, limit):
        if line is None:
            yield number, TOO_LARGE
            continue
        if not line.strip():
            continue
        objects.forget()
        try:
            value = objects.decoder.decode(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is broken JSON at line {number}: {error.msg}") from error
        except ValueError as error:
            # A number with thousands of digits.
            raise InputError(f"{path} cannot be read at line {number}: {error}") from error
        except RecursionError as error:
            raise InputError(f"{path} is nested too deeply at line {number}") from error
        yield number, objects.checked(value)


class _JsonText:
    """The text of a JSON file. Only the part being read is in memory."""

    def __init__(self, file: IO[bytes], path: Path, limit: int) -> None:
        self.file = file
        self.path = path
        self.limit = limit
        """Bytes that a value may take."""
        self.text = ""
        self.position = 0
        self.line = 1
        """Line number at `position`."""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._objects = _Objects()
        self._ended = False

    def peek(self) -> str:
        """The next character other than white space; empty at the end."""
        num_blank = 0
        while True:
            match = _SPACE.match(self.text, self.position)
            assert match is not None
            num_blank += match.end() - match.start()
            self._go_to(match.end())
            if num_blank > self.limit:
                raise _too_blank(self.path, self.line, self.limit)
            if self.position < len(self.text) or not self._read_more(CHUNK_BYTES):
                return self.text[self.position : self.position + 1]

    def skip(self) -> None:
        """Skip the character that `peek` returned."""
        self._go_to(self.position + 1)

    def value(self) -> Any:
        """The value that begins at the next character other than white space.

        Of one that is too large, or has a key twice, an `Unreadable`.
        """
        self.peek()
        size = CHUNK_BYTES
        while True:
            self._objects.forget()
            try:
                value, end = self._objects.decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                # If only the end of the text read so far cut the value off, read more.
                cut_off = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated")
                if cut_off and len(self.text) - self.position > self.limit:
                    self._pass_over()
                    return TOO_LARGE
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
                    is_large = self._num_bytes(end) > self.limit
                    self._go_to(end)
                    return TOO_LARGE if is_large else self._objects.checked(value)
            size = min(2 * size, max(self.limit, CHUNK_BYTES))

    def _num_bytes(self, end: int) -> int:
        """Bytes from the position to `end`. Exact where that matters."""
        num_characters = end - self.position
        if 4 * num_characters <= self.limit:
            return num_characters
        return len(self.text[self.position : end].encode())

    def _pass_over(self) -> None:
        """Go to the end of a value that is too large to be kept."""
        depth, in_string = 0, False
        while True:
            scanned = self.position
            for match in _JSON_MARK.finditer(self.text, self.position):
                mark, scanned = match[0], match.end()
                if mark == '"':
                    in_string = not in_string
                elif mark[0] == "\\" or in_string:
                    continue
                else:
                    depth += 1 if mark in "[{" else -1
                if not in_string and not depth:
                    self._go_to(scanned)
                    return
            # What a backslash at the end escapes is not read yet.
            is_cut = self.text.endswith("\\") and scanned < len(self.text)
            self._go_to(len(self.text) - is_cut)
            if not self._read_more(CHUNK_BYTES):
                raise self.broken("Unterminated value", len(self.text))

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


def _read_json(file: IO[bytes], path: Path, limit: int) -> Pairs:
    text = _JsonText(file, path, limit)
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


class _RecordLines:
    """The lines of a table. The reader says where a record ends, so that its size is bounded."""

    def __init__(self, file: IO[bytes], path: Path, limit: int) -> None:
        self._lines = _bounded_lines(file, path, limit)
        self._path = path
        self._limit = limit
        self._begin = 1
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        for _, line in self._lines:
            self._size += len(line or "")
            if line is None or self._size > self._limit:
                raise InputError(
                    f"{self._path}: the record of line {self._begin} takes more than "
                    f"{self._limit:,} bytes. Remove it, or raise data.max_record_bytes"
                )
            yield line

    def end_record(self, line: int) -> None:
        """The next record begins at this line."""
        self._begin, self._size = line, 0


_TABLE_ADVICE = (
    "If its first line is not a header, name the columns (`columns` or `--columns`). If its quotes "
    "are ordinary characters, say so (`escaped` or `--escaped`). Otherwise, fix the file"
)


def _read_table(
    lines: _RecordLines,
    path: Path,
    delimiter: str,
    columns: Sequence[str] | None,
    escaped: bool,
) -> Pairs:
    csv.field_size_limit(sys.maxsize)
    style: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if escaped else {}
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True, **style)
    header = columns
    line = 1
    if header is not None:
        _refuse_repeated(path, header)
    try:
        for row in reader:
            begin, line = line, reader.line_num + 1
            lines.end_record(line)
            if not row:
                continue
            if header is None:
                header = row
                _refuse_repeated(path, header)
                continue
            if len(row) > len(header):
                raise InputError(
                    f"{path}: line {begin} has more fields than the header. {_TABLE_ADVICE}"
                )
            if escaped:
                row = [_ESCAPE.sub(lambda m: _UNESCAPED[m[1]], field) for field in row]
            yield begin, dict(_padded(header, row))
    except csv.Error as error:
        raise InputError(
            f"{path} is broken at line {reader.line_num}: {error}. {_TABLE_ADVICE}"
        ) from error


def _padded(header: Sequence[str], row: Sequence[str]) -> Iterable[tuple[str, str | None]]:
    return zip(header, [*row, *[None] * (len(header) - len(row))], strict=True)


def _refuse_repeated(path: Path, names: Iterable[str]) -> None:
    """Refuse two columns of one name, of which only one could be read. Columns without a name are
    not read at all."""
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            raise InputError(
                f"{path} has {count} columns named {name}. Rename or remove all but one"
            )


def _read_columnar(path: Path, form: str, limit: int) -> Pairs:
    try:
        for batch in _parquet_batches(path) if form == ".parquet" else _arrow_batches(path):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for record in _rows(batch.slice(start, BATCH_ROWS), limit):
                    yield None, record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "Parquet" if form == ".parquet" else "Arrow"
        raise InputError(f"{path} is not a readable {kind} file: {error}") from error


def _rows(batch: Any, limit: int) -> list[Any]:
    """The records of a batch."""
    if batch.nbytes <= limit:
        try:
            return list(batch.to_pylist())
        except _BEYOND_PYTHON as error:
            _raise_broken(error)
    return [_row(batch.slice(index, 1), limit) for index in range(batch.num_rows)]


def _row(row: Any, limit: int) -> Any:
    if row.nbytes > limit:
        return TOO_LARGE
    try:
        return row.to_pylist()[0]
    except _BEYOND_PYTHON as error:
        _raise_broken(error)
        return Unreadable("a value is out of range", " ".join(str(error).split())[:200])


def _raise_broken(error: Exception) -> None:
    """Raise an error of a file that is damaged: not one value is at fault."""
    if isinstance(error, pa.ArrowException | UnicodeDecodeError):
        raise error


def _parquet_batches(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        _refuse_repeated(path, file.schema_arrow.names)
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
            _refuse_repeated(path, batch.schema.names)
            # Arrow trusts its buffers and would read beyond the end of a damaged one.
            batch.validate(full=True)
            yield batch
