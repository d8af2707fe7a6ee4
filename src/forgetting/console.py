"""What a person sees: log lines, progress with time left, tables, and errors with exit codes.

Logs, progress and errors go to standard error; results go to standard output. Knows nothing about
the work itself.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from forgetting.errors import ForgettingError, InputError

console = Console(stderr=True, emoji=False)
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
Item = TypeVar("Item")
Advance = Callable[[int, str], None]
"""Takes the amount of work done since the last call, and a note."""
CONTINUE = "Run the same command again to continue."


def setup_logging(quiet: bool = False) -> None:
    """Send the library's log to the terminal; `quiet` shows only warnings and errors."""
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
    # The frameworks log at length. What matters reaches the user as a message of ours.
    for name in FRAMEWORKS:
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}\b")


def quiet_frameworks() -> None:
    """Turn off what the frameworks print by themselves. Call it before they are imported."""
    # Their progress bars would garble ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Processes forked from one with the tokenizer's threads may hang.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        # In a log file, lm-eval's bar is one line of hundreds of characters per task.
        os.environ.setdefault("TQDM_DISABLE", "1")
    # These set the level of their log on import, whatever `setup_logging` set before.
    for name in ("TRANSFORMERS", "HF_HUB", "DATASETS"):
        os.environ.setdefault(f"{name}_VERBOSITY", "error")


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show progress and time left; yields `advance(amount, note)`.

    A bar on a terminal, a line every 15 seconds elsewhere (in a log file). Silent if the library's
    log is.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield _silent
        return
    if not sys.stderr.isatty():
        yield _lines(label, total, done)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")

        def advance(amount: int, note: str) -> None:
            bar.update(task, advance=amount, note=note)

        yield advance


def with_progress(label: str, total: int, items: Iterable[Item]) -> Iterator[Item]:
    """The items, with progress whose clock starts at the first of them.

    What is prepared before the first item would count as its time, and many times in the time left.
    """
    coming = iter(items)
    first = list(islice(coming, 1))
    with progress(label, total) as advance:
        for item in chain(first, coming):
            yield item
            advance(1, "")


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
            left_text = ", ".join(filter(None, (f"{duration(left)} left", note)))
            logger.info("%s: %d of %d, %s", label, done, total, left_text)

    return advance


def duration(seconds: float) -> str:
    """Seconds as text: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def new_table() -> Table:
    """An empty table in the style of all results."""
    return Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    num_left: int,
    *,
    notes: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Print results to standard output.

    Args:
        num_left: number of columns of words, which are aligned left; the others are numbers.
        notes: lines below the table.
        folder: where the files of these results are.
    """
    out = Console(emoji=False)
    table = new_table()
    for place, title in enumerate(header):
        justify: Literal["left", "right"] = "left" if place < num_left else "right"
        table.add_column(escape(title), justify=justify, no_wrap=place < num_left)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)
    for line in notes:
        out.print(line, markup=False)
    if folder is not None:
        print_path("Results are in", folder)


def print_in_parts(
    out: Console, names: Sequence[str], table_of: Callable[[Sequence[str]], Table]
) -> None:
    """Print a table of several columns as tables that the console is wide enough for.

    Args:
        names: of the columns.
        table_of: makes a table of some of the columns.
    """
    tables: list[Table] = []
    for num_tables in range(1, len(names) + 1):
        size = -(-len(names) // num_tables)
        tables = [table_of(names[start : start + size]) for start in range(0, len(names), size)]
        if all(_natural_width(out, table) <= out.width for table in tables):
            break
    for table in tables:
        out.print(table)


def _natural_width(out: Console, table: Table) -> int:
    """Characters of the longest line if nothing is cut."""
    unbounded = out.options.update(max_width=10_000)
    return out.measure(table, options=unbounded).maximum


def print_path(label: str, path: Path | str) -> None:
    """Print where something is to standard output, on one line even in a narrow terminal."""
    Console(emoji=False).print(
        label, str(path), style="bold", soft_wrap=True, markup=False, highlight=False
    )


@dataclass(frozen=True)
class Failure:
    """An error as a user sees it."""

    message: str
    exit_code: int
    """1: something failed, 2: the user's input is wrong."""


# The system's error numbers for a place that cannot be written to.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_IN_THE_WAY = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def failure_of(error: Exception) -> Failure | None:
    """What to tell the user about an error; None for a bug, which keeps its traceback."""
    if isinstance(error, InputError):
        return Failure(str(error), 2)
    if isinstance(error, ForgettingError):
        return Failure(str(error), 1)
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    # Safetensors' own error class carries the system's number only in its text.
    if number in _FULL or os.strerror(errno.ENOSPC) in text:
        message = f"the disk is full: {text}. Free some space. {CONTINUE}"
        return Failure(message, 2)
    if number == errno.ENAMETOOLONG:
        return Failure(f"a name is longer than the file system takes: {text}. Correct it", 2)
    if number in _IN_THE_WAY:
        where = getattr(error, "filename", None)
        reason = os.strerror(number or 0).lower()
        return Failure(f"{where or text} cannot be used: {reason}. Check the path", 2)
    if number in _REFUSED:
        return Failure(f"permission denied: {text}. Check the path and its permissions", 2)
    return None


def print_failure(failure: Failure) -> None:
    """Print an error to standard error."""
    console.print(f"[bold red]error:[/] {escape(failure.message)}", soft_wrap=True, highlight=False)


def report_errors(
    command: Callable[[], int | None], tell: Callable[[Failure], None] = print_failure
) -> int:
    """Run a command, and turn the errors that a user can meet into one message.

    Ctrl-C is reported as well. A command that cannot be continued raises `KeyboardInterrupt` with a
    sentence of its own.

    Returns:
        The exit code: that of the command (None is 0), 1 or 2 after an error, 130 after Ctrl-C.
    """
    try:
        return command() or 0
    except KeyboardInterrupt as interrupt:
        # Another Ctrl-C, or the same one sent to every process, must not cut this short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        console.print(
            f"Interrupted. {interrupt!s}" if interrupt.args else f"Interrupted. {CONTINUE}",
            markup=False,
        )
        return 130
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        tell(failure)
        return failure.exit_code
