"""The runs of a study, one after the other, or as commands for a scheduler.

In: runs and the study's folder. Out: finished run directories in it, or the commands that make
them. Finished runs are skipped. A variant whose training diverges is recorded and dropped, and the
others continue: divergence is a result. Knows nothing about tables.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from forgetting.config import Recipe, dump_recipe
from forgetting.console import duration, logger
from forgetting.errors import DivergenceError, InputError
from forgetting.pipeline import check_inputs, plan_with_state, run
from forgetting.rundir.storage import digest, write_atomically
from forgetting.studies.grid import StudyRun

MARKER = "study.json"
DIVERGED = "diverged.json"

Diverged = dict[str, dict[str, dict[str, str]]]
"""Message and checksum of the settings, by run and variant."""


@dataclass(frozen=True)
class WorkLeft:
    """The work that a study still has to do."""

    num_runs: int = 0
    num_unfinished_runs: int = 0
    num_trainings: int = 0
    """Including those of reference models."""
    num_optimizer_steps: int = 0
    num_evaluations: int = 0

    def __add__(self, other: WorkLeft) -> WorkLeft:
        return WorkLeft(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        if not self.num_unfinished_runs:
            return f"{self.num_runs} runs, all finished"
        return (
            f"{self.num_runs} runs, {self.num_unfinished_runs} to do: {self.num_trainings} "
            f"trainings with {self.num_optimizer_steps:,} optimizer steps, "
            f"{self.num_evaluations} evaluations"
        )


def open_study(output: Path, name: str) -> None:
    """Create a study's folder, or check that it belongs to this study.

    Raises:
        InputError: the folder belongs to another study, or holds something else.
    """
    marker = output / MARKER
    if marker.is_file():
        try:
            owner = str(json.loads(marker.read_text(encoding="utf-8"))["name"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{marker} cannot be read. Pass another --output") from error
        if owner != name:
            raise InputError(
                f"{output} belongs to the study {owner!r}, not to {name!r}. Pass another --output"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            f"{output} is not empty and not the folder of a study. Pass another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, json.dumps({"name": name}))


def run_path(output: Path, name: str) -> Path:
    """Run directory of one of a study's runs."""
    return output / "runs" / name


def write_recipes(runs: Sequence[StudyRun], output: Path) -> list[str]:
    """Write each run's recipe. Returns the commands of the runs, for any order and any machine."""
    folder = output / "recipes"
    folder.mkdir(exist_ok=True)
    commands = []
    for each in runs:
        file = folder / f"{each.name}.yaml"
        write_atomically(file, dump_recipe(each.recipe))
        words = ["forgetting", "run", str(file), "--run-dir", str(run_path(output, each.name))]
        commands.append(shlex.join(words))
    return commands


def work_left(each: StudyRun, output: Path) -> WorkLeft:
    """The work left in a run. Loads no weights.

    Raises:
        InputError: the recipe cannot be used.
    """
    recipe = _without(each.recipe, _known(each, read_diverged(output)))
    check_inputs(recipe)
    steps, done = plan_with_state(recipe, run_path(output, each.name))
    left = [step.stage.name for step in steps if step.key not in done]
    num_references, num_variants = left.count("reference"), left.count("train")
    return WorkLeft(
        num_runs=1,
        num_unfinished_runs=int(bool(left)),
        num_trainings=num_references + num_variants,
        num_optimizer_steps=num_references * recipe.reference.num_steps(recipe.data.num_reference)
        + num_variants * recipe.training.num_steps(recipe.data.num_train),
        num_evaluations=left.count("evaluate"),
    )


def total_work(runs: Sequence[StudyRun], output: Path) -> WorkLeft:
    """The work left in a study."""
    return sum((work_left(each, output) for each in runs), WorkLeft())


def execute(runs: Sequence[StudyRun], output: Path) -> None:
    """Finish all runs. Finished ones are skipped.

    Raises:
        InputError: a recipe cannot be used.
        DivergenceError: a reference model diverged, and its run cannot continue without it.
    """
    # Counted once: checksums of large weights take minutes.
    works = [work_left(each, output) for each in runs]
    logger.info("%s", sum(works, WorkLeft()))
    start = time.monotonic()
    for place, each in enumerate(runs):
        logger.info("Run %d of %d: %s", place + 1, len(runs), each.name)
        _finish(each, output)
        done, left = (sum(part, WorkLeft()) for part in (works[: place + 1], works[place + 1 :]))
        if done.num_optimizer_steps and left.num_optimizer_steps:
            pace = (time.monotonic() - start) / done.num_optimizer_steps
            logger.info("About %s left", duration(pace * left.num_optimizer_steps))


def _finish(each: StudyRun, output: Path) -> None:
    path = run_path(output, each.name)
    while True:
        diverged = read_diverged(output)
        recipe = _without(each.recipe, _known(each, diverged))
        try:
            run(recipe, path)
            return
        except DivergenceError as error:
            steps, done = plan_with_state(recipe, path)
            # Steps run in order, so the first unfinished one is the one that failed.
            stage, _, variant = next(s.key for s in steps if s.key not in done).partition(":")
            if stage != "train":
                raise
            logger.warning("%s, %s: %s", each.name, variant, error)
            entry = {"message": str(error), "settings": _settings(each.recipe, variant)}
            diverged.setdefault(each.name, {})[variant] = entry
            write_atomically(output / DIVERGED, json.dumps(diverged, indent=1))


def read_diverged(output: Path) -> Diverged:
    """The variants whose training diverged in an earlier attempt."""
    file = output / DIVERGED
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} cannot be read. Remove it to retrain its variants") from error


def diverged_variants(runs: Sequence[StudyRun], output: Path) -> dict[tuple[str, str], str]:
    """Messages by run and variant, for variants whose settings have not changed since."""
    diverged = read_diverged(output)
    return {
        (each.name, variant): diverged[each.name][variant]["message"]
        for each in runs
        for variant in _known(each, diverged)
    }


def _known(each: StudyRun, diverged: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    return [
        variant
        for variant, entry in diverged.get(each.name, {}).items()
        if variant in each.recipe.variants and entry["settings"] == _settings(each.recipe, variant)
    ]


def _settings(recipe: Recipe, variant: str) -> str:
    """Checksum of everything a variant's training depends on, and a little more."""
    read = {"model", "data", "training", "reference", "seed"}
    own = recipe.variants[variant].model_dump(mode="json")
    return digest({**recipe.model_dump(mode="json", include=read), "variant": own})


def _without(recipe: Recipe, variants: Sequence[str]) -> Recipe:
    kept = {name: v for name, v in recipe.variants.items() if name not in variants}
    return recipe.model_copy(update={"variants": kept})
