"""Which samples a terminal lists, and a sample as an object for programs.

Input: an `Inspection`, and what the user filters by. Output: rows of D_train in order, and
dictionaries that JSON can hold. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from forgetting.errors import InputError, did_you_mean
from forgetting.inspector.corpus import Inspection
from forgetting.inspector.queries import Query, Sort
from forgetting.inspector.thresholds import Ints


@dataclass(frozen=True)
class Filters:
    """Which samples are listed. None: all of them."""

    kind: str | None = None
    """The likely kind of noise, in words."""
    source: str | None = None
    text: str = ""
    """Searched in prompt and response, ignoring case."""


def listed(inspection: Inspection, filters: Filters, sort: Sort) -> Ints:
    """Rows of D_train that pass the filters, in order.

    Raises:
        InputError: there is no such kind or source. The message lists those that there are.
    """
    source = None
    if filters.source is not None:
        source = _place("source", filters.source, inspection.source_names)
    query = Query(source=source, text=filters.text, sort=sort)
    rows, num_searched = inspection.find(query)
    while num_searched < len(inspection):
        # Texts are decoded in the background, and a list is not printed twice.
        rows, num_searched = inspection.find(query)
    if filters.kind is None:
        return rows
    judgment = inspection.judgment
    if judgment is None:
        raise InputError(
            "filter kind needs the detector's findings. Run `forgetting audit`, or "
            "`forgetting detect`"
        )
    kind = _place("kind", filters.kind, judgment.kinds)
    return rows[inspection.kind_of[rows] == kind]


def _place(what: str, name: str, known: Sequence[str]) -> int:
    if name in known:
        return list(known).index(name)
    hint = did_you_mean(name, known)
    raise InputError(
        f"filter {what}={name}: there is no such {what}. {hint}{hint and ' '}There are: "
        f"{', '.join(known) or 'none'}"
    )


def sample_object(inspection: Inspection, row: int, max_tokens: int) -> dict[str, Any]:
    """A sample for programs: its place, its figures, its text, and the spans that are negative.

    Args:
        max_tokens: response tokens that are read; the others are counted in `num_left_out`.
    """
    sample, judgment = inspection.sample(row, max_tokens), inspection.judgment
    kind = int(inspection.kind_of[row])
    return {
        "sample": sample["id"],
        **(sample["origin"] or dict.fromkeys(("file", "line", "row"))),
        "source": inspection.source_names[sample["source"]],
        "num_tokens": sample["num_tokens"],
        "num_negative": sample["num_negative"],
        "num_bad_tokens": sample["num_bad"],
        "kind": judgment.kinds[kind] if judgment is not None and kind >= 0 else None,
        "mean_quality": sample["mean"],
        "num_noisy": sample["num_noisy"],
        "noise_kind": sample["noise_kind"] or None,
        "num_left_out": sample["num_left_out"],
        "text": [
            {"context": block}
            if isinstance(block, str)
            else {"response": "".join(text for text, _ in block)}
            for block in sample["blocks"]
        ],
        "negative_spans": negative_spans(sample),
    }


def negative_spans(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs of pieces with a negative token, with their first token in the response, counted from
    0.

    Args:
        sample: as `Inspection.sample` gives it.
    """
    spans = []
    token = 0
    for block in sample["blocks"]:
        if isinstance(block, str):
            continue
        pieces = []
        for text, length in block:
            pieces.append((text, slice(token, token + length)))
            token += length
        negative = groupby(pieces, lambda piece: min(sample["polarity"][piece[1]]) < 0)
        for group in (list(group) for is_negative, group in negative if is_negative):
            tokens = slice(group[0][1].start, group[-1][1].stop)
            posterior, quality = sample["posterior"], sample["quality"][tokens]
            spans.append(
                {
                    "text": "".join(text for text, _ in group),
                    "first_token": tokens.start,
                    "num_tokens": tokens.stop - tokens.start,
                    "posterior": None if posterior is None else max(posterior[tokens]),
                    "mean_quality": sum(quality) / len(quality),
                }
            )
    return spans
