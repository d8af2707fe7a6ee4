"""What a recipe can hold: every section and field with what it takes, its default and its meaning.

Output: plain values, from the JSON schema of `Recipe`, for `forgetting fields` and for the pages of
the reference. So the program and the documentation say the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from forgetting.config.schema import Recipe

ROOT = "recipe"
# In the words of a sentence: a number _at least 0_.
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "string": "text",
    "null": "`null`",
}
# These are filled in, though the schema requires them.
_FILLED_IN = ("name", "variants")
_LONGEST_DEFAULT = 80


@dataclass(frozen=True)
class RecipeField:
    """One field. Code is between backticks."""

    name: str
    takes: str
    """Which values it may have."""
    default: str
    """As YAML has it; `must be given`, or empty if it is a section or too long."""
    meaning: str


@dataclass(frozen=True)
class RecipeSection:
    """One section and its fields."""

    name: str
    """`recipe` for the recipe itself."""
    meaning: str
    fields: tuple[RecipeField, ...]


def recipe_sections() -> dict[str, RecipeSection]:
    """All sections by name: the recipe itself, then each section before those within it."""
    schema = Recipe.model_json_schema()
    found: dict[str, RecipeSection] = {}

    def visit(name: str, section: Mapping[str, Any]) -> None:
        if name in found:
            return
        found[name] = _section(name, section)
        for field in section["properties"].values():
            for inner in _references(field):
                visit(_section_name(inner), schema["$defs"][inner])

    visit(ROOT, schema)
    return found


def _section(name: str, section: Mapping[str, Any]) -> RecipeSection:
    required = section.get("required", ())
    return RecipeSection(
        name,
        " ".join(section["description"].split()),
        tuple(
            RecipeField(
                field,
                _takes(values),
                _default(field, values, required),
                " ".join(values.get("description", "").split()),
            )
            for field, values in section["properties"].items()
        ),
    )


def _section_name(definition: str) -> str:
    return definition.removesuffix("Settings").lower()


def _references(node: Any) -> Iterator[str]:
    """Names of the sections that a field's schema refers to."""
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield node["$ref"].rsplit("/", 1)[1]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _takes(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = _section_name(field["$ref"].rsplit("/", 1)[1])
        return f"a section: [{name}](#{name})"
    if "anyOf" in field:
        return ", or ".join(_takes(arm) for arm in field["anyOf"])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return f"a list of: {_takes(field['items'])}"
    if field["type"] == "object":
        inner = [field.get("additionalProperties"), *field.get("patternProperties", {}).values()]
        values = [_takes(each) for each in inner if isinstance(each, Mapping)]
        return f"names, each with: {values[0]}" if values else "fields"
    bounds = [f"{words} {field[key]}" for key, words in _BOUNDS.items() if key in field]
    return " ".join([_TYPES[field["type"]], ", ".join(bounds)]).strip()


def _default(name: str, field: Mapping[str, Any], required: Any) -> str:
    if name in required and name not in _FILLED_IN:
        return "must be given"
    if "default" not in field or "$ref" in field:
        return ""
    value = field["default"]
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if len(json.dumps(value)) <= _LONGEST_DEFAULT else ""
