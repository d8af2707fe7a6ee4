"""The inspector in a terminal: one sample at a time, colored and underlined.

Input: an `Inspection` and a console. Output: text. Control and formatting characters were
replaced by placeholders before, and no text is read as markup, so a sample can neither move the
cursor nor hide a part of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.style import Style
from rich.text import Text

from forgetting.inspector.corpus import Inspection
from forgetting.inspector.queries import Query, Sort

MAX_TOKENS_SHOWN = 2048
HELP = (
    "Enter or n: next · p: previous · w: worst first · b: best first · d: D_train order · q: quit"
)
HELP_JUDGED = f"m: most bad tokens first · {HELP}"
SORTS: dict[str, Sort] = {"w": "worst", "b": "best", "d": "position", "m": "bad"}
# Orange and blue, as on the page, with black text in every terminal theme.
BAD, GOOD = (224, 112, 0), (66, 140, 214)
PAPER = (255, 255, 255)


def show_in_terminal(inspection: Inspection, console: Console) -> None:
    """Show samples until the user quits. Reads commands from standard input.

    If the console is not a terminal, only the worst sample is shown.
    """
    judgment = inspection.judgment
    sort: Sort = "bad" if judgment is not None and judgment.is_shown else "worst"
    known = {key: name for key, name in SORTS.items() if name != "bad" or judgment is not None}
    usage = HELP if judgment is None else HELP_JUDGED
    place = 0
    while True:
        rows, _ = inspection.find(Query(sort=sort))
        console.print(sample_text(inspection, int(rows[place]), f"{place + 1:,} of {len(rows):,}"))
        if not console.is_terminal:
            return
        try:
            answer = console.input(Text(f"{usage} › ", style="dim")).strip().lower()
        except (EOFError, KeyboardInterrupt):
            return
        if answer == "q":
            return
        if answer in known:
            sort, place = known[answer], 0
        elif answer == "p":
            place = max(place - 1, 0)
        elif answer in ("", "n"):
            place = min(place + 1, len(rows) - 1)


def sample_text(inspection: Inspection, row: int, place: str) -> Group:
    """One sample as colored text."""
    sample = inspection.sample(row, MAX_TOKENS_SHOWN)
    source = inspection.source_names[sample["source"]]
    title = Text(f"\nSample {sample['id']} · {source}", style="bold")
    title.append(f"  {place}", style="not bold dim")
    mean = "–" if sample["mean"] is None else f"{sample['mean']:+.3f}"
    facts = f"{sample['num_negative']} of {sample['num_tokens']} "
    if inspection.selection.variant is None:
        facts += "likely bad"
    else:
        facts = f"mean quality {mean} · {facts}negative"
    if sample["num_bad"] is not None:
        facts += f" · expected bad tokens: {sample['num_bad']:.1f}"
    if sample["num_noisy"]:
        facts += f" · {sample['num_noisy']} noisy (overlined): {sample['noise_kind']}"
    body = Text()
    token = 0
    for block in sample["blocks"]:
        if isinstance(block, str):
            body.append(block, style="dim")
            continue
        for text, length in block:
            body.append(text, style=_style(inspection, sample, slice(token, token + length)))
            token += length
    if sample["num_left_out"]:
        body.append(f"\n… and {sample['num_left_out']:,} more response tokens", style="dim")
    return Group(title, Text(facts, style="dim"), Text(), body, Text())


def _style(inspection: Inspection, sample: dict[str, Any], tokens: slice) -> Style:
    judgment = inspection.judgment
    if judgment is not None and (judgment.is_shown or inspection.selection.variant is None):
        share = -max(sample["posterior"][tokens])
    else:
        quality: Sequence[float] = sample["quality"][tokens]
        share = inspection.scale.share(sum(quality) / len(quality))
    end = GOOD if share > 0 else BAD
    color = [round(p + (e - p) * 0.85 * abs(share)) for p, e in zip(PAPER, end, strict=True)]
    noisy = sample["noise"] is not None and any(sample["noise"][tokens])
    return Style(
        color="black",
        bgcolor=f"#{color[0]:02x}{color[1]:02x}{color[2]:02x}",
        underline=min(sample["polarity"][tokens]) < 0,
        overline=noisy,
    )
