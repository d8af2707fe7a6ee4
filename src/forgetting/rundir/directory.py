"""What a run has done: its directory, its manifest, its lock.

A stage writes into a work folder that survives a kill. When it ends, what it wrote appears in
the run by one rename and is entered in the manifest with the fingerprint of what it read and the
checksums of what it wrote. So an artifact is there whole or not at all, and a stage is done
exactly when the manifest says so and its files are the ones that it wrote. This module does not
know what the stages do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel

from forgetting.errors import InputError
from forgetting.rundir.processes import ALONE, Processes

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
LOCK = ".lock"
LOCK_OWNER = ".lock-owner"
FORMAT_VERSION = 1
# What a process that was killed at once leaves behind.
_BEFORE_THE_MANIFEST = {LOCK, LOCK_OWNER, f".{LOCK_OWNER}.partial", f".{MANIFEST}.partial"}


class Output(BaseModel):
    """A file that a stage wrote. Size and time spare the checksum when neither has changed."""

    sha256: str
    size: int
    mtime_ns: int


class StageEntry(BaseModel):
    """A stage that is done."""

    fingerprint: str
    outputs: dict[str, Output]
    finished: str
    seconds: float
    peak_memory_bytes: int
    """Resident, of the process that led."""
    peak_device_memory_bytes: int | None = None
    """Allocated on that process's accelerators; None where it used none."""
    details: dict[str, float | int | str | None] = {}


class Manifest(BaseModel):
    """All that is done in a run directory."""

    version: int = FORMAT_VERSION
    name: str
    stages: dict[str, StageEntry] = {}


class Work:
    """The work folder of a stage in progress: scratch that survives a kill, and its output."""

    def __init__(self, path: Path, processes: Processes = ALONE) -> None:
        self.path = path
        self.output = path / "output"
        self.processes = processes
        """Who does the stage, each with a `Work` of its own on the same folder."""
        self.details: dict[str, float | int | str | None] = {}
        """Small numbers that the manifest keeps and the report shows."""


