"""Checks every file of a run directory against its checksum.

Input: a run directory. Output: what is damaged, and what to do about it. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forgetting.config.yaml_text import NOT_YAML, parse_yaml
from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.manifest import copy_damage, manifest_damage, read_manifest
from forgetting.rundir.storage import checked_value, file_sha256


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written."""

    stage: str | None
    """Key of the step that wrote it; None: the run itself."""
    file: Path
    problem: str
    """What is wrong."""
    advice: str
    """What to do."""


@dataclass
class Verification:
    """What was found in a run directory."""

    num_files: int = 0
    """Files that were checked."""
    num_bytes: int = 0
    """Their size."""
    stages: list[str] = field(default_factory=list)
    """Keys of the steps that are done, in their order."""
    damages: list[Damage] = field(default_factory=list)


def verify(
    run: Path, advance: Callable[[int, str], None] = lambda amount, note: None
) -> Verification:
    """Read every output of a run and compare it with its checksum.

    Args:
        advance: called with 1 for each file, and its name.

    Raises:
        InputError: there is no run, or neither the manifest nor its copy can be read.
    """
    manifest = read_manifest(run)
    if manifest is None:
        raise InputError(f"{run} is not a run directory: it has no {layout.MANIFEST}")
    found = Verification(stages=list(manifest.stages))
    again = f"`forgetting run {layout.recipe_file(run)} --run-dir {run}`"
    problem = manifest_damage(run)
    if problem is not None:
        advice = f"Run {again}, which writes it again from its copy"
        found.damages.append(Damage(None, layout.manifest_file(run), problem, advice))
    problem = copy_damage(run)
    if problem is not None:
        advice = f"Run {again}, which writes it again"
        found.damages.append(Damage(None, run / layout.MANIFEST_COPY, problem, advice))
    problem = _recipe_damage(layout.recipe_file(run))
    if manifest.stages and problem is not None:
        advice = "Run your own recipe again with the same --run-dir, which writes it"
        found.damages.append(Damage(None, layout.recipe_file(run), problem, advice))
    for stage, entry in manifest.stages.items():
        for name, output in entry.outputs.items():
            file = run / name
            advance(1, name)
            found.num_files += 1
            found.num_bytes += output.size
            if not file.is_file():
                problem = "is missing"
            elif file.stat().st_size != output.size:
                problem = f"has {file.stat().st_size:,} bytes instead of {output.size:,}"
            elif not output.has_content_of(file):
                problem = "has changed since it was written"
            else:
                continue
            remove = "Remove it and run" if file.exists() else "Run"
            advice = f"{remove} {again}, which repeats {stage}"
            found.damages.append(Damage(stage, file, problem, advice))
    found.damages.extend(_damaged_work(run, advance))
    return found


def _recipe_damage(file: Path) -> str | None:
    """What is wrong with the recipe of a run, as far as it shows; None if nothing does."""
    if not file.is_file():
        return "is missing"
    try:
        given = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, *NOT_YAML) as error:
        return f"is not YAML: {' '.join(str(error).split())[:100]}"
    return None if isinstance(given, dict) else "is not a recipe"


def _damaged_work(run: Path, advance: Callable[[int, str], None]) -> Iterator[Damage]:
    """What interrupted stages cannot be resumed from."""
    advice = "Nothing: when the stage is resumed, it makes this again"
    for work in sorted((run / layout.WORK).glob("*")):
        stage = work.name.rpartition("-")[0].replace("_", ":", 1)
        known: dict[Path, str] = {}
        for note in sorted(work.rglob(f"{layout.NOTES}/*.sha256")):
            try:
                checksum, _, name = note.read_text(encoding="utf-8").rstrip("\n").partition("  ")
                known[note.parent.parent / name] = checksum
            except (OSError, ValueError):
                yield Damage(stage, note, "cannot be read", advice)
        for seal in sorted(work.rglob(layout.SEAL)):
            try:
                sealed = checked_value(seal.read_bytes())
                known.update({seal.parent / name: str(each) for name, each in sealed.items()})
            except (OSError, ValueError):
                yield Damage(stage, seal, "cannot be read", advice)
        for file, checksum in known.items():
            advance(0, file.name)
            if not file.is_file() or file_sha256(file) != checksum:
                yield Damage(stage, file, "is not as it was written", advice)


def num_files(run: Path) -> int:
    """Number of files that `verify` reads.

    Raises:
        InputError: as `verify`.
    """
    manifest = read_manifest(run)
    return 0 if manifest is None else sum(len(entry.outputs) for entry in manifest.stages.values())
