"""Writes the generated parts of the reference pages, so that they can be read in the repository.

Run it with `make reference` after a change to a recipe field, a command or a public docstring. A
generated part lies between `<!-- fields of SECTION -->`, `<!-- commands -->` or `<!-- API: ... -->`
and `<!-- end -->`. A test says if a part is not current. In the site, `public_names` replaces the
parts about Python by what mkdocstrings makes of them.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer.main

import forgetting
from forgetting import errors
from forgetting.cli import app
from forgetting.config.field_table import RecipeSection, recipe_sections

FOLDER = Path(__file__).parents[1] / "reference"
PAGES = ("recipe.md", "commands.md", "api.md")
PART = re.compile(r"<!-- (fields of \w+|commands|API: .+?|errors) -->\n.*?<!-- end -->", re.DOTALL)
# Members to show; the other classes have only fields, or hundreds of inherited settings.
MEMBERS = {
    "ForgettingTerm": ("needs_base", "is_per_sample", "__call__"),
    "ForgettingTrainer": ("lam", "compute_loss"),
    "LambdaSchedule": ("__call__",),
    "PositiveLoss": ("__call__",),
}
SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Yields|Raises|Examples?):$")


def main() -> None:
    """Bring all pages up to date."""
    for name in PAGES:
        page = FOLDER / name
        page.write_text(generate(page.read_text(encoding="utf-8")), encoding="utf-8")


def generate(page: str) -> str:
    """A page with its generated parts as they should be."""

    def part(match: re.Match[str]) -> str:
        what, _, rest = match[1].partition(" ")
        text = {"fields": _fields, "commands": _commands, "API:": _names, "errors": _errors}[what]
        return f"<!-- {match[1]} -->\n{text(rest).strip()}\n\n<!-- end -->"

    return PART.sub(part, page)


def _fields(rest: str) -> str:
    return fields_table(recipe_sections()[rest.removeprefix("of ")])


def fields_table(section: RecipeSection) -> str:
    """What a section is, and its fields as a table."""
    rows = ["| field | takes | default | |", "|---|---|---|---|"]
    for field in section.fields:
        meaning = field.meaning.replace("|", "\\|")
        rows.append(f"| `{field.name}` | {field.takes} | {field.default} | {meaning} |")
    return f"{section.meaning}\n\n" + "\n".join(rows)


def _commands(rest: str) -> str:
    del rest
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = {name: command for name, command in commands.items() if not command.hidden}
    return "\n\n".join(command_section(*item) for item in shown.items())


def command_section(name: str, command: Any) -> str:
    """A command's usage, help, example and parameters."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    hints = get_type_hints(command.callback)
    usage = " ".join(["forgetting", name, *map(_metavar, arguments), "[OPTIONS]"])
    rows = ["| | |", "|---|---|"]
    rows += [_row(_metavar(each), each.help) for each in arguments]
    rows += [_row(_spelling(each, hints.get(each.name)), each.help) for each in options]
    text = " ".join((command.help or "").split())
    example = (command.epilog or "").replace("Example: ", "Example: `") + "`"
    return f"## forgetting {name}\n\n```\n{usage}\n```\n\n{text}\n\n{example}\n\n" + "\n".join(rows)


def _metavar(argument: Any) -> str:
    """The name of an argument, in brackets if it can be omitted."""
    name = (argument.metavar or argument.name.upper()).strip("[]")
    return name if argument.required else f"[{name}]"


def _spelling(option: Any, hint: Any) -> str:
    """An option as it is typed, with its choices or a name for its value."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {option.metavar or '|'.join(_choices(hint)) or 'VALUE'}"


def _choices(hint: Any) -> list[str]:
    """The values of a Literal, also of one that may be None."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [value for arm in get_args(hint) for value in _choices(arm)]


def _row(name: str, text: str | None) -> str:
    """A row of the table, in which a bar would end the cell."""
    escaped = " ".join((text or "").split()).replace("|", "\\|")
    # GitHub and MkDocs differ in how they read a bar in backticks.
    code = f"<code>{name.replace('|', '&#124;')}</code>" if "|" in name else f"`{name}`"
    return f"| {code} | {escaped} |"


def matching(patterns: list[str]) -> list[str]:
    """The public names that match, pattern by pattern."""
    return [
        name for pattern in patterns for name in forgetting.__all__ if fnmatchcase(name, pattern)
    ]


def _names(rest: str) -> str:
    return "\n\n".join(_entry(name, getattr(forgetting, name)) for name in matching(rest.split()))


def _errors(rest: str) -> str:
    del rest
    own = [
        (name, thing)
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and thing.__module__ == errors.__name__
    ]
    return "\n\n".join(_entry(name, thing) for name, thing in own)


def _entry(name: str, thing: Any) -> str:
    """A heading, the signature and the docstring of a public name and of its shown members."""
    parts = [f"### {name}"]
    if name == "Recipe":
        return f"{parts[0]}\n\nA pydantic model with the fields in [Recipe fields](recipe.md)."
    is_error = isinstance(thing, type) and issubclass(thing, Exception)
    has_signature = "__init__" in vars(thing) if is_error else callable(thing)
    if has_signature and not _has_many_fields(thing):
        parts.append(f"```text\n{_signature(name, thing)}\n```")
    parts.append(docstring(inspect.getdoc(thing) or ""))
    for member in MEMBERS.get(name, ()):
        found = inspect.getattr_static(thing, member)
        title = member
        if callable(found):
            title = _signature(member, found)
        parts.append(f"`{title}`: {docstring(inspect.getdoc(found) or '')}")
    return "\n\n".join(part for part in parts if part)


def _has_many_fields(thing: Any) -> bool:
    # The signature of a configuration has hundreds of parameters of its parents.
    return isinstance(thing, type) and len(inspect.signature(thing).parameters) > 20


def _signature(name: str, thing: Callable[..., Any]) -> str:
    """The parameters with their defaults, without annotations, which the docstring explains."""
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(thing).parameters.values()
        if each.name != "self"
    ]
    text = str(inspect.Signature(parameters))
    # Addresses in memory and sentinels differ from one run to the next.
    return name + re.sub(r"<([\w.]+)[^>]* at 0x[0-9a-f]+>|<factory>", r"...", text)


def docstring(text: str) -> str:
    """A docstring in Google's style as Markdown."""
    parts: list[str] = []
    kind, lines = "", []

    def close() -> None:
        body = "\n".join(lines).strip("\n")
        if body.strip():
            parts.append(_section_text(kind, inspect.cleandoc("\n" + body)))

    for line in text.splitlines():
        if SECTION.match(line):
            close()
            kind, lines = line.removesuffix(":"), []
        elif kind and line and not line.startswith(" "):
            close()
            kind, lines = "", [line]
        else:
            lines.append(line)
    close()
    return "\n\n".join(parts)


def _section_text(kind: str, body: str) -> str:
    if not kind:
        return body
    if kind.startswith("Example"):
        return f"{kind}:\n\n```text\n{body}\n```"
    if kind in ("Returns", "Yields"):
        return f"{kind}: {' '.join(body.split())}"
    items: list[str] = []
    for line in body.splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        elif line.strip():
            name, colon, rest = line.partition(":")
            items.append(f"- `{name}`:{rest}" if colon else f"- {line}")
    return f"{kind}:\n\n" + "\n".join(items)


if __name__ == "__main__":
    sys.exit(main())
