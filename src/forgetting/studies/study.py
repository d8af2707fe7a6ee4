"""What a study is: from a recipe and a grid, or from a definition (`definitions/*.yaml`).

Goes in: the user's recipe and grid, or the name of a definition and a scale. Comes out: a `Study`,
whose runs can be done and whose results can be shown. Runs nothing.
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
from forgetting.studies.study_table import Published

SCALES = ("paper", "tiny")
DEFINITIONS = Path(str(resources.files("forgetting"))) / "studies" / "definitions"
TINY = DEFINITIONS.parent / "tiny.yaml"
TINY_NOTE = (
    "Scale tiny: a small model and a small corpus, which show that the study runs. Its figures say "
    "nothing of the paper's models, so the published ones are left out."
)


class PublishedSettings(Section):
    """A figure of the paper."""

    model: str
    variant: str
    value: float
    levels: dict[str, Any] = {}
    """Of the fields of the grid that it was measured at."""
    derived: bool = False
    """Not printed itself: a printed figure and a printed difference."""


class Definition(Section):
    """A study as a file."""

    name: Name
    title: str
    models: Annotated[list[str], Field(min_length=1)]
    """Shipped recipes, one for each model."""
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]
    metric: str | None = None
    """`task/metric` or `task/metric/group`; null: what the report of a run is about."""
    variants: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    """In place of those of the recipes."""
    settings: dict[str, Any] = {}
    """Fields of the recipe with one value for all runs."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Fields of the recipe with the values that they take."""
    x: str | None = None
    """The field of the grid over which the figure is drawn; null: bars."""
    published: list[PublishedSettings] = []
    notes: list[str] = []
    """What a reader of the table must know."""


@dataclass(frozen=True)
class Study:
    """What is to be run, and how it is shown."""

    name: str
    title: str
    runs: Sequence[StudyRun]
    fields: Sequence[str]
    """Those of the grid but the seed."""
    metric: str | None
    x: str | None
    is_sorted: bool
    """The table has the best row first; else its rows are in the order of the study."""
    published: Sequence[Published] = ()
    notes: Sequence[str] = ()


def sweep_study(
    recipe: str | Path,
    grid: Sequence[str],
    overrides: Sequence[str] = (),
    metric: str | None = None,
) -> Study:
    """A study of the user's own recipe.

    Args:
        recipe: a YAML file, or the name of a shipped recipe.
        grid: `section.field=value,value` for each field that varies.
        overrides: `section.field=value`, for all runs.
        metric: `task/metric` or `task/metric/group`; None: what the report of a run is about.

    Raises:
        InputError: the grid or a recipe of it cannot be used.
    """
    levels = read_grid(grid)
    if not levels:
        raise InputError("a sweep needs --grid section.field=value,value")
    name = load_recipe(recipe, overrides).name
    runs = expand({name: recipe}, levels, overrides)
    fields = [field for field in levels if field != SEED]
    title = f"{name}: {', '.join(fields) or SEED}"
    return Study(name, title, runs, fields, metric, _numeric(levels, fields), is_sorted=True)


def _numeric(levels: dict[str, list[str]], fields: Sequence[str]) -> str | None:
    """The first field with several levels, all of them numbers: what a figure is drawn over."""

    def is_number(level: str) -> bool:
        try:
            float(level)
        except ValueError:
            return False
        return True

    return next((f for f in fields if len(levels[f]) > 1 and all(map(is_number, levels[f]))), None)


def shipped_studies() -> list[str]:
    """Names of the studies in the package."""
    return sorted(file.stem for file in DEFINITIONS.glob("*.yaml"))


def load_definition(name: str) -> Definition:
    """Read a shipped study.

    Raises:
        InputError: there is none of this name.
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
) -> Study:
    """A study of the paper.

    Args:
        name: a shipped study.
        scale: paper: its models and data; tiny: the demo's, in minutes.
        models: with scale tiny, folders or hub ids of small models in place of the demo's.
        data: with scale tiny, a data file in place of the demo's world.
        seeds: as in `--grid seed=1,2`; None: the study's own.
        overrides: `section.field=value`, for all runs.
        metric: default: the study's own; at scale tiny, the held-out loss.

    Raises:
        InputError: no such study, or an option that does not go with the scale.
    """
    definition = load_definition(name)
    if scale not in SCALES:
        hint = did_you_mean(scale, SCALES) or f"The scales are {' and '.join(SCALES)}"
        raise InputError(f"there is no scale {scale!r}. {hint}")
    if scale != "tiny" and (models or data):
        raise InputError("--model and --data go with --scale tiny; here, use --set")
    fixed = [f"{field}={_text(value)}" for field, value in definition.settings.items()]
    fixed.append(f"variants={_text(definition.variants)}")
    # As in the paper's code: what fails is measured, not stopped.
    fixed.append("forgetting.divergence_ratio=null")
    grid = {SEED: levels_of(definition.seeds)} if seeds is None else read_grid([f"seed={seeds}"])
    grid |= {field: levels_of(values) for field, values in definition.grid.items()}
    fields = [field for field in grid if field != SEED]
    if scale == "tiny":
        runs = _tiny_runs(models, data, grid, [*fixed, *overrides])
        # After so few steps hardly any answer is exact, and loss says more.
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
        # The demo's chat form is for the demo's model.
        own = [f"model.name_or_path={_text(place)}", "model.chat_template=null"]
        runs += expand({label: TINY}, grid, [*given, *own, *overrides])
    if len({run.name for run in runs}) < len(runs):
        raise InputError("two of the models have the same name: give their folders other names")
    return runs


def _levels(levels: dict[str, Any]) -> dict[str, str]:
    return {field: levels_of([value])[0] for field, value in levels.items()}


def _text(value: Any) -> str:
    """As YAML, on one line. PyYAML writes 1e-4 so that it reads it back as a number."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text.removesuffix("...\n").strip()
