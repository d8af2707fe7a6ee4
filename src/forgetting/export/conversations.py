"""The corpus without its worst samples, as conversations.

Input: a run directory with a selection. Output: tables with the conversations that are kept, as
`prepare` read them, and rows with those that are dropped and the reasons, both in the order of the
data. Memory holds the texts and a few numbers per sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.data.sources import Origin, is_local, read_source
from forgetting.method import MEASURES
from forgetting.method.selection import mean_quality
from forgetting.rundir import layout
from forgetting.rundir.samples import ROWS_PER_GROUP, SampleFile
from forgetting.rundir.selections import TOKENS, selected_parts
from forgetting.rundir.train_records import TrainRecord, records_at, train_records

By = Literal["quality", "negatives"]
COLUMNS = {
    "prompt": "the user's turn, if every sample is a single exchange",
    "completion": "the assistant's turn",
    "messages": "the turns, with `role` and `content`, if some samples have more than one exchange",
    "tools": "the sample's tools, as JSON; `messages` is JSON, too, if turns have tool calls, "
    "reasoning or a weight",
    "text": "the text, if every sample is a plain text",
    "record": "the sample's record as it is in the data, as JSON; if the data are local files",
    "source": "data set of the sample",
    "file": "name of the file or data set",
    "line": "line where the record begins, if the file has lines",
    "row": "number of the record in the file, from 1",
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
    ("file", pa.string()),
    ("line", pa.int64()),
    ("row", pa.int64()),
    ("sample_id", pa.int64()),
    ("mean_quality", pa.float32()),
    ("share_negative", pa.float32()),
]


@dataclass(frozen=True)
class SampleJudgments:
    """Figures of each sample of D_train, in order; all of shape (samples,)."""

    sample_ids: NDArray[np.int64]
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
    ids = [np.zeros(0, np.int64)]
    means, shares, negatives = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, bool)]
    for part in selected_parts(run, variant, measure.columns, ("sample_id", *TOKENS)):
        lengths = part.samples.num_response_tokens
        values = measure.compute(*(part.scores[name] for name in measure.columns))
        ids.append(part.samples.sample_ids)
        means.append(mean_quality(values, lengths))
        shares.append(mean_quality(part.polarity < 0, lengths))
        negatives.append(part.samples.is_negative)
    return SampleJudgments(
        np.concatenate(ids),
        np.concatenate(means),
        np.concatenate(shares),
        np.concatenate(negatives),
    )


@dataclass(frozen=True)
class Placed:
    """A record of D_train."""

    place: int
    """In D_train."""
    record: TrainRecord
    own: str | None
    """As it is in the data, as JSON; None if that is not known."""


def in_order_of_the_data(
    run: Path, quality: SampleJudgments, chosen: NDArray[np.bool_], own: OwnRecords | None
) -> Iterator[Placed]:
    """Some records of D_train, by the order of the sources in the recipe and of their records.

    Args:
        chosen: shape (samples,).
        own: the records as they are in the data; None: they are not known.

    Raises:
        InputError: the records of D_train are missing or damaged, or belong to other tokens.
    """
    fingerprint = SampleFile(layout.train_file(run)).fingerprint
    # Samples are numbered as they are read.
    order = np.argsort(quality.sample_ids, kind="stable")
    places = order[chosen[order]]
    for place, record in zip(places.tolist(), records_at(run, fingerprint, places), strict=True):
        yield Placed(place, record, None if own is None else own(record))


class OwnRecords:
    """The records as they are in local data, asked for in their order.

    Args:
        recipe: of the run, whose data are unchanged.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._records: dict[str, Iterator[tuple[Origin, Any]]] = {}
        for source in recipe.data.sources:
            if source.world is None and is_local(source):
                # Of two sources of one name, nobody knows which a record is from.
                is_first = source.label not in self._records
                limit = recipe.data.max_record_bytes
                records = read_source(source, recipe.seed, limit) if is_first else iter(())
                self._records[source.label] = records
        self._last: dict[str, tuple[int, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._records)

    def __call__(self, record: TrainRecord) -> str | None:
        """A record as JSON; None if it is not there."""
        number, text = self._last.get(record.source, (0, ""))
        while number < record.record:
            found = next(self._records.get(record.source, iter(())), None)
            if found is None:
                return None
            number = found[0].record
            if number == record.record:
                text = json.dumps(found[1], ensure_ascii=False, default=str)
        self._last[record.source] = number, text
        return text if number == record.record else None


def record_tables(
    run: Path, quality: SampleJudgments, is_kept: NDArray[np.bool_], own: OwnRecords | None
) -> Iterator[pa.Table]:
    """The conversations of D_train that are kept, in the order of the data.

    Args:
        is_kept: shape (samples,).
        own: as in `in_order_of_the_data`. None: the tables have no column `record`.

    Raises:
        InputError: the records of D_train are missing or damaged, or belong to other tokens.
    """
    fingerprint = SampleFile(layout.train_file(run)).fingerprint
    form = _form(run, fingerprint, is_kept)
    column = [] if own is None else [("record", pa.string())]
    schema = pa.schema([*_FORMS[form], *column, *_NUMBERS])
    rows = in_order_of_the_data(run, quality, is_kept, own)
    while part := list(islice(rows, ROWS_PER_GROUP)):
        yield pa.Table.from_pylist(
            [
                {**_fields(each.record, form), "record": each.own, **_figures(each, quality)}
                for each in part
            ],
            schema=schema,
        )


def dropped_rows(
    run: Path,
    quality: SampleJudgments,
    is_kept: NDArray[np.bool_],
    by: By,
    own: OwnRecords | None,
) -> Iterator[dict[str, Any]]:
    """The samples that are dropped, with the reasons, in the order of the data.

    Args:
        is_kept: shape (samples,).
        by: what the worst were ranked by.
        own: as in `in_order_of_the_data`.

    Raises:
        InputError: as `record_tables`.
    """
    worst = "low mean quality" if by == "quality" else "high share of negative tokens"
    for each in in_order_of_the_data(run, quality, ~is_kept, own):
        reason = "a response to forget" if quality.is_negative[each.place] else worst
        yield {
            **_figures(each, quality),
            "reason": reason,
            "messages": [message.dump() for message in each.record.messages],
            "record": None if each.own is None else json.loads(each.own),
        }


def _figures(each: Placed, quality: SampleJudgments) -> dict[str, Any]:
    return {
        "source": each.record.source,
        "file": each.record.file,
        "line": each.record.line,
        "row": each.record.record,
        "sample_id": each.record.sample_id,
        "mean_quality": float(quality.mean[each.place]),
        "share_negative": float(quality.share_negative[each.place]),
    }


def _form(run: Path, fingerprint: str, is_kept: NDArray[np.bool_]) -> Form:
    """The simplest form that fits all kept samples."""
    found: set[Form] = set()
    begin = 0
    for part in train_records(run, fingerprint):
        chosen = np.flatnonzero(is_kept[begin : begin + len(part)]).tolist()
        begin += len(part)
        for record in (part[place] for place in chosen):
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
