"""The Typer app, and the groups in which its help lists the commands."""

from __future__ import annotations

import typer

from forgetting.cli.interrupt import InterruptibleGroup

RUN, SINGLE_STAGES, RESULTS = "Run a recipe", "Single stages", "Look and export"
STUDIES, MACHINE = "Studies", "This installation"

app = typer.Typer(
    name="forgetting",
    cls=InterruptibleGroup,
    help="Find the tokens of a fine-tuning corpus that hurt, and forget them while learning the "
    "rest.",
    epilog="Example: forgetting run mine.yaml --dry-run",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
