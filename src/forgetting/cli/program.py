"""The program: all commands, and what becomes of errors and Ctrl-C."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from forgetting import __version__
from forgetting.cli.groups import app
from forgetting.cli.interrupt import Interrupted
from forgetting.console import Failure, failure_of, print_failure, quiet_frameworks, report_errors
from forgetting.errors import ForgettingError
from forgetting.launch import report_failure
from forgetting.rundir.processes import end_with_the_others, num_processes

# In the order of the help. Each module adds its commands to the app.
for module in ("run", "audit", "inspect", "chat", "export", "study", "machine"):
    import_module(f"forgetting.cli.{module}_commands")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.")
    ] = False,
) -> None:
    if show_version:
        typer.echo(f"forgetting {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; default: those of this process.

    Returns:
        The exit code.
    """
    if num_processes() > 1:
        end_with_the_others()
    quiet_frameworks()
    return report_errors(lambda: _run(arguments), _tell)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=arguments, prog_name="forgetting")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except Interrupted as interrupt:
        raise KeyboardInterrupt(*interrupt.args) from interrupt
    except Exception as error:
        if num_processes() > 1 and failure_of(error) is None:
            # A traceback on standard error would be lost among those of the other processes.
            raise ForgettingError(traceback.format_exc()) from error
        raise
    return 0


def _tell(failure: Failure) -> None:
    # Of several processes, the launcher shows the message of the one that failed first.
    if num_processes() == 1 or not report_failure(failure.message, failure.exit_code):
        print_failure(failure)


def entry() -> None:
    """The `forgetting` command."""
    sys.exit(main())
