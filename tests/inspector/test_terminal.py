"""The view for terminals shows what the page shows, and the data cannot reach the terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from forgetting.inspector import Inspection, open_inspection, show_in_terminal
from forgetting.inspector.queries import Query
from forgetting.inspector.terminal import sample_text
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples
from tests.conftest import save_findings

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


def judged(run_dir: Path, decode: Callable[..., str], found: bool) -> Inspection:
    size = Samples.read(layout.train_file(run_dir)).response_ids.size
    posterior = np.linspace(0, 1, size, dtype=np.float32)
    save_findings(run_dir, posterior if found else 0 * posterior, found)
    shutil.rmtree(layout.selection_dir(run_dir))
    inspection = open_inspection(run_dir, decode)
    assert inspection is not None
    return inspection


def test_bad_tokens_come_first_where_the_detector_has_run(
    run_dir: Path, decode: Callable[..., str]
) -> None:
    inspection = judged(run_dir, decode, found=True)
    keyboard = Keyboard("d", "m", "q")
    show_in_terminal(inspection, keyboard)
    worst = str(int(inspection.expected_bad.argmax()))
    assert keyboard.shown == [worst, "0", worst]
    text = keyboard.file.getvalue()  # type: ignore[attr-defined]
    assert f"expected bad tokens: {inspection.expected_bad.max():.1f}" in text
    assert "likely bad" in text
    assert "mean quality" not in text


def test_the_color_is_the_probability_of_being_bad(
    run_dir: Path, decode: Callable[..., str]
) -> None:
    inspection = judged(run_dir, decode, found=True)
    for row, blue in ((0, (250, 255)), (79, (30, 60))):
        segments = list(Console(width=10_000).render(sample_text(inspection, row, "1")))
        colors = [s.style.bgcolor for s in segments if s.style is not None]
        shown = [color.triplet.blue for color in colors if color and color.triplet]
        assert blue[0] <= min(shown) <= max(shown) <= blue[1]


def test_the_key_for_bad_tokens_needs_the_detector(inspection: Inspection) -> None:
    keyboard = Keyboard("n", "m", "q")
    show_in_terminal(inspection, keyboard)
    assert len(set(keyboard.shown[1:])) == 1


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
