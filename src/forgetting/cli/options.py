"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Annotated, Any

import typer

from forgetting.errors import InputError, did_you_mean


def complete_recipe(incomplete: str) -> list[str]:
    """What the shell offers for a recipe: shipped names, YAML files and folders."""
    from forgetting.config import shipped_recipes

    names = [name for name in shipped_recipes() if name.startswith(incomplete)]
    begun = Path(incomplete)
    folder, start = (begun, "") if incomplete.endswith("/") else (begun.parent, begun.name)
    found = sorted(folder.glob(f"{escape(start)}*")) if folder.is_dir() else []
    files = [str(path) for path in found if path.suffix in (".yaml", ".yml")]
    return [*names, *files, *(f"{path}/" for path in found if path.is_dir())]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="YAML file, or the name of a shipped recipe.",
        autocompletion=complete_recipe,
    ),
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", help="Run directory. Default: runs/NAME.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.FIELD=VALUE", help="Override a recipe field (repeatable)."
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Show only warnings, errors and results.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the results as JSON on standard output.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Read only the first N records of DATA.")
]
FieldOption = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="NAME=YOURS",
        help="Read your field under another name, such as prompt=question (repeatable).",
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="NAMES",
        help="Columns of a .csv or .tsv file without a header, such as question,answer.",
    ),
]
EscapedOption = Annotated[
    bool,
    typer.Option(
        "--escaped", help="Quotes in the .csv or .tsv file are plain text, and \\n is a line break."
    ),
]
QualityOption = Annotated[
    str | None,
    typer.Option(
        "--quality", metavar="MEASURE", help="Rank by this measure of quality, such as base_loss."
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        help="Train, score and evaluate in N processes, one per GPU. Default: one process.",
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--accelerate-config",
        metavar="NAME|FILE",
        help="How the processes share the work: ddp, fsdp2, zero3, or a file written by "
        "`accelerate config`. Default: ddp.",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="Output folder. Default: studies/NAME.")
]


def source_options(
    fields: Sequence[str] | None, columns: str | None, escaped: bool
) -> dict[str, Any]:
    """How a file is read, as fields of `SourceSettings`, from `--field`, `--columns` and
    `--escaped`.

    Raises:
        InputError: one of them is malformed.
    """
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    return {"fields": fields_of(fields), "columns": names, "escaped": escaped}


def fields_of(given: Sequence[str] | None) -> dict[str, str]:
    """New names for fields, from `--field`.

    Raises:
        InputError: one of them does not have the form NAME=YOURS.
    """
    fields = {}
    for each in given or ():
        name, equals, own = each.partition("=")
        if not (name and equals and own):
            raise InputError(f"--field {each}: pass NAME=YOURS, such as --field prompt=question")
        fields[name] = own
    return fields


def find_recipe(name: str) -> str:
    """A recipe's file or shipped name, if there is one.

    Raises:
        InputError: there is none; the message names those that are most like it.
    """
    from forgetting.config import shipped_recipes

    shipped = shipped_recipes()
    path = Path(name)
    if path.is_file() or name in shipped:
        return name
    files = [str(file) for file in path.parent.glob("*.y*ml")]
    hint = did_you_mean(name, [*files, *shipped])
    raise InputError(
        f"{name} is not a recipe: there is no such file, and no shipped recipe has this name. "
        f"{hint or 'Pass a YAML file, or a name from `forgetting recipes`'}"
    )
