"""The view for terminals shows what the page shows, and the data cannot reach the terminal."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from forgetting.errors import InputError
from forgetting.inspector import (
    Filters,
    Inspection,
    as_json,
    open_inspection,
    show_in_terminal,
)
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
    assert f"estimate: about {inspection.expected_bad.max():.1f} bad" in text
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


class File(Console):
    """Standard output in a file or a pipe."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), force_terminal=False, width=40)

    @property
    def text(self) -> str:
        return self.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_file_holds_several_samples_with_brackets(run_dir: Path, decode: Decode) -> None:
    # What is between two brackets can be told only if the text has none.
    without = str.maketrans("[]{}", "()()")
    inspection = open_inspection(run_dir, lambda ids: decode(ids).translate(without))
    assert inspection is not None
    file = File()
    show_in_terminal(inspection, file, num_samples=80)
    assert file.text.startswith("[[negative]] · {{known noise}}")
    first = [int(part.split()[0]) for part in file.text.split("Sample ")[1:]]
    assert first == inspection.find(Query(sort="worst"))[0].tolist()
    inside = {"[[": 0, "{{": 0}
    opposite = {"]]": "[[", "}}": "{{"}
    found = {"[[": "", "{{": ""}
    body = "".join(re.split(r"\nSample [^\n]*\n[^\n]*\n", file.text)[1:])
    for part in re.split(r"(\[\[|\]\]|\{\{|\}\})", body):
        if part in inside:
            inside[part] += 1
        elif part in opposite:
            inside[opposite[part]] -= 1
        else:
            for mark in inside:
                found[mark] += part if inside[mark] else ""
        assert set(inside.values()) <= {0, 1}
    wanted = {"[[": "", "{{": ""}
    for row in first:
        sample = inspection.sample(row, 4096)
        token = 0
        for text, length in sample["blocks"][-1]:
            tokens = slice(token, token + length)
            wanted["[["] += text if min(sample["polarity"][tokens]) < 0 else ""
            wanted["{{"] += text if sample["noise"] and max(sample["noise"][tokens]) else ""
            token += length
    assert found == wanted


def test_lines_in_a_file_are_as_long_as_they_are(inspection: Inspection) -> None:
    file = File()
    show_in_terminal(inspection, file, num_samples=1)
    row = int(inspection.find(Query(sort="worst"))[0][0])
    answer = "".join(text for text, _ in inspection.sample(row, 4096)["blocks"][-1])
    plain = re.sub(r"\[\[|\]\]|\{\{|\}\}", "", file.text)
    assert len(answer) > 40
    assert answer in plain


def test_filters_choose_the_samples(inspection: Inspection) -> None:
    source = inspection.source_names[-1]
    filters = Filters(source=source, text="a")
    found = json.loads(as_json(inspection, filters, 5))
    rows, _ = inspection.find(Query(source=len(inspection.sources) - 1, text="a", sort="worst"))
    assert found["num_matching"] == len(rows)
    assert [sample["sample"] for sample in found["samples"]] == rows[:5].tolist()
    assert {sample["source"] for sample in found["samples"]} == {source}
    file = File()
    show_in_terminal(inspection, file, Filters(text="no such text at all"))
    assert file.text == "No sample passes the filters.\n"


def test_unknown_filters_are_refused(run_dir: Path, decode: Decode, inspection: Inspection) -> None:
    with pytest.raises(InputError, match=r"no such source.*There are: "):
        as_json(inspection, Filters(source="elsewhere"))
    with pytest.raises(InputError, match=r"filter kind needs the detector"):
        as_json(inspection, Filters(kind="odd"))
    with pytest.raises(InputError, match=r"no such kind.*There are: "):
        as_json(judged(run_dir, decode, found=True), Filters(kind="odd"))


def test_samples_of_a_kind(run_dir: Path, decode: Decode) -> None:
    inspection = judged(run_dir, decode, found=True)
    judgment = inspection.judgment
    assert judgment is not None
    inspection.kind_of = np.arange(len(inspection)) % len(judgment.kinds)
    words = judgment.kinds[-1]
    found = json.loads(as_json(inspection, Filters(kind=words), 80))
    wanted = set(range(len(judgment.kinds) - 1, len(inspection), len(judgment.kinds)))
    assert {sample["sample"] for sample in found["samples"]} == wanted
    assert {sample["kind"] for sample in found["samples"]} == {words}


def test_negative_spans_are_those_of_the_sample(inspection: Inspection) -> None:
    found = json.loads(as_json(inspection, num_samples=80))
    assert any(sample["negative_spans"] for sample in found["samples"])
    for shown in found["samples"]:
        negative = np.zeros(shown["num_tokens"], bool)
        for span in shown["negative_spans"]:
            tokens = slice(span["first_token"], span["first_token"] + span["num_tokens"])
            negative[tokens] = True
            quality = inspection.sample(shown["sample"], 4096)["quality"][tokens]
            assert span["mean_quality"] == pytest.approx(np.mean(quality))
            assert span["text"] in shown["text"][-1]["response"]
        polarity = np.array(inspection.sample(shown["sample"], 4096)["polarity"])
        assert (negative >= (polarity < 0)).all()


def test_a_measure_that_was_asked_for_orders_and_colors(run_dir: Path, decode: Decode) -> None:
    size = Samples.read(layout.train_file(run_dir)).response_ids.size
    save_findings(run_dir, np.linspace(0, 1, size, dtype=np.float32), True)
    inspection = open_inspection(run_dir, decode, quality="base_loss")
    assert inspection is not None
    assert inspection.selection.quality == "base_loss"
    assert np.array_equal(inspection.quality, inspection.columns["base_log_probs"])
    shown = json.loads(as_json(inspection, by_quality=True))["samples"]
    assert shown[0]["sample"] == int(inspection.mean_quality.argmin())
    most = int(inspection.expected_bad.argmax())
    assert json.loads(as_json(inspection))["samples"][0]["sample"] == most
    file = File()
    show_in_terminal(inspection, file, num_samples=1, by_quality=True)
    assert f"mean quality {inspection.mean_quality.min():+.3f}" in file.text
    with pytest.raises(InputError, match=r"entropy_gap: it needs base_entropy.*base_loss"):
        open_inspection(run_dir, decode, quality="entropy_gap")


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
