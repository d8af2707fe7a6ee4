"""What a person sees while work goes on: log lines, progress with time left, tables.

Everything for people goes to standard error; standard output is for results. Knows nothing of
what the work is.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
logger = logging.getLogger("forgetting")
SECONDS_BETWEEN_LINES = 15.0
FRAMEWORKS = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "httpx",
    "huggingface_hub",
    "lm_eval",
    "peft",
    "torch",
    "transformers",
    "trl",
)
Advance = Callable[[int, str], None]
"""Takes the amount of work done since the last call, and a note."""


def setup_logging(quiet: bool = False) -> None:
    """Send the library's log to the terminal; `quiet` leaves warnings and errors."""
    handler = RichHandler(
        console=console,
        show_path=False,
        show_level=False,
        markup=False,
        log_time_format="[%H:%M:%S]",
    )
    logger.handlers[:] = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    # The frameworks below log at length; what matters of it reaches the user as our own message.
    for name in FRAMEWORKS:
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}\b")


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show progress and time left; yields `advance(amount, note)`.

    On a terminal it is a bar; elsewhere (a log file) a line every 15 seconds. Silent when the
    library's log is.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield _silent
        return
    if not sys.stderr.isatty():
        yield _lines(label, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")

        def advance(amount: int, note: str) -> None:
            bar.update(task, advance=amount, note=note)

        yield advance


def _silent(amount: int, note: str) -> None:
    del amount, note


def _lines(label: str, total: int, done: int) -> Advance:
    start = last = time.monotonic()
    first = done

    def advance(amount: int, note: str) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done > first:
            last = now
            left = (now - start) / (done - first) * (total - done)
            logger.info("%s: %d of %d, %s left %s", label, done, total, duration(left), note)

    return advance


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
