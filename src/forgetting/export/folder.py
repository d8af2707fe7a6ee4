"""Output folders that are complete or absent, and files of rows in them.

Knows nothing of their content.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.errors import InputError
from forgetting.rundir.samples import ROWS_PER_GROUP
from forgetting.rundir.storage import new_folder

Format = Literal["parquet", "jsonl"]
MARK = "export.json"
"""Marks a folder as an export, which may be replaced."""
ROWS_AT_ONCE = 100


def check_output(output: Path, replace: bool) -> None:
    """Refuse an output folder that cannot be written, before any work.

    Raises:
        InputError: `output` exists and is not an export, or may not be replaced.
    """
    if not output.exists() and not output.is_symlink():
        return
    if output.is_symlink() or not output.is_dir():
        raise InputError(f"{output} is not a folder. Choose another one with --output")
    if not any(output.iterdir()):
        return
    if not replace:
        raise InputError(
            f"{output} exists. Replace it with --force, or choose another folder with --output"
        )
    if not (output / MARK).is_file():
        raise InputError(
            f"{output} was not written by `forgetting export` and is not replaced. Choose another "
            "folder with --output"
        )


@contextmanager
def whole_folder(output: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write into. It replaces `output` if the context ends without an error.

    Args:
        about: facts for programs, written as `export.json`.
    """
    replaced = output.with_name(f".{output.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(new_folder(output))
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{output.parent} is not a folder. Choose another one with --output"
            ) from error
        yield partial
        (partial / MARK).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if output.exists():
            output.rename(replaced)
    shutil.rmtree(replaced, ignore_errors=True)


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
