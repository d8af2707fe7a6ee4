"""The view for terminals shows what the page shows, and the data cannot reach the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from forgetting.inspector import Inspection, open_inspection, show_in_terminal
from forgetting.inspector.corpus import Query
from forgetting.inspector.terminal import sample_text

Decode = Callable[..., str]


class Keyboard(Console):
    """A terminal at which somebody types these lines."""

    def __init__(self, *lines: str) -> None:
        super().__init__(file=io.StringIO(), force_terminal=True, width=100)
        self._lines = iter(lines)

    def input(self, *args: object, **kwargs: object) -> str:
        line = next(self._lines, None)
        if line is None:
            raise EOFError
        return line

    @property
    def shown(self) -> list[str]:
        """Identities of the samples shown, in order."""
        text = self.file.getvalue()  # type: ignore[attr-defined]
        return [part.split()[0] for part in text.split("Sample ")[1:]]


@pytest.fixture
def inspection(run_dir: Path, decode: Decode) -> Inspection:
    inspection = open_inspection(run_dir, decode)
    assert inspection is not None
    return inspection


def test_commands_walk_through_the_samples(inspection: Inspection) -> None:
    keyboard = Keyboard("", "n", "p", "b", "p", "d", "nonsense", "q", "n")
    show_in_terminal(inspection, keyboard)
    worst, best, own = (
        [str(row) for row in inspection.find(Query(sort=sort))[0]]
        for sort in ("worst", "best", "position")
    )
    wanted = [worst[0], worst[1], worst[2], worst[1], best[0], best[0], own[0], own[0]]
    assert keyboard.shown == wanted


def test_the_end_of_input_is_the_end(inspection: Inspection) -> None:
    keyboard = Keyboard()
    show_in_terminal(inspection, keyboard)
    assert len(keyboard.shown) == 1


def test_marks_are_those_of_the_sample(inspection: Inspection) -> None:
    row = int(next(row for row in range(80) if inspection.num_noisy[row]))
    sample = inspection.sample(row, 4096)
    console = Console(width=10_000)
    segments = list(console.render(sample_text(inspection, row, "1")))
    body = [s for s in segments if s.style is not None and s.style.bgcolor is not None]
    flags = {"negative": "", "noisy": "", "all": ""}
    for segment in body:
        assert segment.style is not None
        flags["all"] += segment.text
        flags["negative"] += segment.text if segment.style.underline else ""
        flags["noisy"] += segment.text if segment.style.overline else ""
    wanted = dict.fromkeys(flags, "")
    token = 0
    for text, length in sample["blocks"][-1]:
        text = text.replace("\n", "")
        tokens = slice(token, token + length)
        wanted["all"] += text
        wanted["negative"] += text if min(sample["polarity"][tokens]) < 0 else ""
        wanted["noisy"] += text if max(sample["noise"][tokens]) else ""
        token += length
    assert flags == wanted
    assert 0 < len(wanted["noisy"]) < len(wanted["all"])


def test_the_data_cannot_reach_the_terminal(make_run: Callable[..., Path]) -> None:
    evil = "\x1b]0;pwned\x07\x1b[2J\u202e[bold red]x[/]\r\x9b"
    inspection = open_inspection(make_run(source=evil), lambda ids: evil * len(ids))
    assert inspection is not None
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    show_in_terminal(inspection, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert not set("\x1b\x07\r\x9b\u202e") & set(text)
    assert (
        "⟨U+001B⟩]0;pwned⟨U+0007⟩⟨U+001B⟩[2J⟨U+202E⟩[bold red]x[/]⟨U+000D⟩⟨U+009B⟩"
        in text.replace("\n", "")
    )
