"""Writes an audited data set for trainers that skip bad tokens instead of dropping records.

Input: an `Audit` and a probability. Output: `masked.jsonl`, conversations whose responses say by
character what to train on, as Axolotl reads them (`message_field_training_detail: train_detail`),
and `tokens.parquet`, the model's tokens with a weight each, for `ForgettingTrainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forgetting.auditing.audit import Audit
from forgetting.auditing.judged import BadSpan, JudgedRecord
from forgetting.rundir import layout
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, rows_in_parts
from forgetting.rundir.storage import json_text
from forgetting.training.dataset import trainer_columns

MESSAGES = "masked.jsonl"
TOKENS = "tokens.parquet"


def train_detail(length: int, spans: Sequence[BadSpan]) -> list[dict[str, Any]]:
    """Which characters of a response to train on.

    Offsets are inclusive at both ends, and the ranges cover the whole response: Axolotl trains on
    no character that is in none.

    Args:
        length: characters of the response.
        spans: what is bad in it, in order.
    """
    details: list[dict[str, Any]] = []
    position = 0
    for span in spans:
        start, end = max(span.start, position), min(span.end, length)
        if start >= end:
            continue
        if position < start:
            details.append(_detail(position, start, True))
        details.append(_detail(start, end, False))
        position = end
    if position < length:
        details.append(_detail(position, length, True))
    return details


def _detail(start: int, end: int, train: bool) -> dict[str, Any]:
    return {"begin_offset": start, "end_offset": end - 1, "train": train}


def masked_messages(judged: JudgedRecord, least: float) -> list[dict[str, Any]]:
    """The messages of a record, with `train_detail` in the responses that hold bad spans.

    Args:
        least: probability of being bad from which a token is not trained on.
    """
    spans = judged.spans_from(least)
    turns = []
    for index, message in enumerate(judged.record.messages):
        turn: dict[str, Any] = {"role": message.role, "content": message.content, **message.extra}
        if message.role == "assistant":
            turn["train"] = not message.is_context
            own = [span for span in spans if span.message == index]
            detail = train_detail(len(message.content), own)
            if any(not part["train"] for part in detail):
                turn["train_detail"] = detail
        turns.append(turn)
    return turns


def masked_line(judged: JudgedRecord, own: Any, least: float) -> str:
    """A record as a line of `masked.jsonl`, with its own other fields."""
    messages = masked_messages(judged, least)
    fields: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    fields = {name: value for name, value in fields.items() if name != "messages"}
    return json_text({"messages": messages, **fields}) + "\n"


def write_tokens(
    audit: Audit,
    file: Path,
    least: float,
    posterior_of: Mapping[int, NDArray[np.float32]],
) -> None:
    """Write the tokens of the records that stay, with the columns of `ForgettingTrainer`.

    `token_weights` is 0 where the probability of being bad is at least `least`, else the weight of
    the token's turn.

    Args:
        posterior_of: probability of being bad of the response tokens of each record that stays, by
            `sample_id`.

    Raises:
        InputError: a part of the audit is damaged.
    """
    train, writer = layout.train_file(audit.run), None
    try:
        for table in rows_in_parts(train, SAMPLE_SCHEMA.names):
            stays = [number in posterior_of for number in table["sample_id"].to_pylist()]
            own = table.filter(pa.array(stays, pa.bool_()))
            if not own.num_rows:
                continue
            samples = Samples(own)
            posterior = np.concatenate([posterior_of[i] for i in samples.sample_ids.tolist()])
            is_negative = samples.per_response_token(samples.is_negative)
            polarity = np.where(is_negative, -1, 1).astype(np.int8)
            weights = np.where(posterior >= least, 0, samples.weights).astype(np.float32)
            columns = trainer_columns(samples, polarity, token_weights=weights)
            found = pa.table({"sample_id": own["sample_id"], "source": own["source"], **columns})
            writer = writer or pq.ParquetWriter(file, found.schema, compression="zstd")
            writer.write_table(found)
    finally:
        if writer is not None:
            writer.close()
