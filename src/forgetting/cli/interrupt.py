"""Ctrl-C, for all commands: one line, and exit code 130."""

from __future__ import annotations

import signal
from typing import Any

from typer.core import TyperGroup

from forgetting.console import CONTINUE

MESSAGE = f"Interrupted. {CONTINUE}"


class Interrupted(Exception):
    """Ctrl-C, on its way through Typer."""


class InterruptibleGroup(TyperGroup):
    """Lets Ctrl-C through to `console.report_errors`. Typer turns `KeyboardInterrupt` into an exit
    of its own, with another exit code in each version, and drops the message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            # Another one on the way to `report_errors` would become Typer's exit after all.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise Interrupted(*interrupt.args) from interrupt