class RunDir:
    """A run directory, locked by this process while the context is open.

    Args:
        path: the directory; made if it does not exist.
        name: name of the recipe; a directory of another recipe is refused.

    Raises:
        InputError: the directory belongs to another recipe, is no run directory, or another
            live process works in it.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self._order: list[str] = []
        self._lock = FileLock(path / LOCK)

    def __enter__(self) -> RunDir:
        check_owner(self.path, self.name)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{error.filename} is a file; a run needs a directory") from error
        owner = self.path / LOCK_OWNER
        try:
            # The operating system drops this lock when its holder dies, however it dies.
            self._lock.acquire(timeout=0)
        except Timeout:
            pid = owner.read_text() if owner.is_file() else "unknown"
            raise InputError(
                f"{self.path} is in use by process {pid}. Wait for it, end it, or choose another "
                "directory with --run-dir"
            ) from None
        try:
            write_atomically(owner, str(os.getpid()))
            # Read again: another process may have worked here until its lock was free.
            found = check_owner(self.path, self.name)
            self.manifest = found or Manifest(name=self.name)
            if found is None:
                # Before any other file: the manifest is what makes this a run directory.
                self._write_manifest()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def is_done(self, stage: str, fingerprint: str) -> bool:
        """Whether a stage with this fingerprint is done and its files are as it wrote them."""
        return stage_is_done(self.path, self.manifest, stage, fingerprint)

    @contextmanager
    def stage(
        self, stage: str, fingerprint: str, target: str, processes: Processes = ALONE
    ) -> Iterator[Work]:
        """Do a stage: yields its work folder, publishes `work.output` as `target` at the end.

        Interrupted, the work folder stays for the next attempt with the same fingerprint; work
        for another fingerprint of the same stage is removed.
        """
        slug = re.sub(r"[^A-Za-z0-9.-]", "_", stage)
        folder = self.path / ".work" / f"{slug}-{fingerprint[:16]}"
        for other in (self.path / ".work").glob(f"{slug}-*"):
            if other != folder and re.fullmatch(re.escape(slug) + r"-[0-9a-f]{16}", other.name):
                shutil.rmtree(other)
        work = Work(folder, processes)
        work.output.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with _PeakMemory() as peak:
            yield work
        outputs = {
            f"{target}/{file.relative_to(work.output).as_posix()}": _describe(file)
            for file in sorted(work.output.rglob("*"))
            if file.is_file()
        }
        entry = StageEntry(
            fingerprint=fingerprint,
            outputs=outputs,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - start, 3),
            peak_memory_bytes=peak.bytes,
            peak_device_memory_bytes=peak.device_bytes,
            details=work.details,
        )
        self._publish(work, self.path / target, stage, entry)

    def _publish(self, work: Work, target: Path, stage: str, entry: StageEntry) -> None:
        # The old entry goes first: a kill between two steps leaves a stage that is not done.
        if self.manifest.stages.pop(stage, None) is not None:
            self._write_manifest()
        if target.exists():
            old = work.path / "replaced"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.output.rename(target)
        self.manifest.stages[stage] = entry
        self._write_manifest()
        shutil.rmtree(work.path)

    def forget_stages(self, keep: Sequence[str]) -> None:
        """Drop the entries of stages that the recipe no longer has; their files stay.

        Args:
            keep: the stages that the recipe has. The manifest lists them in this order, however
                often each of them is done again.
        """
        self._order = list(keep)
        gone = [stage for stage in self.manifest.stages if stage not in keep]
        for stage in gone:
            del self.manifest.stages[stage]
        if gone:
            self._write_manifest()

    def _write_manifest(self) -> None:
        entries = self.manifest.stages
        places = {stage: place for place, stage in enumerate(self._order)}
        order = sorted(entries, key=lambda stage: places.get(stage, len(places)))
        self.manifest.stages = {stage: entries[stage] for stage in order}
        write_atomically(self.path / MANIFEST, self.manifest.model_dump_json(indent=1))


def check_owner(path: Path, name: str) -> Manifest | None:
    """The manifest of a run directory of this recipe; None where the directory is new or empty.

    Raises:
        InputError: the directory belongs to another recipe or is no run directory, or its
            manifest cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; a run needs a directory")
    manifest = read_manifest(path)
    if manifest is not None and manifest.name != name:
        raise InputError(
            f"{path} belongs to the recipe {manifest.name!r}, not to {name!r}. "
            "Choose another one with --run-dir"
        )
    if manifest is None and path.is_dir():
        strangers = sorted({f.name for f in path.iterdir()} - _BEFORE_THE_MANIFEST)
        if strangers:
            raise InputError(
                f"{path} is not empty and no run directory (it holds {', '.join(strangers[:3])}). "
                "Choose another one with --run-dir"
            )
    return manifest


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a run directory; None where there is none.

    Raises:
        InputError: the manifest cannot be read, or was written by a newer version.
    """
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] > FORMAT_VERSION:
            raise InputError(f"{file} was written by a newer version of forgetting; update it")
        return Manifest.model_validate(content)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} cannot be read. Remove the directory or choose another one with --run-dir"
        ) from error


def stage_is_done(path: Path, manifest: Manifest | None, stage: str, fingerprint: str) -> bool:
    """Whether the manifest has this stage with this fingerprint, and its files are unchanged."""
    entry = manifest.stages.get(stage) if manifest is not None else None
    if entry is None or entry.fingerprint != fingerprint:
        return False
    return all(_is_unchanged(path / name, output) for name, output in entry.outputs.items())


def _is_unchanged(file: Path, output: Output) -> bool:
    try:
        stat = file.stat()
    except OSError:
        return False
    if stat.st_size != output.size:
        return False
    return stat.st_mtime_ns == output.mtime_ns or file_sha256(file) == output.sha256


def _describe(file: Path) -> Output:
    stat = file.stat()
    return Output(sha256=file_sha256(file), size=stat.st_size, mtime_ns=stat.st_mtime_ns)


def file_sha256(file: Path) -> str:
    """Checksum of a file's bytes, as hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Mapping[str, Any] | list[Any]) -> str:
    """Checksum of anything JSON can say, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(file: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new one, never a part.

    One process at a time: what a killed one left is written over by the next.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _accelerator() -> Any:
    """torch.cuda where this process computes with it; asked of torch only where it is there."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


class _PeakMemory:
    """The most memory that this process held while the context was open: resident, and on
    accelerators."""

    def __enter__(self) -> _PeakMemory:
        self.device_bytes: int | None = None
        if (cuda := _accelerator()) is not None:
            for device in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(device)
        self._process = psutil.Process()
        self.bytes = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._process.memory_info().rss)
        if (cuda := _accelerator()) is not None:
            devices = range(cuda.device_count())
            # What it never allocated on is none of its own.
            self.device_bytes = sum(map(cuda.max_memory_allocated, devices)) or None
