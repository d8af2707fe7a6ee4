"""Progress says how far and how long; silence is silence."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
from rich.console import Console

from forgetting import console
from forgetting.console import (
    duration,
    failure_of,
    logger,
    progress,
    report_errors,
    setup_logging,
    with_progress,
)
from forgetting.errors import InputError


@pytest.fixture(autouse=True)
def _restore():
    before = logger.handlers[:], logger.level, logger.propagate
    with warnings.catch_warnings():
        yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_progress_is_a_line_now_and_then_with_the_time_left(monkeypatch):
    now = [0.0]
    messages = []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(logger, "info", lambda text, *args: messages.append(text % args))
    setup_logging()
    with progress("Scoring", 100, 20) as advance:
        for _ in range(4):
            now[0] += 10
            advance(10, "loss 1.5")
    # Lines at 20 s and 40 s; a second was enough for one item, and 20 done before cost nothing.
    assert messages == [
        "Scoring: 40 of 100, 1 min 00 s left, loss 1.5",
        "Scoring: 60 of 100, 40 s left, loss 1.5",
    ]


def test_what_is_prepared_before_the_first_item_is_not_in_the_time_left(monkeypatch):
    now = [0.0]
    messages = []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(logger, "info", lambda text, *args: messages.append(text % args))

    def items():
        now[0] += 600
        yield from range(10)

    setup_logging()
    for _ in with_progress("Writing", 10, items()):
        now[0] += 8
    assert messages[0] == "Writing: 2 of 10, 1 min 04 s left"
    assert messages[-1] == "Writing: 10 of 10, 0 s left"


def test_quiet_progress_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    setup_logging(quiet=True)
    with progress("Scoring", 10) as advance:
        advance(5, "")
    logger.info("news")
    assert capsys.readouterr() == ("", "")
    logger.warning("trouble")
    assert "trouble" in capsys.readouterr().err


def test_a_name_that_no_file_can_have_is_an_error_of_the_input(tmp_path):
    with pytest.raises(OSError, match="too long") as caught:
        (tmp_path / ("x" * 300)).read_text()
    failure = failure_of(caught.value)
    assert failure is not None
    assert failure.exit_code == 2
    assert failure.message.startswith("a name is longer than the file system takes: ")


def test_messages_are_shown_as_they_are_once(capsys):
    setup_logging()
    setup_logging()
    logger.info("a [bold]file[/bold] [/x]")
    err = capsys.readouterr().err
    assert err.count("a [bold]file[/bold] [/x]") == 1


def test_warnings_of_the_frameworks_are_not_shown_and_others_are():
    setup_logging()
    code = "import warnings; warnings.warn('noise', {})"
    with warnings.catch_warnings(record=True) as shown:
        for module in ("transformers.training_args", "torch.utils.data.dataloader", "torchless"):
            exec(code.format("UserWarning"), {"__name__": module})
    assert len(shown) == 1


def test_frameworks_that_are_imported_later_stay_silent():
    code = """
import logging
from forgetting.console import quiet_frameworks, setup_logging
quiet_frameworks()
setup_logging()
import datasets, huggingface_hub, peft, transformers, trl
for module in (datasets, huggingface_hub, peft, transformers, trl):
    assert logging.getLogger(module.__name__).getEffectiveLevel() == logging.ERROR, module
"""
    variables = {k: v for k, v in os.environ.items() if not k.endswith("_VERBOSITY")}
    subprocess.run([sys.executable, "-c", code], check=True, env=variables)


ODD = "/tmp/[bold]a[/]/[/x] :smile: [link=y]"


def test_paths_are_printed_as_they_are(capsys, monkeypatch):
    monkeypatch.setattr(console, "console", Console(file=sys.stderr, emoji=False, width=200))
    console.print_path("Results are in", ODD)
    assert capsys.readouterr().out == f"Results are in {ODD}\n"

    def fail():
        raise InputError(ODD)

    assert report_errors(fail) == 2
    assert ODD in capsys.readouterr().err

    def interrupt():
        raise KeyboardInterrupt(ODD)

    before = signal.getsignal(signal.SIGINT)
    try:
        assert report_errors(interrupt) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert ODD in capsys.readouterr().err
    console.print_table([ODD], [[ODD]], 1, notes=[ODD])
    assert capsys.readouterr().out.count(ODD) == 3


@pytest.mark.parametrize(("width", "num_columns"), [(200, [6]), (80, [3, 3]), (40, [1] * 6)])
def test_a_table_that_is_too_wide_is_printed_in_parts(width, num_columns):
    names = [f"variant-{number}" for number in range(6)]

    def table_of(some):
        table = console.new_table()
        table.add_column(no_wrap=True)
        for name in some:
            table.add_column(name, no_wrap=True)
        table.add_row("token accuracy", *(f"{name}: 93.8 ± 1" for name in some))
        return table

    shown = Console(file=io.StringIO(), width=width)
    console.print_in_parts(shown, names, table_of)
    text = shown.file.getvalue()
    assert [line.count(": 93.8 ± 1") for line in text.splitlines() if ":" in line] == num_columns
    assert "…" not in text


def test_labels_and_notes_of_progress_are_shown_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    shown = Console(file=io.StringIO(), force_terminal=True, emoji=False, width=300)
    monkeypatch.setattr(console, "console", shown)
    logger.setLevel("INFO")
    with progress(ODD, 2) as advance:
        advance(1, "[/z]")
    assert ODD in shown.file.getvalue()
    assert "[/z]" in shown.file.getvalue()


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: (folder / ("x" * 300)).write_text(""),
        lambda folder: (folder / "file" / "x").write_text(""),
        lambda folder: folder.read_text(),
        lambda folder: (folder / "loop").read_text(),
        lambda folder: folder.mkdir(),
    ],
)
def test_a_path_that_cannot_be_used_is_wrong_input(tmp_path, use):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        use(tmp_path)
    failure = failure_of(caught.value)
    assert failure.exit_code == 2
    assert str(tmp_path) in failure.message
    assert failure.message.endswith(("Check the path", "Correct it"))
