"""The inspector in a terminal: one sample at a time, colored and underlined. In a file or a pipe,
several samples with brackets in the place of colors; or JSON.

Input: an `Inspection` and a console. Output: text. Control and formatting characters were
replaced by placeholders before, and no text is read as markup, so a sample can neither move the
cursor nor hide a part of itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.style import Style
from rich.text import Text

from forgetting.inspector.corpus import Inspection
from forgetting.inspector.listing import Filters, listed, sample_object
from forgetting.inspector.queries import Sort

MAX_TOKENS_SHOWN = 2048
HELP = (
    "Enter or n: next · p: previous · w: worst first · b: best first · d: D_train order · q: quit"
)
HELP_JUDGED = f"m: most bad tokens first · {HELP}"
SORTS: dict[str, Sort] = {"w": "worst", "b": "best", "d": "position", "m": "bad"}
# Orange and blue, as on the page, with black text in every terminal theme.
BAD, GOOD = (224, 112, 0), (66, 140, 214)
PAPER = (255, 255, 255)


NEGATIVE, NOISY = ("[[", "]]"), ("{{", "}}")
"""Brackets around text where there is no color."""


def show_in_terminal(
    inspection: Inspection,
    console: Console,
    filters: Filters | None = None,
    num_samples: int = 10,
    *,
    by_quality: bool = False,
) -> None:
    """Show samples until the user quits. Reads commands from standard input.

    If the console is not a terminal, the worst samples are shown.

    Args:
        filters: which samples are shown. Default: all.
        num_samples: how many are shown if the console is not a terminal.
        by_quality: whether the order and the colors are those of the measure even if the detector
            found something.

    Raises:
        InputError: as `listed`.
    """
    judgment, filters = inspection.judgment, filters or Filters()
    sort = _first_sort(inspection, by_quality)
    known = {key: name for key, name in SORTS.items() if name != "bad" or judgment is not None}
    usage = HELP if judgment is None else HELP_JUDGED
    is_plain = console.no_color or console.color_system is None
    by_posterior = not by_quality and _colors_by_posterior(inspection)
    rows = listed(inspection, filters, sort)
    # In a file, lines are as long as they are.
    unwrapped = not console.is_terminal
    if not len(rows):
        console.print("No sample passes the filters.")
        return
    console.print(_legend(inspection, is_plain, by_posterior))
    place = 0
    while True:
        title = f"{place + 1:,} of {len(rows):,}"
        console.print(
            sample_text(
                inspection, int(rows[place]), title, is_plain=is_plain, by_posterior=by_posterior
            ),
            soft_wrap=unwrapped,
        )
        if not console.is_terminal:
            place += 1
            if place < min(num_samples, len(rows)):
                continue
            return
        try:
            answer = console.input(Text(f"{usage} › ", style="dim")).strip().lower()
        except (EOFError, KeyboardInterrupt):
            return
        if answer == "q":
            return
        if answer in known:
            sort, place = known[answer], 0
            rows = listed(inspection, filters, sort)
        elif answer == "p":
            place = max(place - 1, 0)
        elif answer in ("", "n"):
            place = min(place + 1, len(rows) - 1)


def as_json(
    inspection: Inspection,
    filters: Filters | None = None,
    num_samples: int = 10,
    *,
    by_quality: bool = False,
) -> str:
    """The worst samples for programs. The arguments are those of `show_in_terminal`.

    Raises:
        InputError: as `listed`.
    """
    rows = listed(inspection, filters or Filters(), _first_sort(inspection, by_quality))
    shown = rows[:num_samples].tolist()
    judgment = inspection.judgment
    found = {
        "run": inspection.run.name,
        "variant": inspection.selection.variant,
        "quality": inspection.selection.quality,
        "verdict": None if judgment is None else judgment.verdict,
        "num_samples": len(inspection),
        "num_matching": len(rows),
        "samples": [sample_object(inspection, row, MAX_TOKENS_SHOWN) for row in shown],
    }
    return json.dumps(found, indent=1, ensure_ascii=False)


def _first_sort(inspection: Inspection, by_quality: bool) -> Sort:
    judgment = inspection.judgment
    return "bad" if judgment is not None and judgment.is_shown and not by_quality else "worst"


def _colors_by_posterior(inspection: Inspection) -> bool:
    judgment = inspection.judgment
    return judgment is not None and (judgment.is_shown or inspection.selection.variant is None)


def _legend(inspection: Inspection, is_plain: bool, by_posterior: bool) -> Text:
    """What the marks mean."""
    negative = "likely bad" if inspection.selection.variant is None else "negative"
    known_noise = bool(inspection.num_noisy.any())
    if is_plain:
        parts = [f"{NEGATIVE[0]}{negative}{NEGATIVE[1]}"]
        parts += [f"{NOISY[0]}known noise{NOISY[1]}"] if known_noise else []
        return Text(" · ".join(parts))
    quality = f"quality ({inspection.selection.quality})"
    scale = "probability of being bad: " if by_posterior else f"{quality}: "
    legend = Text(scale, style="dim")
    for share, name in ((-1.0, "high" if by_posterior else "worse"), (-0.3, "…")):
        legend.append(name, style=Style(color="black", bgcolor=_color(share)))
    if not by_posterior:
        legend.append("better", style=Style(color="black", bgcolor=_color(1.0)))
    legend.append(" · ")
    legend.append(negative, style=Style(underline=True))
    if known_noise:
        legend.append(" · ")
        legend.append("known noise", style=Style(overline=True))
    return legend


def sample_text(
    inspection: Inspection,
    row: int,
    place: str,
    *,
    is_plain: bool = False,
    by_posterior: bool | None = None,
) -> Group:
    """One sample as colored text.

    Args:
        place: in the list, for the title.
        is_plain: whether brackets mark what colors and lines mark otherwise.
        by_posterior: whether the color is the probability of being bad instead of the quality.
            Default: if the detector found something, or no variant selects.
    """
    if by_posterior is None:
        by_posterior = _colors_by_posterior(inspection)
    sample = inspection.sample(row, MAX_TOKENS_SHOWN)
    names = " · ".join(_names(sample, inspection.source_names[sample["source"]]))
    title = Text(f"\nSample {sample['id']} · {names}", style="bold")
    title.append(f"  {place}", style="not bold dim")
    mean = "–" if sample["mean"] is None else f"{sample['mean']:+.3f}"
    is_judged = inspection.selection.variant is None
    is_suspected = inspection.judgment is not None and inspection.judgment.suspected
    negative = "tokens likely bad (50% or more)" if is_judged else "tokens negative"
    if is_judged and is_suspected:
        negative = "tokens only suspected (50% or more)"
    facts = f"{sample['num_negative']} of {sample['num_tokens']} {negative}"
    if inspection.selection.variant is not None or not by_posterior:
        facts = f"mean quality {mean} · {facts}"
    if sample["num_bad"] is not None:
        facts += f" · estimate: about {sample['num_bad']:.1f} "
        facts += "suspected" if is_suspected else "bad"
    if sample["num_noisy"]:
        facts += f" · {sample['num_noisy']} noisy (overlined): {sample['noise_kind']}"
    body = Text()
    token = 0
    for block in sample["blocks"]:
        if isinstance(block, str):
            body.append(block, style="dim")
            continue
        before: set[tuple[str, str]] = set()
        for text, length in block:
            tokens = slice(token, token + length)
            token += length
            if not is_plain:
                body.append(text, style=_style(inspection, sample, tokens, by_posterior))
                continue
            marks = _marks(sample, tokens)
            body.append(_between(before, marks) + text)
            before = marks
        body.append(_between(before, set()))
    if sample["num_left_out"]:
        body.append(f"\n… and {sample['num_left_out']:,} more response tokens", style="dim")
    return Group(title, Text(facts, style="dim"), Text(), body, Text())


def _names(sample: dict[str, Any], source: str) -> list[str]:
    """File and line of a sample, if they are known, and its source, unless the file is named so."""
    origin = sample["origin"]
    if origin is None:
        return [source]
    line = origin["line"]
    place = f"record {origin['row']}" if line is None else f"line {line}"
    where = f"{origin['file']}, {place}"
    return [where] if origin["file"].startswith(source) else [where, source]


def _marks(sample: dict[str, Any], tokens: slice) -> set[tuple[str, str]]:
    """The brackets that some tokens are in."""
    marks = {NEGATIVE} if min(sample["polarity"][tokens]) < 0 else set()
    if sample["noise"] is not None and any(sample["noise"][tokens]):
        marks.add(NOISY)
    return marks


def _between(before: set[tuple[str, str]], after: set[tuple[str, str]]) -> str:
    """Brackets between two pieces. Those of negative tokens are the inner ones."""
    if before == after:
        return ""
    # Outer brackets may only change while the inner ones are closed.
    keeps_outer = (NOISY in before) == (NOISY in after)
    changing = (NEGATIVE,) if keeps_outer else (NEGATIVE, NOISY)
    closing = "".join(mark[1] for mark in changing if mark in before)
    opening = "".join(mark[0] for mark in reversed(changing) if mark in after)
    return closing + opening


def _style(
    inspection: Inspection, sample: dict[str, Any], tokens: slice, by_posterior: bool
) -> Style:
    if by_posterior:
        share = -max(sample["posterior"][tokens])
    else:
        quality: Sequence[float] = sample["quality"][tokens]
        share = inspection.scale.share(sum(quality) / len(quality))
    noisy = sample["noise"] is not None and any(sample["noise"][tokens])
    return Style(
        color="black",
        bgcolor=_color(share),
        underline=min(sample["polarity"][tokens]) < 0,
        overline=noisy,
    )


def _color(share: float) -> str:
    """Orange for -1, blue for 1, the color of paper for 0."""
    end = GOOD if share > 0 else BAD
    mixed = (round(p + (e - p) * 0.85 * abs(share)) for p, e in zip(PAPER, end, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)
