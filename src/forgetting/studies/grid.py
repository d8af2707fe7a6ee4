"""The models that a study trains: recipes times the levels of a grid, in as few runs as possible.

In: recipes by name, overrides, and a grid `{field: [values]}`. Out: runs, each with a complete
recipe, and the cells in them. Recipes that differ only in selection, forgetting and variants become
variants of one run, and share its corpus, reference model and scores. A field that does not affect
a variant (rho for `full`, t_max for `ignoring`) does not train it twice. Executes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forgetting.config import (
    ForgettingSettings,
    Recipe,
    SelectionSettings,
    VariantSettings,
    load_recipe,
)
from forgetting.config.yaml_text import NOT_YAML, parse_yaml
from forgetting.errors import InputError

# Recipes that differ only in these sections share a run.
VARIANT_SECTIONS = frozenset({"selection", "forgetting", "variants"})
SEED = "seed"
NAME_LENGTH = 100

Levels = Mapping[str, str]
"""Values of grid fields, as YAML."""


@dataclass(frozen=True)
class StudyCell:
    """One variant of one run, which is trained once and evaluated."""

    run: str
    variant: str
    """Variant name in the run."""
    model: str
    """Name of the recipe in the study."""
    name: str
    """Variant name in the recipe, the same at all levels."""
    levels: Levels
    """Levels of the fields that affect the variant, without the seed."""
    seed: int


@dataclass(frozen=True)
class StudyRun:
    """A recipe to run, with all variants that can share it."""

    name: str
    recipe: Recipe
    cells: Sequence[StudyCell]
    """The untrained base model and every variant."""


def read_grid(options: Sequence[str]) -> dict[str, list[str]]:
    """Parse `field=value,value` into levels by field.

    Raises:
        InputError: the text has another form or no value, or a field occurs twice.
    """
    grid: dict[str, list[str]] = {}
    for option in options:
        field, equals, text = option.partition("=")
        try:
            values = parse_yaml(f"[{text}]")
        except NOT_YAML as error:
            raise InputError(f"--grid {option}: the values are not valid YAML") from error
        if not equals or not field or not values:
            raise InputError(f"--grid {option}: expected section.field=value,value")
        if field in grid:
            raise InputError(f"--grid {option}: {field} occurs twice. List all its values once")
        grid[field] = levels_of(values)
    return grid


def levels_of(values: Sequence[Any]) -> list[str]:
    """The distinct values as levels, in order."""
    return list(dict.fromkeys(_level(value) for value in values))


def _level(value: Any) -> str:
    """One text per value: 0.50 equals 0.5, and 1e-4 (a string in YAML) equals 0.0001."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return f"{float(value):.12g}" if not isinstance(value, int) else str(value)
    except (TypeError, ValueError):
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
        return text.removesuffix("...\n").strip()


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each field, or the whole field if two end the same way."""
    last = [field.rpartition(".")[2] for field in fields]
    return {
        field: part if last.count(part) == 1 else field
        for field, part in zip(fields, last, strict=True)
    }


def expand(
    recipes: Mapping[str, str | Path],
    grid: Mapping[str, Sequence[str]],
    overrides: Sequence[str] = (),
) -> list[StudyRun]:
    """All runs of a study.

    Args:
        recipes: YAML files or names of shipped recipes, by the model's name in the study.
        grid: levels by recipe field; `seed` is a field like any other.
        overrides: `section.field=value`, for all recipes.

    Raises:
        InputError: a recipe cannot be used at some level. The message names its fields.
    """
    for_runs = {f: grid[f] for f in grid if f.partition(".")[0] not in VARIANT_SECTIONS}
    for_variants = {field: grid[field] for field in grid if field not in for_runs}
    short = short_names(list(grid))
    runs = []
    for model, path in recipes.items():
        for levels in _combinations(for_runs):
            fixed = [*overrides, *_as_overrides(levels)]
            variations = [
                (own, load_recipe(path, [*fixed, *_as_overrides(own)]))
                for own in _combinations(for_variants)
            ]
            runs.append(_run(model, levels, variations, short))
    return runs


def _combinations(grid: Mapping[str, Sequence[str]]) -> Iterator[Levels]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _as_overrides(levels: Levels) -> list[str]:
    return [f"{field}={value}" for field, value in levels.items()]


def _parts(levels: Levels, short: Mapping[str, str]) -> list[str]:
    return [f"{short[field]}-{value}" for field, value in levels.items()]


def _folder_name(parts: Sequence[str]) -> str:
    """A valid folder name. Different parts give different names."""
    text = "-".join(parts)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip("_.-")
    if name == text and len(name) <= NAME_LENGTH:
        return name
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: NAME_LENGTH - 9]}-{mark}"


def _run(
    model: str,
    levels: Levels,
    variations: Sequence[tuple[Levels, Recipe]],
    short: Mapping[str, str],
) -> StudyRun:
    """One run for recipes that differ only in their variants' settings."""
    run = _folder_name([model, *_parts(levels, short)])
    first = variations[0][1]
    shared = {field: value for field, value in levels.items() if field != SEED}
    variants: dict[str, VariantSettings] = {}
    cells = [StudyCell(run, "base", model, "base", shared, first.seed)]
    for name in dict.fromkeys(name for _, recipe in variations for name in recipe.variants):
        settings = [
            (own, _in_effect(recipe.variants[name]))
            for own, recipe in variations
            if name in recipe.variants
        ]
        matter = [field for field in variations[0][0] if _matters(field, settings)]
        for own, setting in settings:
            of_variant = {field: own[field] for field in matter}
            variant = _folder_name([name, *_parts(of_variant, short)])
            if variants.setdefault(variant, setting) != setting:
                raise InputError(
                    f"two variants would be named {variant!r}. Rename one of them in the recipe"
                )
            cell = StudyCell(run, variant, model, name, {**shared, **of_variant}, first.seed)
            if cell not in cells:
                cells.append(cell)
    return StudyRun(run, first.model_copy(update={"name": run, "variants": variants}), cells)


def _in_effect(variant: VariantSettings) -> VariantSettings:
    """The variant without settings that its objective does not use."""
    unread: dict[str, Any] = {}
    if variant.objective != "forgetting":
        unread["forgetting"] = ForgettingSettings()
    if variant.objective == "full":
        unread["selection"] = SelectionSettings()
    return variant.model_copy(update=unread)


def _matters(field: str, settings: Sequence[tuple[Levels, VariantSettings]]) -> bool:
    """Whether changing only this field changes the settings anywhere."""
    seen: dict[tuple[tuple[str, str], ...], VariantSettings] = {}
    for levels, setting in settings:
        others = tuple((f, value) for f, value in levels.items() if f != field)
        if seen.setdefault(others, setting) != setting:
            return True
    return False
