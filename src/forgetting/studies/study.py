"""What a study is: made from a recipe and a grid, or from a definition (`definitions/*.yaml`).

In: the user's recipe and grid, or the name of a definition and a scale. Out: a `Study`, to be run
and shown. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from forgetting.config import Name, Section, load_recipe
from forgetting.errors import InputError, did_you_mean
from forgetting.studies.grid import SEED, StudyRun, expand, levels_of, read_grid
from forgetting.studies.study_files import check_columns
from forgetting.studies.study_table import Published

SCALES = ("paper", "tiny")
DEFINITIONS = Path(str(resources.files("forgetting"))) / "studies" / "definitions"
TINY = DEFINITIONS.parent / "tiny.yaml"
TINY_NOTE = (
    "Scale tiny: a small model and a small corpus, to show that the study runs. The results say "
    "nothing about the paper's models, so published values are not shown."
)


class PublishedSettings(Section):
    """A published value."""

    model: str
    variant: str
    value: float
    levels: dict[str, Any] = {}
    """Levels of the grid fields at which it was measured."""
    derived: bool = False
    """Whether it is computed from a printed value and a printed difference."""


class Definition(Section):
    """A study as a file."""

    name: Name
    title: str
    models: Annotated[list[str], Field(min_length=1)]
    """Shipped recipes, one per model."""
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]
    metric: str | None = None
    """`task/metric` or `task/metric/group`; null: the headline metric of a run's report."""
    variants: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    """Variants that replace those of the recipes."""
    settings: dict[str, Any] = {}
    """Recipe fields with the same value in all runs."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Recipe fields and the values they take."""
    x: str | None = None
    """Grid field on the horizontal axis of the figure; null draws bars."""
    published: list[PublishedSettings] = []
    notes: list[str] = []
    """Notes below the table."""


@dataclass(frozen=True)
class Study:
    """What to run, and how to show it."""

    name: str
    title: str
    runs: Sequence[StudyRun]
    fields: Sequence[str]
    """Fields of the grid, without the seed."""
    metric: str | None
    x: str | None
    is_sorted: bool
    """Whether the table has the best row first. Otherwise rows keep the order of the study."""
    published: Sequence[Published] = ()
    notes: Sequence[str] = ()
    columns: Sequence[str] | None = None
    """Columns of the tables as Markdown and LaTeX and in the terminal, see `study_files.texts`."""


def sweep_study(
    recipe: str | Path,
    grid: Sequence[str],
    overrides: Sequence[str] = (),
    metric: str | None = None,
    columns: str | None = None,
) -> Study:
    """A study of the user's own recipe.

    Args:
        recipe: a YAML file, or the name of a shipped recipe.
        grid: `section.field=value,value` for each field that varies.
        overrides: `section.field=value`, for all runs.
        metric: `task/metric` or `task/metric/group`; None: the headline metric of a run's report.
        columns: of the tables, separated by commas; see `study_files.texts`.

    Raises:
        InputError: the grid, a column, or a recipe at one of its points, cannot be used.
    """
    levels = read_grid(grid)
    if not levels:
        raise InputError("a sweep needs --grid section.field=value,value")
    name = load_recipe(recipe, overrides).name
    runs = expand({name: recipe}, levels, overrides)
    fields = [field for field in levels if field != SEED]
    title = f"{name}: {', '.join(fields) or SEED}"
    return Study(
        name,
        title,
        runs,
        fields,
        metric,
        _numeric(levels, fields),
        is_sorted=True,
        columns=_columns(columns, fields),
    )


def _columns(given: str | None, fields: Sequence[str]) -> list[str] | None:
    if given is None:
        return None
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise InputError("--columns names no column. Separate names by commas")
    check_columns(names, fields)
    return names


def _numeric(levels: dict[str, list[str]], fields: Sequence[str]) -> str | None:
    """The first field with several numeric levels: the horizontal axis of the figure."""

    def is_number(level: str) -> bool:
        try:
            float(level)
        except ValueError:
            return False
        return True

    return next((f for f in fields if len(levels[f]) > 1 and all(map(is_number, levels[f]))), None)


def shipped_studies() -> list[str]:
    """Names of the shipped studies."""
    return sorted(file.stem for file in DEFINITIONS.glob("*.yaml"))


