"""The corpus without its worst samples, as conversations.

Goes in: a run directory with a selection, and the sources of its recipe. They are read again,
because a run keeps tokens, not texts. Comes out: tables with the conversations that are kept. A
record whose tokens differ from the scored ones is an error, never a wrong row. Memory holds a part
of the corpus and a few numbers per sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.data.account import Account
from forgetting.data.alignment import Tokenization, cut
from forgetting.data.records import Record, Unusable
from forgetting.data.splits import read_records
from forgetting.data.spool import Spool
from forgetting.errors import InputError
from forgetting.method import MEASURES, QualityName
from forgetting.method.selection import mean_quality
from forgetting.rundir import layout
from forgetting.rundir.samples import rows_in_parts
from forgetting.rundir.selections import selected_parts

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
    """Figures of each sample of D_train, in order; both of shape (samples,)."""

    mean: NDArray[np.float64]
    share_negative: NDArray[np.float64]

    def worst(self, share: float, by: By) -> NDArray[np.bool_]:
        """A mask of the worst samples, shape (samples,).

        Args:
            share: share of all samples, rounded to whole samples.
            by: `quality` ranks by mean quality, lowest first. `negatives` ranks by the share of
                negative tokens, highest first, then by mean quality. Ties keep the corpus order.
        """
        first = self.mean if by == "quality" else -self.share_negative
        order = np.lexsort((self.mean, first))
        is_worst = np.zeros(len(order), dtype=bool)
        is_worst[order[: int(np.floor(share * len(order) + 0.5))]] = True
        return is_worst


def sample_quality(run: Path, variant: str, quality: QualityName) -> SampleJudgments:
    """Mean quality and share of negative tokens of every sample of D_train.

    Raises:
        InputError: see `selected_parts`.
    """
    measure = MEASURES[quality]
    means, shares = [np.zeros(0)], [np.zeros(0)]
    for part in selected_parts(run, variant, measure.columns):
        lengths = part.samples.num_response_tokens
        values = measure.compute(*(part.scores[name] for name in measure.columns))
        means.append(mean_quality(values, lengths))
        shares.append(mean_quality(part.polarity < 0, lengths))
    return SampleJudgments(np.concatenate(means), np.concatenate(shares))


def record_tables(
    recipe: Recipe,
    run: Path,
    tokenization: Tokenization,
    quality: SampleJudgments,
    is_kept: NDArray[np.bool_],
    scratch: Path,
) -> Iterator[pa.Table]:
    """The conversations of D_train that are kept, in order.

    Args:
        tokenization: of the recipe.
        is_kept: shape (samples,).
        scratch: a folder for temporary files, which are removed.

    Raises:
        InputError: a source cannot be read, or has changed since it was scored.
    """
    train = layout.train_file(run)
    rejected = layout.rejected_file(scratch)
    try:
        with Account(recipe.data, rejected) as account, Spool(scratch / "records.spool") as spool:
            read_records(recipe.data, recipe.seed, spool, account)
            form = _form(spool, train, is_kept)
            schema = pa.schema([*_FORMS[form], *_NUMBERS])
            begin = 0
            for part in rows_in_parts(train, ["sample_id", "source", "input_ids"]):
                chosen = np.flatnonzero(is_kept[begin : begin + part.num_rows])
                rows = part.take(chosen).to_pylist()
                records = _records(spool, rows, tokenization, recipe.data.max_length)
                yield pa.Table.from_pylist(
                    [
                        {
                            **_fields(record, form),
                            "source": row["source"],
                            "sample_id": row["sample_id"],
                            "mean_quality": quality.mean[begin + place],
                            "share_negative": quality.share_negative[begin + place],
                        }
                        for row, record, place in zip(rows, records, chosen, strict=True)
                    ],
                    schema=schema,
                )
                begin += part.num_rows
    finally:
        rejected.unlink(missing_ok=True)


def _form(spool: Spool, train: Path, is_kept: NDArray[np.bool_]) -> Form:
    """The simplest form that fits all kept samples."""
    found: set[Form] = set()
    begin = 0
    for part in rows_in_parts(train, ["sample_id"]):
        kept = is_kept[begin : begin + part.num_rows]
        begin += part.num_rows
        for number in part["sample_id"].to_numpy()[kept].tolist():
            record = _record(spool, number)
            roles = [message.role for message in record.messages]
            if record.tools or any(m.extra or m.is_context for m in record.messages):
                return "json"
            if len(roles) == 1:
                found.add("text")
            else:
                found.add("exchange" if roles == ["user", "assistant"] else "messages")
    return found.pop() if len(found) == 1 else "messages"


def _record(spool: Spool, number: int) -> Record:
    if number >= len(spool):
        raise InputError(_changed(number))
    return spool[number]


def _records(
    spool: Spool, rows: Sequence[dict[str, Any]], tokenization: Tokenization, max_length: int
) -> list[Record]:
    """The records of some samples, after a check that their tokens are unchanged."""
    records = [_record(spool, row["sample_id"]) for row in rows]
    for row, result in zip(rows, tokenization.encode_batch(records), strict=True):
        if isinstance(result, Unusable) or cut(result, max_length).input_ids != row["input_ids"]:
            raise InputError(_changed(row["sample_id"]))
    return records


def _changed(number: int) -> str:
    return (
        f"the sources no longer hold sample {number} as it was scored. Restore the data, or run "
        "the recipe again"
    )


def _fields(record: Record, form: Form) -> dict[str, Any]:
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
        if message.is_context:
            turn["weight"] = 0
    tools = [dict(tool) for tool in record.tools]
    return {
        "messages": json.dumps(turns, ensure_ascii=False),
        "tools": json.dumps(tools, ensure_ascii=False) if tools else None,
    }
