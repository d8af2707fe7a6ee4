"""Recipes as files: reads YAML with `extends` and `--set`, explains mistakes, writes YAML.

Input: a YAML file or the name of a shipped recipe, and `section.field=value` overrides.
Output: a `Recipe` in which every field has a value and every local path is absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from forgetting.config.fields import Section
from forgetting.config.inheritance import without_inherited
from forgetting.config.inputs import PLAIN_TEMPLATE
from forgetting.config.overrides import apply_override, check_effect
from forgetting.config.schema import Recipe, TrainingSettings
from forgetting.config.yaml_text import NOT_YAML, parse_yaml
from forgetting.errors import InputError, did_you_mean
from forgetting.formats import FORMATS
from forgetting.method.corruptions import CORRUPTIONS
from forgetting.method.losses import LOSSES
from forgetting.method.measures import MEASURES
from forgetting.method.terms import TERMS
from forgetting.registry import Registry


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("forgetting.config") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def recipe_descriptions() -> dict[str, str]:
    """What each shipped recipe is for, by name: the comment at the top of its file."""
    folder = resources.files("forgetting.config") / "recipes"
    descriptions = {}
    for name in shipped_recipes():
        lines = (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = takewhile(lambda line: line.startswith("#"), lines)
        descriptions[name] = " ".join(line.removeprefix("#").strip() for line in comment)
    return descriptions


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    A recipe with `extends: OTHER` (a file next to it, or a shipped name) overrides only the fields
    that it sets.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe.
        overrides: `section.field=value` with the value in YAML, applied before validation.

    Raises:
        InputError: the recipe does not exist, is not YAML, or has unknown or invalid fields; the
            message names each of them by its path. Or an override changes nothing.
    """
    path = _find(path_or_name, Path())
    given, folders = _read(path, ())
    for override in overrides:
        apply_override(given, override)
    given.setdefault("name", path.stem)
    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        raise InputError(f"{path} is not valid:\n{_explain(error)}") from error
    for override in overrides:
        check_effect(recipe, override)
    return _with_absolute_paths(recipe, folders)


MAX_SHOWN = 200
"""Characters of a wrong value that a message shows."""
MAX_EXTENDS = 50
"""Recipes in a row that may extend each other."""


def _find(path_or_name: str | Path, folder: Path) -> Path:
    path = folder / path_or_name
    if not path.is_file() and str(path_or_name) in shipped_recipes():
        path = Path(str(resources.files("forgetting.config") / "recipes" / f"{path_or_name}.yaml"))
    if not path.is_file():
        raise InputError(
            f"there is no recipe {path}. Pass a YAML file or one of the shipped recipes: "
            + ", ".join(shipped_recipes())
        )
    return path


def _read(path: Path, inner: tuple[Path, ...]) -> tuple[dict[str, Any], list[Path]]:
    """The fields of a recipe merged over those that it extends, and the folders of both."""
    try:
        given = parse_yaml(path.read_text(encoding="utf-8"))
    except NOT_YAML as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise InputError(f"{path} is not a recipe: expected sections such as `model` and `data`")
    if "extends" not in given:
        return given, [path.parent]
    outer = _find(str(given.pop("extends")), path.parent)
    if outer.resolve() in {p.resolve() for p in (*inner, path)}:
        raise InputError(f"{path} extends itself. Remove or change its `extends`")
    if len(inner) >= MAX_EXTENDS:
        raise InputError(
            f"{path} is extended by {MAX_EXTENDS} recipes, each by the next. Write fewer, longer "
            "recipes"
        )
    extended, folders = _read(outer, (*inner, path))
    extended.pop("name", None)
    left_out = _left_out(extended, given)
    merged = _merged(extended, given)
    if left_out:
        kept = {name: v for name, v in merged["variants"].items() if name not in left_out}
        merged["variants"] = kept
    return merged, [path.parent, *folders]


def _left_out(under: dict[str, Any], over: dict[str, Any]) -> set[Any]:
    """Names of the variants of a recipe that the one that extends it sets to null."""
    inherited, own = under.get("variants"), over.get("variants")
    if not isinstance(inherited, dict) or not isinstance(own, dict):
        return set()
    return {name for name, variant in own.items() if variant is None and name in inherited}


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge sections field by field. Lists and values are replaced."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        merged[key] = value
    return merged


def _explain(error: ValidationError) -> str:
    """One line per field. An inherited value is reported where it was written."""
    errors = error.errors()
    reported = {tuple(item["loc"]): item["msg"] for item in errors}
    lines: dict[str, None] = {}
    for item in errors:
        loc = tuple(item["loc"])
        if not loc:
            # About several fields, which the message names.
            lines[f"  {item['msg'].removeprefix('Value error, ')}"] = None
            continue
        written = {"variants": loc[2:], "reference": ("training", *loc[1:])}.get(str(loc[0]))
        if written is not None and reported.get(written) == item["msg"]:
            continue
        # Pydantic adds the branch of a union that it tried, and keys, to the user's path.
        path = ".".join(str(part) for part in loc if "[" not in str(part))
        lines[f"  {path}: {_reason(item['type'], item['msg'], loc, item['input'])}"] = None
    return "\n".join(lines)