def load_definition(name: str) -> Definition:
    """Read a shipped study.

    Raises:
        InputError: no study has this name.
    """
    if name not in shipped_studies():
        known = shipped_studies()
        hint = did_you_mean(name, known) or f"The studies are {', '.join(known)}"
        raise InputError(f"there is no study {name!r}. {hint}")
    file = DEFINITIONS / f"{name}.yaml"
    return Definition.model_validate(
        {"name": name, **yaml.safe_load(file.read_text(encoding="utf-8"))}
    )


def paper_study(
    name: str,
    scale: str = "paper",
    *,
    models: Sequence[str] = (),
    data: str | None = None,
    seeds: str | None = None,
    overrides: Sequence[str] = (),
    metric: str | None = None,
    columns: str | None = None,
) -> Study:
    """A study of the paper.

    Args:
        name: a shipped study.
        scale: `paper` for the paper's models and data, `tiny` for the demo's, in minutes.
        models: folders or Hub ids of small models that replace the demo's at scale `tiny`.
        data: data file that replaces the demo's world at scale `tiny`.
        seeds: such as `1,2`; None: the study's own.
        overrides: `section.field=value`, for all runs.
        metric: `task/metric`; default: the study's own, or the held-out loss at scale `tiny`.
        columns: of the tables, separated by commas; see `study_files.texts`.

    Raises:
        InputError: no study has this name, or an option cannot be combined with the scale.
    """
    definition = load_definition(name)
    if scale not in SCALES:
        hint = did_you_mean(scale, SCALES) or f"The scales are {' and '.join(SCALES)}"
        raise InputError(f"there is no scale {scale!r}. {hint}")
    if scale != "tiny" and (models or data):
        raise InputError("--model and --data need --scale tiny. At scale paper, use --set")
    fixed = [f"{field}={_text(value)}" for field, value in definition.settings.items()]
    fixed.append(f"variants={_text(definition.variants)}")
    # As in the paper's code: a training that fails is measured, not stopped.
    fixed.append("forgetting.divergence_ratio=null")
    grid = {SEED: levels_of(definition.seeds)} if seeds is None else read_grid([f"seed={seeds}"])
    grid |= {field: levels_of(values) for field, values in definition.grid.items()}
    fields = [field for field in grid if field != SEED]
    if scale == "tiny":
        runs = _tiny_runs(models, data, grid, [*fixed, *overrides])
        # After so few steps hardly any answer is exact. The loss says more.
        metric = metric or "heldout/loss"
        notes = [TINY_NOTE]
        published = []
    else:
        runs = expand({model: model for model in definition.models}, grid, [*fixed, *overrides])
        metric = metric or definition.metric
        notes = definition.notes
        published = [
            Published(p.model, p.variant, p.value, _levels(p.levels), p.derived)
            for p in definition.published
        ]
    return Study(
        name if scale == "paper" else f"{name}-{scale}",
        definition.title,
        runs,
        fields,
        metric,
        definition.x,
        is_sorted=False,
        published=published,
        notes=notes,
        columns=_columns(columns, fields),
    )


def _tiny_runs(
    models: Sequence[str],
    data: str | None,
    grid: dict[str, list[str]],
    overrides: Sequence[str],
) -> list[StudyRun]:
    given = []
    if data is not None:
        given.append(f"data.sources={_text([{'path': str(Path(data).resolve())}])}")
    if not models:
        return expand({"tiny": TINY}, grid, [*given, *overrides])
    runs: list[StudyRun] = []
    for model in models:
        path = Path(model)
        label, place = (path.name, str(path.resolve())) if path.is_dir() else (model, model)
        # The demo's chat template is for the demo's model.
        own = [f"model.name_or_path={_text(place)}", "model.chat_template=null"]
        runs += expand({label: TINY}, grid, [*given, *own, *overrides])
    if len({run.name for run in runs}) < len(runs):
        raise InputError("two models have the same name. Rename one of their folders")
    return runs


def _levels(levels: dict[str, Any]) -> dict[str, str]:
    return {field: levels_of([value])[0] for field, value in levels.items()}


def _text(value: Any) -> str:
    """YAML on one line. PyYAML writes 1e-4 so that it reads it back as a number."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text.removesuffix("...\n").strip()
