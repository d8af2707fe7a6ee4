"""The manifest of a run directory: which stages are done, from what, and what they cost.

Also says whose directory it is: that of a recipe, of another version of this package, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from forgetting.console import logger
from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.storage import (
    checked_text,
    checked_value,
    file_sha256,
    sync,
    write_atomically,
)

FORMAT_VERSION = 2
"""Raised whenever a reader of this package no longer understands an older run directory."""
# A process that was killed right after its start leaves only these.
_BEFORE_THE_MANIFEST = {
    layout.LOCK,
    layout.LOCK_OWNER,
    layout.MANIFEST_COPY,
    f".{layout.LOCK_OWNER}.partial",
    f".{layout.MANIFEST}.partial",
    f".{layout.MANIFEST_COPY}.partial",
}


class Output(BaseModel):
    """A file that a stage wrote. If size and time are unchanged, the checksum is not computed."""

    sha256: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, file: Path) -> Output:
        """Describe a file that is complete."""
        sync(file)
        stat = file.stat()
        return cls(sha256=file_sha256(file), size=stat.st_size, mtime_ns=stat.st_mtime_ns)

    def is_unchanged(self, file: Path) -> bool:
        """Whether the file is the one that was described, by its size and time if they fit."""
        try:
            stat = file.stat()
        except OSError:
            return False
        same_time = stat.st_size == self.size and stat.st_mtime_ns == self.mtime_ns
        return same_time or self.has_content_of(file)

    def has_content_of(self, file: Path) -> bool:
        """Whether the file has the bytes that were described."""
        try:
            return file.stat().st_size == self.size and file_sha256(file) == self.sha256
        except OSError:
            return False


class StageEntry(BaseModel):
    """A finished stage."""

    fingerprint: str
    outputs: dict[str, Output]
    """Files by their path in the run directory."""
    finished: str
    """Time in UTC, ISO 8601."""
    seconds: float
    peak_memory_bytes: int
    """Peak resident memory of the main process."""
    peak_device_memory_bytes: int | None = None
    """Peak memory that the main process allocated on accelerators; None if it used none."""
    details: dict[str, float | int | str | None] = {}
    """Figures for the report and the model card, by name."""


class Manifest(BaseModel):
    """The finished stages of a run directory, in the order of the plan."""

    version: int = FORMAT_VERSION
    name: str
    """Name of the recipe."""
    stages: dict[str, StageEntry] = {}


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a run directory, or its copy if it is damaged; None if there is none.

    Raises:
        InputError: manifest and copy cannot be read, or another version of this package wrote them.
    """
    file = layout.manifest_file(path)
    if not file.is_file():
        return None
    try:
        return _read(file)
    except _DAMAGE as error:
        copy = path / layout.MANIFEST_COPY
        try:
            found = _read(copy)
        except _DAMAGE:
            raise InputError(
                f"{file} cannot be read, and there is no copy of it that can. Restore it, remove "
                "the directory, or choose another one with --run-dir"
            ) from error
        logger.warning("%s is damaged (%s). Its copy is used", file, _in_short(error))
        return found


# An error of pydantic or json is a ValueError.
_DAMAGE = (OSError, ValueError, TypeError, KeyError)


def _in_short(error: BaseException) -> str:
    return str(error).partition("\n")[0][:100]


def manifest_damage(path: Path) -> str | None:
    """What is wrong with the manifest of a run directory; None if nothing is.

    Raises:
        InputError: another version of this package wrote it.
    """
    return _damage(layout.manifest_file(path))


def copy_damage(path: Path) -> str | None:
    """What is wrong with the copy of the manifest of a run directory; None if nothing is, or there
    is no copy.

    Raises:
        InputError: another version of this package wrote it.
    """
    copy = path / layout.MANIFEST_COPY
    return _damage(copy) if copy.exists() else None


def _damage(file: Path) -> str | None:
    try:
        _read(file)
    except _DAMAGE as error:
        return _in_short(error)
    return None


def _read(file: Path) -> Manifest:
    content = checked_value(file.read_bytes())
    path, version = file.parent, content["version"]
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} was written by a newer version of forgetting (format {version}; this "
            f"version reads {FORMAT_VERSION}). Update forgetting"
        )
    if version < FORMAT_VERSION:
        raise InputError(
            f"{path} was written by an older version of forgetting (format {version}; this "
            f"version reads {FORMAT_VERSION}). Run the recipe again in a new directory with "
            "--run-dir, or install the version that wrote it"
        )
    return Manifest.model_validate(content)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of a run directory, and its copy.

    If the copy is older, because a kill came between the two, it says less: a stage is done only if
    its files are as an entry says.
    """
    text = checked_text(manifest.model_dump(mode="json"))
    write_atomically(layout.manifest_file(path), text)
    write_atomically(path / layout.MANIFEST_COPY, text)


def check_owner(path: Path, name: str) -> Manifest | None:
    """The manifest of this recipe's run directory; None if the directory is new or empty.

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


def same_model(manifest: Manifest | None, variant: str) -> str | None:
    """The first variant, trained before this one, whose model has the same files.

    The card of the model does not count. None if there is no such variant.
    """
    stages = {} if manifest is None else manifest.stages
    own = _model_files(stages, variant)
    for key in stages:
        stage, _, other = key.partition(":")
        if other == variant:
            return None
        if stage == "train" and own and own == _model_files(stages, other):
            return other
    return None


def _model_files(stages: Mapping[str, StageEntry], variant: str) -> dict[str, str]:
    """Checksums of the files that `train` wrote for a variant, by their path in the model."""
    entry = stages.get(f"train:{variant}")
    if entry is None:
        return {}
    paths = {Path(name): output.sha256 for name, output in entry.outputs.items()}
    # The first two parts are the folder of the variant.
    own = {Path(*path.parts[2:]).as_posix(): checksum for path, checksum in paths.items()}
    own.pop("README.md", None)
    return own


def stage_is_done(path: Path, manifest: Manifest | None, stage: str, fingerprint: str) -> bool:
    """Whether the manifest has this stage with this fingerprint, and its files are unchanged."""
    entry = manifest.stages.get(stage) if manifest is not None else None
    if entry is None or entry.fingerprint != fingerprint:
        return False
    return all(output.is_unchanged(path / name) for name, output in entry.outputs.items())
