"""`recipes` and `doctor`: what is installed, and what this machine can do."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forgetting.cli.groups import MACHINE, app
from forgetting.cli.options import JsonOption

COLORS = {"ok": "green", "note": "yellow", "broken": "bold red"}


@app.command(rich_help_panel=MACHINE, epilog="Example: forgetting recipes")
def recipes() -> None:
    """List the shipped recipes."""
    from forgetting.config import shipped_recipes

    for name in shipped_recipes():
        typer.echo(name)


@app.command(rich_help_panel=MACHINE, epilog="Example: forgetting doctor --json")
def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: devices, memory, versions. Exits with 1 if a requirement is broken."""
    from forgetting.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            level = f"[{COLORS[finding.level]}]{finding.level}[/]"
            table.add_row(level, finding.what, escape(finding.detail))
        Console().print(table)
    if any(finding.level == "broken" for finding in findings):
        raise typer.Exit(1)
