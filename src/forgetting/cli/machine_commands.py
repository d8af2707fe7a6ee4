"""`recipes`, `fields`, `doctor` and `verify`: what is installed, what this machine can do, and what
is whole."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from forgetting.cli.groups import MACHINE, app
from forgetting.cli.options import JsonOption, QuietOption
from forgetting.console import progress, setup_logging
from forgetting.errors import InputError, did_you_mean
from forgetting.rundir import layout

COLORS = {"ok": "green", "note": "yellow", "broken": "bold red"}


@app.command(rich_help_panel=MACHINE, epilog="Example: forgetting recipes --json")
def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes and what each is for."""
    from forgetting.config import recipe_descriptions

    found = recipe_descriptions()
    if as_json:
        entries = [{"name": name, "description": text} for name, text in found.items()]
        typer.echo(json.dumps(entries, indent=1))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in found.items():
        table.add_row(name, escape(text))
    Console().print(table)


@app.command(rich_help_panel=MACHINE, epilog="Example: forgetting fields training")
def fields(
    section: Annotated[
        str | None,
        typer.Argument(metavar="[SECTION]", help="Section of a recipe. Default: all sections."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the fields of a recipe: what each takes, its default and what it does."""
    from forgetting.config.field_table import recipe_sections

    sections = recipe_sections()
    if section is not None and section not in sections:
        hint = did_you_mean(section, sections) or f"The sections are {', '.join(sections)}"
        raise InputError(f"a recipe has no section {section}. {hint}")
    shown = list(sections.values()) if section is None else [sections[section]]
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in shown], indent=1))
        return
    console = Console(highlight=False)
    for each in shown:
        console.print(f"[bold underline]{each.name}[/]  {escape(plain(each.meaning))}\n")
        for field in each.fields:
            default = plain(field.default)
            rest = f"; default {default}" if field.default.startswith("`") else f"; {default}"
            values = escape(plain(field.takes) + (rest if default else ""))
            console.print(f"[bold]{field.name}[/]  [dim]{values}[/]")
            console.print(Padding(escape(plain(field.meaning)), (0, 0, 1, 4)))


def plain(markdown: str) -> str:
    """Text of the reference without the marks of code and links."""
    return re.sub(r"\[([^]]+)\]\(#[^)]+\)", r"\1", markdown).replace("`", "")


@app.command(rich_help_panel=MACHINE, epilog="Example: forgetting doctor --json")
def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: devices, memory, versions. Exits with 1 if a requirement is broken."""
    from forgetting.doctor import examine, verdict

    findings = examine()
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            level = f"[{COLORS[finding.level]}]{finding.level}[/]"
            table.add_row(level, finding.what, escape(finding.detail))
        Console(emoji=False).print(table)
        Console().print(f"\n{verdict(findings)}", style="bold", highlight=False)
    if any(finding.level == "broken" for finding in findings):
        raise typer.Exit(1)


@app.command(rich_help_panel=MACHINE, epilog="Example: forgetting verify runs/mine")
def verify(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory or audit.")],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read every file of a run and compare checksums. Exits with 1 if one is damaged."""
    setup_logging(quiet or as_json)
    from forgetting.rundir import verify as checks

    # An audit keeps its run in a folder of this name.
    inside = run_dir / "run"
    is_run = layout.manifest_file(run_dir).exists() or not layout.manifest_file(inside).exists()
    run = run_dir if is_run else inside
    with progress("Reading files", checks.num_files(run)) as advance:
        found = checks.verify(run, advance)
    if as_json:
        document = {
            "files": found.num_files,
            "bytes": found.num_bytes,
            "stages": found.stages,
            "damaged": [{**vars(each), "file": str(each.file)} for each in found.damages],
        }
        typer.echo(json.dumps(document, indent=1))
    else:
        for each in found.damages:
            typer.echo(f"{each.file} {each.problem}. {each.advice}.")
        num_damaged = len({each.file for each in found.damages})
        typer.echo(
            f"{found.num_files:,} files of {len(found.stages)} stages, "
            f"{found.num_bytes / 2**20:,.1f} MiB: {num_damaged or 'none'} damaged."
        )
    if found.damages:
        raise typer.Exit(1)
