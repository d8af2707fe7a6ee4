"""What the command lines of the experiments share: one process a cell, and cells by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from forgetting.errors import InputError, did_you_mean


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Create a cell's folder and keep other processes out of it.

    Raises:
        InputError: another process works on the cell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        # The operating system drops the lock when its holder dies.
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another process works on {folder}. Wait for it, or stop it and run this again"
        ) from None
    with lock:
        yield


def check_names(names: Iterable[str], cells: Mapping[str, object]) -> None:
    """Check what `--cell` names.

    Raises:
        InputError: a name belongs to no cell.
    """
    for name in names:
        if name not in cells:
            hint = did_you_mean(name, cells) or "`--list` prints all of them"
            raise InputError(f"there is no cell {name!r}. {hint}")
