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
from forgetting.rundir.manifest import (
    Manifest,
    Output,
    StageEntry,
    check_owner,
    copy_damage,
    manifest_damage,
    stage_is_done,
    write_manifest,
)
from forgetting.rundir.processes import ALONE, Processes
from forgetting.rundir.storage import (
    checked_text,
    checked_value,
    file_sha256,
    write_atomically,
)

OUTPUT = "output"
ENTRY = "entry.json"
"""What the manifest will say of a stage that is finished, until it says so."""


class Work:
    """The work folder of a running stage: scratch files that survive a kill, and the output."""

    def __init__(self, path: Path, processes: Processes = ALONE) -> None:
        self.path = path
        self.output = path / OUTPUT
        self.processes = processes
        """The processes that share the stage. Each has its own `Work` on the same folder."""
        self.details: dict[str, float | int | str | None] = {}
        """Figures for the manifest, the report and the model card, by name."""

    def keep(self, file: Path) -> None:
        """Note a finished file in the work folder, which a resumed stage relies on."""
        note = self._note(file)
        note.parent.mkdir(exist_ok=True)
        write_atomically(note, self._line(file))

    def has(self, file: Path) -> bool:
        """Whether a file is there as `keep` noted it: one that is cut, empty or damaged is not."""
        try:
            return self._note(file).read_text(encoding="utf-8") == self._line(file)
        except (OSError, ValueError):
            return False

    def keep_only_whole(self, folder: Path) -> None:
        """Remove the files of a folder that were not noted. If a noted one is damaged, remove all,
        as the others may belong to it."""
        files = [file for file in folder.rglob("*") if file.is_file()]
        whole = [file for file in files if self.has(file)]
        notes = set((self.path / layout.NOTES).glob("*"))
        damaged = notes - {self._note(file) for file in whole}
        for file in files:
            if damaged or file not in whole:
                file.unlink()
        for note in notes if damaged else ():
            note.unlink()

    def _line(self, file: Path) -> str:
        # As sha256sum writes it.
        return f"{file_sha256(file)}  {file.relative_to(self.path).as_posix()}\n"

    def _note(self, file: Path) -> Path:
        name = file.relative_to(self.path).as_posix().replace("/", "--")
        return self.path / layout.NOTES / f"{name}.sha256"


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
        self._checked: set[str] = set()

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
            elif manifest_damage(self.path) is not None or copy_damage(self.path) is not None:
                # One was read, and the other is written again from it.
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
                _remove(other)
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
        write_atomically(folder / ENTRY, checked_text(entry.model_dump(mode="json")))
        self._publish(work, self.path / target, stage, entry)

    def finish(self, stage: str, fingerprint: str, target: str) -> bool:
        """Publish the output of a stage that had ended when the process was killed.

        Also removes the work folder of a stage that is done.

        Returns:
            Whether the stage is done now.
        """
        work = Work(work_folder(self.path, stage, fingerprint))
        if self.is_done(stage, fingerprint):
            _remove(work.path)
            return True
        try:
            found = checked_value((work.path / ENTRY).read_bytes())
            entry = StageEntry.model_validate(found)
        except (OSError, ValueError):
            return False
        is_moved = not work.output.exists()
        folder = self.path / target if is_moved else work.output
        whole = all(
            output.has_content_of(folder / Path(name).relative_to(target))
            for name, output in entry.outputs.items()
        )
        if entry.fingerprint != fingerprint or not whole:
            return False
        if is_moved:
            self._enter(work, stage, entry)
        else:
            self._publish(work, self.path / target, stage, entry)
        return True

    def check_content(self, stages: Sequence[str]) -> None:
        """Refuse outputs of done stages whose bytes have changed, even if size and time have not.

        Each stage is read once as long as the directory is open, and not if it ran meanwhile.

        Raises:
            InputError: the message says what to do.
        """
        for stage in set(stages) - self._checked:
            for name, output in self.manifest.stages[stage].outputs.items():
                if not output.has_content_of(self.path / name):
                    raise InputError(
                        f"{self.path / name} is not the file that {stage} wrote: its content has "
                        "changed. Remove it, and run the same command again to make it again. "
                        f"`forgetting verify {self.path}` checks all other files"
                    )
            self._checked.add(stage)

    def _publish(self, work: Work, target: Path, stage: str, entry: StageEntry) -> None:
        # The old entry goes first: a kill between two steps leaves a stage that is not done.
        if self.manifest.stages.pop(stage, None) is not None:
            self._write_manifest()
        if target.exists():
            old = work.path / "replaced"
            _remove(old)
            target.rename(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.output.rename(target)
        self._checked.add(stage)
        self._enter(work, stage, entry)

    def _enter(self, work: Work, stage: str, entry: StageEntry) -> None:
        self.manifest.stages[stage] = entry
        self._arrange()
        self._write_manifest()
        _remove(work.path)

    def plan(self, plan: Sequence[str]) -> None:
        """Say in which order the manifest lists stages.

        Args:
            plan: keys of all stages that the recipe has.
        """
        self._plan = plan

    def forget_stages(self, plan: Sequence[str]) -> None:
        """Drop the entries of stages that are not in the plan, and keep the others in its order.
        The files of dropped stages stay.

        Args:
            plan: keys of all stages that the recipe has.
        """
        self.plan(plan)
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
        write_manifest(self.path, self.manifest)


def _remove(path: Path) -> None:
    """Remove a folder of ours, or the file or link in its place."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


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
