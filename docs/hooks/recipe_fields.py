"""A hook of MkDocs: tables of a recipe's fields, from the models that read a recipe.

Input: a page with lines `<!-- fields of NAME -->`, where NAME is a section of the recipe schema.
Output: in their place what the section is, and a row for each of its fields: what it takes, its
default, what it does. So the page and the program say the same.
"""

from __future__ import annotations

import json
import re
from typing import Any

from forgetting import Recipe

MARK = re.compile(r"<!-- fields of (\w+) -->")
# In the words of a sentence: a number _at least 0_.
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "string": "text",
    "null": "`null`",
}


def on_page_markdown(markdown: str, **given: Any) -> str:
    """Tables in place of every mark on a page."""
    del given
    if not MARK.search(markdown):
        return markdown
    schema = Recipe.model_json_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    return MARK.sub(lambda match: fields_table(sections[match[1]]), markdown)


def fields_table(section: dict[str, Any]) -> str:
    """What a section is, and its fields as a table in Markdown.

    Args:
        section: JSON schema of the section.
    """
    rows = ["| field | takes | default | |", "|---|---|---|---|"]
    required = section.get("required", ())
    for name, field in section["properties"].items():
        text = " ".join(field.get("description", "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {takes(field)} | {default(name, field, required)} | {text} |")
    return f"{section['description']}\n\n" + "\n".join(rows)


def takes(field: dict[str, Any]) -> str:
    """In words: which values a field may have."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1].removesuffix("Settings").lower()
        return f"a section: [{name}](#{name})"
    if "anyOf" in field:
        return ", or ".join(takes(arm) for arm in field["anyOf"])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return f"a list of: {takes(field['items'])}"
    if field["type"] == "object":
        inner = [field.get("additionalProperties"), *field.get("patternProperties", {}).values()]
        values = [takes(each) for each in inner if isinstance(each, dict)]
        return f"names, each with: {values[0]}" if values else "fields"
    bounds = [f"{words} {field[key]}" for key, words in BOUNDS.items() if key in field]
    return " ".join([TYPES[field["type"]], ", ".join(bounds)]).strip()


def default(name: str, field: dict[str, Any], required: Any) -> str:
    """The default as YAML has it, or that there is none."""
    if name in required and name not in ("name", "variants"):
        return "must be given"
    if "default" not in field or "$ref" in field or len(json.dumps(field["default"])) > 80:
        return ""
    value = field["default"]
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"
