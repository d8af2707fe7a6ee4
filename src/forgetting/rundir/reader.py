"""Reads a run directory, complete or not, through the readers of this package.

An artifact whose stage has not run is None or left out. One that cannot be read, or that belongs
to other tokens, is an `InputError`. Makes no judgment.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forgetting.config import Recipe
from forgetting.config.yaml_text import NOT_YAML, parse_yaml
from forgetting.errors import InputError, did_you_mean
from forgetting.rundir import layout
from forgetting.rundir.answer_sheets import AnswerSheet, read_answer_sheet
from forgetting.rundir.findings import DetectorSummary, has_findings, read_findings
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.results import Evaluation, read_results
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.selections import SelectionSummary, read_selection
from forgetting.rundir.stats import (
    DataSummary,
    StageCost,
    TrainingCurve,
    read_training_log,
    stage_costs,
)

PREFERRED = "forgetting"
VARIANT_ORDER = (layout.BASE, "full", "ignoring", "forgetting")


def in_order(variants: Iterable[str]) -> list[str]:
    """The names that every recipe knows first, then the others by name."""
    rank = {name: place for place, name in enumerate(VARIANT_ORDER)}
    return sorted(variants, key=lambda name: (rank.get(name, len(rank)), name))


def require_run(path: Path) -> None:
    """Refuse a path that is no run directory.

    Raises:
        InputError: it has no recipe; the message names the folders next to it that are most like
            it.
    """
    if layout.recipe_file(path).is_file():
        return
    folders = []
    if path.parent.is_dir() and not path.exists():
        folders = [str(each) for each in path.parent.iterdir() if each.is_dir()]
    hint = did_you_mean(str(path), folders)
    raise InputError(
        f"{path} is not a run directory: it has no {layout.RECIPE}{hint and f'. {hint}'}"
    )


class RunReader:
    """The artifacts of a run.

    Args:
        path: the run directory.

    Raises:
        InputError: there is no run, or another version of this package wrote it.
    """

    def __init__(self, path: Path) -> None:
        require_run(path)
        file = layout.recipe_file(path)
        self.path = path
        self.manifest = read_manifest(path)
        try:
            self.recipe_text = file.read_text(encoding="utf-8")
            given = parse_yaml(self.recipe_text)
        except (OSError, *NOT_YAML) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{file} cannot be read: {reason}. Run the recipe again") from error
        self._given: dict[str, Any] = given if isinstance(given, dict) else {}
        self.name = str(self._given.get("name", path.name))

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe; None if somebody changed it into one that is not valid."""
        try:
            return Recipe.model_validate(self._given)
        except ValidationError:
            return None

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of D_train."""
        return SampleFile(layout.train_file(self.path)).fingerprint

    @cached_property
    def data(self) -> DataSummary | None:
        """Counts of the corpus."""
        folder = layout.data_dir(self.path)
        return DataSummary.load(folder) if layout.summary_file(folder).is_file() else None

    @cached_property
    def costs(self) -> list[StageCost]:
        """What the finished stages cost, in the order of the plan."""
        return [] if self.manifest is None else stage_costs(self.manifest)

    @cached_property
    def selected_variants(self) -> list[str]:
        """Variants with a selection, in order."""
        folders = layout.selection_dir(self.path)
        return [
            variant
            for variant in self._variants(folders)
            if layout.summary_file(layout.selection_dir(self.path, variant)).is_file()
        ]

    def selection(self, variant: str) -> SelectionSummary:
        """The summary of a variant's selection."""
        return read_selection(self.path, variant, self.fingerprint)

    @cached_property
    def selections(self) -> dict[str, SelectionSummary]:
        """All summaries by variant, in order."""
        return {variant: self.selection(variant) for variant in self.selected_variants}

    @cached_property
    def findings(self) -> DetectorSummary | None:
        """What the detector found in D_train; None if it has not run."""
        return read_findings(self.path, self.fingerprint) if has_findings(self.path) else None

    @cached_property
    def curves(self) -> dict[str, TrainingCurve]:
        """Training curves by variant, in order."""
        variants = self._variants(layout.model_dir(self.path))
        folders = {variant: layout.model_dir(self.path, variant) for variant in variants}
        return {
            variant: read_training_log(folder)
            for variant, folder in folders.items()
            if layout.training_log(folder).is_file()
        }

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Results by variant, the base model among them, and task."""
        variants = self._variants(layout.evaluation_dir(self.path))
        folders = (layout.evaluation_dir(self.path, variant) for variant in variants)
        return [result for folder in folders for result in read_results(folder)]

    @cached_property
    def answers(self) -> dict[str, AnswerSheet]:
        """Answers to held-out prompts by variant, the base model among them."""
        variants = self._variants(layout.evaluation_dir(self.path))
        sheets = {v: read_answer_sheet(layout.evaluation_dir(self.path, v)) for v in variants}
        return {variant: sheet for variant, sheet in sheets.items() if sheet is not None}

    @property
    def preferred_variant(self) -> str | None:
        """The variant whose selection is shown by default: `forgetting`, or the first."""
        names = self.selected_variants
        return PREFERRED if PREFERRED in names else next(iter(names), None)

    def _variants(self, folder: Path) -> list[str]:
        """Variants with a subfolder, in order, without those that the recipe no longer has."""
        found = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        if self.recipe is not None:
            found = [name for name in found if name == layout.BASE or name in self.recipe.variants]
        return in_order(found)
