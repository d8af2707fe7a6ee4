"""The Typer app, and the groups in which its help lists the commands."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

RUN, STAGES, RESULTS = "Run a recipe", "Single stages", "Look and export"
STUDIES, MACHINE = "Studies", "This installation"


class Interrupted(Exception):
    """Ctrl-C, on its way through Typer."""


class CommandGroup(TyperGroup):
    """Lets Ctrl-C through. Typer turns `KeyboardInterrupt` into an exit of its own, with another
    exit code in each version, and drops the message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(*interrupt.args) from interrupt


app = typer.Typer(
    name="forgetting",
    cls=CommandGroup,
    help="Find the tokens of a fine-tuning corpus that hurt, and forget them while learning the "
    "rest.",
    epilog="Example: forgetting run mine.yaml --dry-run",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
