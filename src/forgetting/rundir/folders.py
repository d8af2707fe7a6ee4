"""Folders that are there whole or not at all, written by one process at a time.

A folder is written next to its place under a name that nobody else has, and one rename puts it
there. Next to it are also a lock, and a journal that names what a killed process left: only what
the journal names is removed or put back. Knows nothing of what is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from forgetting.errors import InputError
from forgetting.rundir.storage import write_atomically

LONGEST_NAME = 180
"""Bytes of a name that is part of others, of which a file system allows 255."""


def _refuse_all(folder: Path) -> bool:
    del folder
    return False


@contextmanager
def new_folder(folder: Path, may_replace: Callable[[Path], bool] = _refuse_all) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` if the context ends without an error.

    What a killed process left is removed. If it was killed while it replaced a folder, the old one
    is put back first.

    Args:
        folder: where it will be. Its parent is created if it does not exist.
        may_replace: says whether the folder that is there may be replaced; asked at the end. An
            empty one is always replaced.

    Raises:
        InputError: `folder` is the current folder or above it, or is being written by another
            process; or it is there at the end and may not be replaced.
    """
    check_place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as names:
        names.partial.mkdir()
        try:
            yield names.partial
            _put(names, folder, may_replace)
        finally:
            shutil.rmtree(names.partial, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Refuse to write the current folder, or one above it.

    Raises:
        InputError: it is one of these.
    """
    place = folder.resolve()
    if Path.cwd().is_relative_to(place):
        raise InputError(f"{folder} is the current folder or holds it. Choose a folder inside it")


@dataclass(frozen=True)
class _Names:
    """What is next to a folder while it is written."""

    partial: Path
    """The folder that is written."""
    replaced: Path
    """The folder that was there before."""


@contextmanager
def _alone(folder: Path) -> Iterator[_Names]:
    """Names for a folder that this process alone writes, noted in a journal."""
    stem = folder.name
    if len(stem.encode()) > LONGEST_NAME:
        stem = hashlib.sha256(stem.encode()).hexdigest()[:32]
    journal = folder.with_name(f".{stem}.forgetting.json")
    lock = FileLock(folder.with_name(f".{stem}.forgetting-lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{folder} is being written by process {_owner(journal)}. Wait for it, or choose "
            "another folder"
        ) from None
    try:
        _recover(journal, stem, folder)
        name = f".{stem}.{secrets.token_hex(4)}"
        names = _Names(folder.with_name(f"{name}.partial"), folder.with_name(f"{name}.replaced"))
        noted = {"process": os.getpid(), "name": name}
        write_atomically(journal, json.dumps(noted))
        try:
            yield names
        finally:
            journal.unlink(missing_ok=True)
            # Removed while it is held. Whoever waits for it notices that it is gone.
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _owner(journal: Path) -> str:
    try:
        return str(int(json.loads(journal.read_text(encoding="utf-8"))["process"]))
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _recover(journal: Path, stem: str, folder: Path) -> None:
    """Remove what a killed process left, or put back what it was replacing."""
    try:
        name = str(json.loads(journal.read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not re.fullmatch(re.escape(f".{stem}.") + "[0-9a-f]{8}", name):
        return
    partial, replaced = (folder.with_name(f"{name}.{ending}") for ending in ("partial", "replaced"))
    if replaced.is_dir() and not folder.exists():
        replaced.rename(folder)
    for left in (partial, replaced):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)


def _put(names: _Names, folder: Path, may_replace: Callable[[Path], bool]) -> None:
    if folder.is_dir() and any(folder.iterdir()) and may_replace(folder):
        folder.rename(names.replaced)
        try:
            names.partial.rename(folder)
        except BaseException:
            names.replaced.rename(folder)
            raise
        shutil.rmtree(names.replaced)
        return
    try:
        # An empty folder gives way, and nothing else does.
        names.partial.rename(folder)
    except OSError as error:
        if not os.path.lexists(folder):
            raise
        raise InputError(
            f"{folder} appeared while it was being written, and is not replaced. Choose another "
            "folder"
        ) from error
