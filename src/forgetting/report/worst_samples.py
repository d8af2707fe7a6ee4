"""The samples of D_train that look worst, as text.

Input: an `Inspection`. Output: a table of prompts and responses, in which the tokens that are
probably bad, or that are not learned, are marked. Text is cut, because a page holds twenty of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from forgetting.inspector.corpus import LIKELY_BAD, Inspection
from forgetting.inspector.rendering import NUM_WORST, ranked_samples
from forgetting.report.tables import (
    Table,
    TableCell,
    column,
    decimals,
    marked_text,
    text,
    text_column,
)

MAX_PROMPT_CHARS = 240
"""The end of a prompt is shown."""
MAX_RESPONSE_TOKENS = 80


def worst_samples(inspection: Inspection) -> Table | None:
    """The `NUM_WORST` worst samples, worst first.

    They have the most bad tokens by the detector or, if it found nothing, the lowest mean quality.

    Returns:
        None if nothing tells the samples apart: the detector found nothing, every token is learned
        and all have the same mean quality.
    """
    by_detector = inspection.judgment is not None and inspection.judgment.is_shown
    has_marks = by_detector or bool((inspection.polarity <= 0).any())
    means = inspection.mean_quality[np.isfinite(inspection.mean_quality)]
    if not has_marks and (not len(means) or np.ptp(means) == 0):
        return None
    rows = []
    for row in ranked_samples(inspection)[:NUM_WORST]:
        sample = inspection.sample(int(row), MAX_RESPONSE_TOKENS)
        figure = sample["num_bad"] if by_detector else sample["mean"]
        rows.append(
            [
                TableCell(str(sample["id"]), (sample["id"],)),
                text(inspection.source_names[sample["source"]]),
                decimals(figure, 1 if by_detector else 3),
                text(shown_prompt(sample)),
                marked_text(shown_response(sample, by_detector=by_detector)),
            ]
        )
    marked = (
        f"that are bad with a probability of {LIKELY_BAD:g} or more"
        if by_detector
        else "that are not learned"
    )
    note = f"Marked are the tokens {marked}." if has_marks else ""
    quality = inspection.selection.quality
    return Table(
        "worst",
        "Samples with the most bad tokens"
        if by_detector
        else f"Samples with the lowest mean quality ({quality})",
        [
            text_column("sample"),
            text_column("source"),
            column("bad tokens" if by_detector else "mean quality"),
            text_column("prompt"),
            text_column("response"),
        ],
        rows,
        f"{note} “Bad tokens” is their expected number." if by_detector else note,
    )


def shown_prompt(sample: Mapping[str, Any]) -> str:
    """The text around the responses, of which the end is shown."""
    context = [block for block in sample["blocks"] if isinstance(block, str)]
    whole = " ".join("".join(context).split())
    if len(whole) <= MAX_PROMPT_CHARS:
        return whole
    return f"…{whole[1 - MAX_PROMPT_CHARS :]}"


def shown_response(sample: Mapping[str, Any], *, by_detector: bool) -> list[tuple[str, bool]]:
    """Text of the response, and whether it is marked; neighbors of one kind are joined.

    Args:
        sample: as `Inspection.sample` has it.
        by_detector: whether the posterior decides, or the polarity.
    """
    values = sample["posterior"] if by_detector else sample["polarity"]
    parts: list[tuple[str, bool]] = []
    place = 0
    for block in sample["blocks"]:
        if isinstance(block, str):
            continue
        for piece, number in block:
            own = values[place : place + number]
            is_bad = any(v >= LIKELY_BAD if by_detector else v <= 0 for v in own)
            place += number
            if parts and parts[-1][1] == is_bad:
                piece = parts.pop()[0] + piece
            parts.append((piece, is_bad))
    if sample["num_left_out"]:
        parts.append((" …", False))
    return parts