def _reason(kind: str, message: str, loc: tuple[int | str, ...], given: Any) -> str:
    if kind == "extra_forbidden":
        allowed = _allowed(loc[:-1])
        name = str(loc[-1])
        hint = did_you_mean(name, allowed.split(", "))
        if not hint and len(loc) == 1:
            hint = _in_sections(name)
        return f"unknown field. Allowed here: {allowed}{hint and f'. {hint}'}"
    if kind == "missing":
        return "is missing"
    if kind == "model_type":
        fields = _allowed(loc)
        return f"expected a section with fields (got {_shown(given)}). Allowed here: {fields}"
    if kind == "string_pattern_mismatch":
        message = (
            "must be letters, digits, `_`, `.` and `-`, the first a letter or digit, at most 100"
        )
    message = message.removeprefix("Value error, ")
    return message if isinstance(given, dict) else f"{message} (got {_shown(given)})"


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _in_sections(name: str) -> str:
    """A question with the fields of sections that are most like a name at the top of a recipe."""
    paths: dict[str, list[str]] = {}
    for section, field in Recipe.model_fields.items():
        own = _section(field.annotation)
        if isinstance(own, type) and issubclass(own, Section):
            for inner in own.field_names():
                paths.setdefault(inner, []).append(f"{section}.{inner}")
    near = did_you_mean(name, paths).removeprefix("Did you mean ").removesuffix("?")
    found = [path for inner in near.split(" or ") for path in paths.get(inner, ())]
    # Those of `reference` are inherited from `training`.
    found = [path for path in found if not path.startswith("reference.")] or found
    return f"Did you mean {' or '.join(found[:3])}?" if found else ""


def _allowed(loc: Sequence[int | str]) -> str:
    """The fields of the section at a path, for the message about an unknown one."""
    annotation: Any = Recipe
    for part in loc:
        annotation = _section(annotation)
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = annotation.model_fields[str(part)].annotation
        else:
            # An item of a list, or a value of a dictionary with names of the user.
            annotation = get_args(annotation)[-1]
    return ", ".join(_section(annotation).field_names())


def _section(annotation: Any) -> Any:
    """The section type of an optional section."""
    if get_origin(annotation) in (Union, UnionType):
        return next(arm for arm in get_args(annotation) if arm is not type(None))
    return annotation


def _with_absolute_paths(recipe: Recipe, folders: Sequence[Path]) -> Recipe:
    """Resolve local paths: next to the recipe first, then from the current directory.

    A path that exists in neither place is kept: it is a Hub id, or the stage that reads it reports
    the error.
    """

    def resolve(value: str | None) -> str | None:
        if value is None or value == PLAIN_TEMPLATE:
            return value
        for candidate in (*(folder / value for folder in folders), Path(value)):
            if candidate.exists():
                return str(candidate.resolve())
        return value

    def updated(section: Any, *fields: str) -> Any:
        return section.model_copy(update={f: resolve(getattr(section, f)) for f in fields})

    sources = [updated(source, "path") for source in recipe.data.sources]
    trusted = recipe.reference.sources and [
        updated(source, "path") for source in recipe.reference.sources
    ]
    reference = updated(recipe.reference, "name_or_path").model_copy(update={"sources": trusted})
    return recipe.model_copy(
        update={
            "model": updated(recipe.model, "name_or_path", "chat_template"),
            "reference": reference,
            "evaluation": updated(recipe.evaluation, "include_path", "data_dir"),
            "data": recipe.data.model_copy(update={"sources": sources}),
        }
    )


def check_batches(recipe: Recipe, num_processes: int) -> None:
    """Refuse a number of processes that an optimizer step cannot be divided by.

    Raises:
        InputError: the message names the field of the recipe and what to set.
    """
    for section in ("training", "reference"):
        is_trained = recipe.needs_reference and not recipe.reference.name_or_path
        if section == "reference" and not is_trained:
            continue
        settings: TrainingSettings = getattr(recipe, section)
        together = settings.micro_batch_size * num_processes
        if settings.batch_size % together:
            raise InputError(
                f"{section}.batch_size {settings.batch_size} is not divisible by "
                f"{section}.micro_batch_size {settings.micro_batch_size} x {num_processes} "
                f"processes. Set it to a multiple of {together}, or change --processes or "
                "micro_batch_size"
            )


def check_installed(recipe: Recipe) -> None:
    """Refuse names that worker processes would not know.

    Workers import installed packages, but not the script that registered a name.

    Raises:
        InputError: a measure, term, loss, corruption or format was registered from Python only.
    """
    used: list[tuple[str, Registry[Any], str]] = []
    for name in recipe.selecting_variants:
        variant, path = recipe.variants[name], f"variants.{name}"
        used.append((f"{path}.selection.quality", MEASURES, variant.selection.quality))
        if variant.objective == "forgetting":
            used.append((f"{path}.forgetting.term", TERMS, variant.forgetting.term))
    used += [(f"variants.{name}.loss", LOSSES, v.loss.name) for name, v in recipe.variants.items()]
    if recipe.needs_detector:
        used += [
            ("detector.corruptions", CORRUPTIONS, name) for name in recipe.detector.corruptions
        ]
    for section in ("data", "reference"):
        for index, source in enumerate(getattr(recipe, section).sources or ()):
            used.append((f"{section}.sources.{index}.format", FORMATS, source.format))
    for field, registry, name in used:
        if name in registry and not registry.is_installed(name):
            raise InputError(
                f"{field}: the {registry.kind} {name} was registered from Python, so other "
                f"processes do not know it. Declare it as an entry point in the group "
                f"{registry.group} of an installed package, or run without --processes"
            )


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, as the run directory stores it: every field, apart from those that a
    section inherits from another."""
    return yaml.safe_dump(without_inherited(recipe), sort_keys=False, allow_unicode=True)
