"""The corpus without its worst samples, as conversations.

Input: a run directory with a selection. Output: tables with the conversations that are kept,
as `prepare` read them. Memory holds a part of the corpus and a few numbers per sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.method import MEASURES
from forgetting.method.selection import mean_quality
from forgetting.rundir import layout
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.selections import selected_parts
from forgetting.rundir.train_records import TrainRecord, train_records

By = Literal["quality", "negatives"]
COLUMNS = {
    "prompt": "the user's turn, if every sample is a single exchange",
    "completion": "the assistant's turn",
    "messages": "the turns, with `role` and `content`, if some samples have more than one exchange",
    "tools": "the sample's tools, as JSON; `messages` is JSON, too, if turns have tool calls, "
    "reasoning or a weight",
    "text": "the text, if every sample is a plain text",
    "source": "data set of the sample",
    "sample_id": "number of the sample in the run",
    "mean_quality": "mean quality of its response tokens; higher is better",
    "share_negative": "share of its response tokens that are negative",
}
"""Content of each column. A corpus has the columns of one form: prompt and completion, messages,
or text."""
Form = Literal["text", "exchange", "messages", "json"]
_FORMS: dict[Form, list[tuple[str, pa.DataType]]] = {
    "text": [("text", pa.string())],
    "exchange": [("prompt", pa.string()), ("completion", pa.string())],
    "messages": [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))
    ],
    # A table cannot hold turns whose keys differ.
    "json": [("messages", pa.string()), ("tools", pa.string())],
}
_NUMBERS = [
    ("source", pa.string()),
    ("sample_id", pa.int64()),
    ("mean_quality", pa.float32()),
    ("share_negative", pa.float32()),
]


@dataclass(frozen=True)
class SampleJudgments:
    """Figures of each sample of D_train, in order; all of shape (samples,)."""

    mean: NDArray[np.float64]
    share_negative: NDArray[np.float64]
    is_negative: NDArray[np.bool_]
    """Whether the data says that it is one to forget."""

    def worst(self, share: float, by: By) -> NDArray[np.bool_]:
        """A mask of the worst samples, shape (samples,), without those to forget.

        Args:
            share: share of the other samples, rounded to whole samples.
            by: `quality` ranks by mean quality, lowest first. `negatives` ranks by the share of
                negative tokens, highest first, then by mean quality. Ties keep the corpus order.
        """
        first = self.mean if by == "quality" else -self.share_negative
        order = np.lexsort((self.mean, first))
        order = order[~self.is_negative[order]]
        is_worst = np.zeros(len(first), dtype=bool)
        is_worst[order[: int(np.floor(share * len(order) + 0.5))]] = True
        return is_worst


def sample_quality(run: Path, variant: str, quality: str) -> SampleJudgments:
    """Mean quality and share of negative tokens of every sample of D_train.

    Raises:
        InputError: see `selected_parts`.
    """
    measure = MEASURES[quality]
    means, shares, negatives = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, bool)]
    for part in selected_parts(run, variant, measure.columns):
        lengths = part.samples.num_response_tokens
        values = measure.compute(*(part.scores[name] for name in measure.columns))
        means.append(mean_quality(values, lengths))
        shares.append(mean_quality(part.polarity < 0, lengths))
        negatives.append(part.samples.is_negative)
    return SampleJudgments(*map(np.concatenate, (means, shares, negatives)))


def record_tables(
    run: Path, quality: SampleJudgments, is_kept: NDArray[np.bool_]
) -> Iterator[pa.Table]:
    """The conversations of D_train that are kept, in order.

    Args:
        is_kept: shape (samples,).

    Raises:
        InputError: the records of D_train are missing or damaged, or belong to other tokens.
    """
    fingerprint = SampleFile(layout.train_file(run)).fingerprint
    form = _form(run, fingerprint, is_kept)
    schema = pa.schema([*_FORMS[form], *_NUMBERS])
    for part in _kept(run, fingerprint, is_kept):
        yield pa.Table.from_pylist(
            [
                {
                    **_fields(record, form),
                    "source": record.source,
                    "sample_id": record.sample_id,
                    "mean_quality": quality.mean[place],
                    "share_negative": quality.share_negative[place],
                }
                for place, record in part
            ],
            schema=schema,
        )


def _kept(
    run: Path, fingerprint: str, is_kept: NDArray[np.bool_]
) -> Iterator[list[tuple[int, TrainRecord]]]:
    """The kept records of D_train with their places, in parts."""
    begin = 0
    for part in train_records(run, fingerprint):
        chosen = np.flatnonzero(is_kept[begin : begin + len(part)]).tolist()
        yield [(begin + place, part[place]) for place in chosen]
        begin += len(part)


def _form(run: Path, fingerprint: str, is_kept: NDArray[np.bool_]) -> Form:
    """The simplest form that fits all kept samples."""
    found: set[Form] = set()
    for part in _kept(run, fingerprint, is_kept):
        for _, record in part:
            roles = [message.role for message in record.messages]
            if record.tools or any(m.extra or m.weight != 1 for m in record.messages):
                return "json"
            if len(roles) == 1:
                found.add("text")
            else:
                found.add("exchange" if roles == ["user", "assistant"] else "messages")
    return found.pop() if len(found) == 1 else "messages"


def _fields(record: TrainRecord, form: Form) -> dict[str, Any]:
    messages = record.messages
    if form == "text":
        return {"text": messages[0].content}
    if form == "exchange":
        return {"prompt": messages[0].content, "completion": messages[1].content}
    turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
    if form == "messages":
        return {"messages": turns}
    for turn, message in zip(turns, messages, strict=True):
        turn.update(message.extra)
        if message.weight != 1:
            turn["weight"] = message.weight
    tools = [dict(tool) for tool in record.tools]
    return {
        "messages": json.dumps(turns, ensure_ascii=False),
        "tools": json.dumps(tools, ensure_ascii=False) if tools else None,
    }
