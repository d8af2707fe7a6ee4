"""A hook of MkDocs: the command reference, from the parsers of the commands themselves.

Input: a page with the line `<!-- commands -->`. Output: in its place a section per command,
with its usage, its help, and a table of its arguments and options.
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer.main

from forgetting.cli import app

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **given: Any) -> str:
    """A section per command in place of the mark."""
    del given
    if MARK not in markdown:
        return markdown
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return markdown.replace(MARK, "\n\n".join(section(*item) for item in commands.items()))


def section(name: str, command: Any) -> str:
    """A command's usage, help and parameters, as Markdown."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    hints = get_type_hints(command.callback)
    usage = " ".join(["forgetting", name, *map(metavar, arguments), "[OPTIONS]"])
    rows = ["| | |", "|---|---|"]
    rows += [row(metavar(each), each.help) for each in arguments]
    rows += [row(spelling(each, hints.get(each.name)), each.help) for each in options]
    text = " ".join((command.help or "").split())
    return f"## forgetting {name}\n\n```\n{usage}\n```\n\n{text}\n\n" + "\n".join(rows)


def metavar(argument: Any) -> str:
    """The name of an argument, in brackets if it can be omitted."""
    name = (argument.metavar or argument.name.upper()).strip("[]")
    return name if argument.required else f"[{name}]"


def spelling(option: Any, hint: Any) -> str:
    """An option as it is typed, with its choices or a name for its value."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {option.metavar or '|'.join(choices(hint)) or 'VALUE'}"


def choices(hint: Any) -> list[str]:
    """The values of a Literal, also of one that may be None."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [value for arm in get_args(hint) for value in choices(arm)]


def row(name: str, text: str | None) -> str:
    """A row of the table. A bar in code is text; any other would end the cell."""
    escaped = " ".join((text or "").split()).replace("|", "\\|")
    return f"| `{name}` | {escaped} |"
