"""Output folders that are complete or absent, and files of rows in them.

Knows nothing of their content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.errors import InputError
from forgetting.rundir.folders import check_place, new_folder
from forgetting.rundir.samples import ROWS_PER_GROUP

Format = Literal["parquet", "jsonl"]
MARK = "export.json"
"""Marks a folder as an export and lists its files. If it holds no others, it may be replaced."""
ROWS_AT_ONCE = 100


def check_output(output: Path, replace: bool) -> None:
    """Refuse an output folder that cannot be written, before any work.

    Raises:
        InputError: `output` exists and is not an export, or may not be replaced.
    """
    if not output.exists() and not output.is_symlink():
        return
    check_place(output)
    if output.is_symlink() or not output.is_dir():
        raise InputError(f"{output} is not a folder. Choose another one with --output")
    if not any(output.iterdir()):
        return
    if not replace:
        raise InputError(
            f"{output} exists. Replace it with --force, or choose another folder with --output"
        )
    own = _own_files(output)
    if own is None:
        raise InputError(
            f"{output} was not written by `forgetting export` and is not replaced. Choose another "
            "folder with --output"
        )
    strangers = [
        path.relative_to(output).as_posix()
        for path in sorted(output.rglob("*"))
        if not path.is_dir() and path.relative_to(output).as_posix() not in own
    ]
    if strangers:
        raise InputError(
            f"{output} holds {strangers[0]}, which `forgetting export` did not write, and is not "
            "replaced. Move the file, or choose another folder with --output"
        )


def _own_files(output: Path) -> set[str] | None:
    """The files of an export by their paths in it; None if it is no export."""
    try:
        files = json.loads((output / MARK).read_text(encoding="utf-8"))["files"]
        return {MARK, *(str(name) for name in files)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_own(output: Path) -> bool:
    check_output(output, True)
    return True


@contextmanager
def whole_folder(output: Path, about: Mapping[str, Any], replace: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes `output` if the context ends without an error.

    Args:
        about: facts for programs, written as `export.json` with the names of the files.
        replace: whether to replace an earlier export at `output`.

    Raises:
        InputError: as `check_output`, or another process writes `output`.
    """
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(
                new_folder(output, _is_own if replace else lambda _: False)
            )
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{output.parent} is not a folder. Choose another one with --output"
            ) from error
        check_output(output, replace)
        yield partial
        files = (path for path in sorted(partial.rglob("*")) if not path.is_dir())
        names = [path.relative_to(partial).as_posix() for path in files]
        facts = json.dumps({**about, "files": names}, indent=1)
        (partial / MARK).write_text(f"{facts}\n", encoding="utf-8")


def write_rows(
    tables: Iterable[pa.Table],
    path: Path,
    format: Format,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> int:
    """Write tables of one schema to a file, in order; returns the number of rows."""
    num_rows = 0
    if format == "parquet":
        writer = None
        try:
            for table in tables:
                writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
                num_rows += table.num_rows
                advance(table.num_rows, "")
        finally:
            if writer is not None:
                writer.close()
        return num_rows
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for batch in table.to_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                advance(batch.num_rows, "")
            num_rows += table.num_rows
    return num_rows
