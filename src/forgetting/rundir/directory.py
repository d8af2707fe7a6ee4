"""A run directory while a process works in it: its lock, and how a stage publishes its result.

A stage writes into a work folder that survives a kill. When the stage ends, one rename moves its
output into the run, and the manifest records what it read and what it wrote. An artifact is
therefore whole or absent, and a stage is done exactly if the manifest says so and its files are
unchanged. This module does not know what the stages do.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.manifest import Manifest, Output, StageEntry, check_owner, stage_is_done
from forgetting.rundir.processes import ALONE, Processes
from forgetting.rundir.storage import write_atomically


class Work:
    """The work folder of a running stage: scratch files that survive a kill, and the output."""

    def __init__(self, path: Path, processes: Processes = ALONE) -> None:
        self.path = path
        self.output = path / "output"
        self.processes = processes
        """The processes that share the stage. Each has its own `Work` on the same folder."""
        self.details: dict[str, float | int | str | None] = {}
        """Figures for the manifest, the report and the model card, by name."""


def work_folder(run: Path, stage: str, fingerprint: str) -> Path:
    """Where a stage with this fingerprint works. It is there if the stage was interrupted."""
    return run / layout.WORK / f"{_slug(stage)}-{fingerprint[:16]}"


def _slug(stage: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", stage)


class RunDir:
    """A run directory, locked by this process while the context is open.

    Args:
        path: the directory, created if it does not exist.
        name: name of the recipe. A directory of another recipe is refused.

    Raises:
        InputError: the directory belongs to another recipe, is no run directory, or is in use
            by another live process.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self._lock = FileLock(path / layout.LOCK)
        self._plan: Sequence[str] = ()

    def __enter__(self) -> RunDir:
        check_owner(self.path, self.name)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{error.filename} is a file; a run needs a directory") from error
        owner = self.path / layout.LOCK_OWNER
        try:
            # The operating system drops this lock when its holder dies, however it dies.
            self._lock.acquire(timeout=0)
        except Timeout:
            pid = owner.read_text() if owner.is_file() else "unknown"
            raise InputError(
                f"{self.path} is in use by process {pid}. Wait for it, stop it, or choose another "
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
        """Run a stage: yields its work folder and publishes `work.output` as `target` at the end.

        If the stage is interrupted, its work folder stays for the next attempt with the same
        fingerprint. Work for another fingerprint of the same stage is removed.
        """
        folder = work_folder(self.path, stage, fingerprint)
        slug = _slug(stage)
        for other in folder.parent.glob(f"{slug}-*"):
            if other != folder and re.fullmatch(re.escape(slug) + r"-[0-9a-f]{16}", other.name):
                shutil.rmtree(other)
        work = Work(folder, processes)
        work.output.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with _PeakMemory() as peak:
            yield work
        outputs = {
            f"{target}/{file.relative_to(work.output).as_posix()}": Output.of(file)
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
        self._arrange()
        self._write_manifest()
        shutil.rmtree(work.path)

    def forget_stages(self, plan: Sequence[str]) -> None:
        """Drop the entries of stages that are not in the plan, and keep the others in its order.
        The files of dropped stages stay.

        Args:
            plan: keys of all stages that the recipe has.
        """
        self._plan = plan
        before = list(self.manifest.stages)
        for stage in set(before).difference(plan):
            del self.manifest.stages[stage]
        self._arrange()
        if list(self.manifest.stages) != before:
            self._write_manifest()

    def _arrange(self) -> None:
        entries = self.manifest.stages
        order = dict.fromkeys([*self._plan, *entries])
        self.manifest.stages = {stage: entries[stage] for stage in order if stage in entries}

    def _write_manifest(self) -> None:
        write_atomically(layout.manifest_file(self.path), self.manifest.model_dump_json(indent=1))


def _accelerator() -> Any:
    """torch.cuda if this process uses it. Does not import torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


class _PeakMemory:
    """Peak memory of this process while the context is open: resident, and on accelerators."""

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
            # Zero: this process allocated nothing on them.
            self.device_bytes = sum(map(cuda.max_memory_allocated, devices)) or None
