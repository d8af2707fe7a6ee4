"""The answer to Ctrl-C, for all commands: one line, and exit code 130."""

from __future__ import annotations

import signal
from typing import Any

import typer
from typer.core import TyperGroup

MESSAGE = "Interrupted. Run the same command again to continue."


class InterruptibleGroup(TyperGroup):
    """Commands that Ctrl-C ends in one line. Finished work is kept, see `rundir.directory`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Another Ctrl-C, or the same one sent to each process, must not cut this short.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            typer.echo(MESSAGE, err=True)
            raise typer.Exit(130) from None
