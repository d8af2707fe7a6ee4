"""Writes what an audit found: the flagged records for programs and tables, and all scores.

If nothing was found, these are the records that look worst, at least `NUM_WORST`, marked
`only_suspected`; see `suspicion`. If a measure is asked for, they are those with the lowest mean
quality.

Input: an `Audit`. Output: `flagged.jsonl` and `flagged.csv`, worst record first, the page, and
`scores.parquet` with every record. Memory grows with the flagged records.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappush, heappushpop, nsmallest
from pathlib import Path
from typing import Any

import pyarrow as pa

from forgetting.auditing.audit import BAD, Audit
from forgetting.auditing.browsing import write_page
from forgetting.auditing.judged import BadSpan, JudgedRecord, judged_records
from forgetting.auditing.suspicion import is_suspicion
from forgetting.console import with_progress
from forgetting.data.sources import read_source
from forgetting.method.measures import Measure
from forgetting.rundir.samples import ROWS_PER_GROUP, TableWriter
from forgetting.rundir.storage import json_text, write_atomically
from forgetting.rundir.train_records import TrainRecord

NUM_WORST = 10
"""Records that are printed. So many are listed even if nothing was found."""
NUM_RANKED = 500
"""Records that are listed by a measure, which flags none."""
END = "(end)"
"""Stands for the end of a response, which has no characters."""
CSV_COLUMNS = (
    "source",
    "file",
    "line",
    "row",
    "only_suspected",
    "num_bad_tokens",
    "num_tokens",
    "kind",
)
SCORES = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("row", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_bad_tokens", pa.float64()),
        ("highest_posterior", pa.float32()),
        ("kind", pa.string()),
        ("posterior", pa.list_(pa.float32())),
        ("token_kind", pa.list_(pa.string())),
        ("log_probs", pa.list_(pa.float32())),
        ("turn", pa.list_(pa.int32())),
        ("start", pa.list_(pa.int32())),
        ("end", pa.list_(pa.int32())),
    ]
)
"""Columns of `scores.parquet`. A token covers the characters [start, end) of the message `turn`,
counted from 0; the character after the last one is the end of the response."""


@dataclass(frozen=True)
class FlaggedRecord:
    """A record that is listed, with the tokens because of which it is."""

    record: TrainRecord
    num_tokens: int
    num_bad_tokens: float
    kind: str
    """The likely kind of noise, in words."""
    spans: tuple[BadSpan, ...]
    mean_quality: float | None = None
    """By the measure that the records are ranked by; None: they are ranked by bad tokens."""

    @property
    def place(self) -> str:
        """File and line, or file and row if the file has no lines."""
        line = self.record.line
        where = f"row {self.record.record}" if line is None else f"line {line}"
        return f"{self.record.file}, {where}"

    @property
    def is_flagged(self) -> bool:
        """Whether one of its spans is bad with a probability of at least 1/2."""
        return any(span.posterior >= BAD for span in self.spans)

    @property
    def worst(self) -> BadSpan:
        """The span with the most bad tokens."""
        return max(self.spans, key=lambda span: span.num_bad_tokens)

    def text_of(self, span: BadSpan) -> str:
        """The response that a span is in."""
        return self.record.messages[span.message].content

    def marked(self, message: int) -> str:
        """A response with brackets around its spans."""
        text = self.record.messages[message].content
        for span in sorted(self.spans, key=lambda span: span.start, reverse=True):
            if span.message == message:
                inside = text[span.start : span.end]
                # What is bad may be that the response ends here.
                ending = END if span.end > len(text) else ""
                text = f"{text[: span.start]}[{inside}{ending}]{text[span.end :]}"
        return text


def words_of(audit: Audit) -> dict[str, str]:
    """The kinds of noise in words, by name."""
    return {kind.kind: kind.words for kind in audit.findings.kinds}


def flagged(judged: JudgedRecord, words: Mapping[str, str]) -> FlaggedRecord:
    """What is written about a listed record. If no span is bad, it has what looks worst."""
    is_ranked = judged.quality is not None
    worst = [judged.worst_token] if is_ranked else judged.likeliest_spans
    return FlaggedRecord(
        judged.record,
        len(judged.posterior),
        judged.num_bad_tokens,
        words.get(judged.kind, ""),
        tuple(judged.spans or worst),
        judged.mean_quality if is_ranked else None,
    )


def write_files(audit: Audit, measure: Measure | None = None) -> list[FlaggedRecord]:
    """Write `scores.parquet`, `flagged.jsonl`, `flagged.csv` and the page.

    Args:
        measure: measure of quality that ranks the records. Default: the flagged ones are ranked by
            the detector.

    Returns:
        The flagged records, the one with the most bad tokens first, and if nothing was found those
        with the most of all; or, with a measure, the `NUM_RANKED` records with the lowest mean
        quality, lowest first.

    Raises:
        InputError: a part of the audit is missing or damaged, or the data can no longer be read.
    """
    words, only_suspected = words_of(audit), is_suspicion(audit)
    records = judged_records(audit, suspected=True, measure=measure)
    with TableWriter(audit.scores, SCORES, ROWS_PER_GROUP) as writer:

        def written() -> Iterator[JudgedRecord]:
            for judged in with_progress("Writing findings", audit.num_judged, records):
                writer.write(_score_row(judged))
                yield judged

        if measure is None:
            found = _listed(written(), words, NUM_WORST if only_suspected else 0)
        else:
            with_tokens = (each for each in written() if len(each.posterior))
            worst = nsmallest(NUM_RANKED, with_tokens, key=lambda each: each.mean_quality)
            found = [flagged(each, words) for each in worst]
    own = own_fields(audit, {each.record.record for each in found})
    rows = [_row(each, own.get(each.record.record), words, only_suspected) for each in found]
    lines = (json_text(row) + "\n" for row in rows)
    write_atomically(audit.flagged_jsonl, "".join(lines))
    _write_csv(audit.flagged_csv, rows, found)
    write_page(audit)
    return found


def _listed(
    records: Iterable[JudgedRecord], words: Mapping[str, str], number: int
) -> list[FlaggedRecord]:
    """The flagged records and the `number` ones with the most bad tokens, most first."""
    found: list[FlaggedRecord] = []
    others: list[tuple[float, int, FlaggedRecord]] = []
    for each in records:
        if each.is_flagged:
            found.append(flagged(each, words))
        elif each.highest and number:
            push = heappush if len(others) < number else heappushpop
            push(others, (each.num_bad_tokens, -each.record.record, flagged(each, words)))
    found += [each for _, _, each in others]
    found.sort(key=lambda each: (-each.num_bad_tokens, each.record.record))
    return [each for rank, each in enumerate(found) if rank < number or each.is_flagged]


def own_fields(audit: Audit, rows: set[int]) -> dict[int, Any]:
    """The records of the data as they are there, by number.

    Args:
        rows: numbers of the records, from 1.
    """
    if not rows:
        return {}
    recipe = audit.recipe
    raw = read_source(audit.source, recipe.seed, recipe.data.max_record_bytes)
    return {origin.record: record for origin, record in raw if origin.record in rows}


def _score_row(judged: JudgedRecord) -> dict[str, Any]:
    record = judged.record
    return {
        "sample_id": record.sample_id,
        "source": record.source,
        "file": record.file,
        "line": record.line,
        "row": record.record,
        "num_tokens": len(judged.posterior),
        "num_bad_tokens": judged.num_bad_tokens,
        "highest_posterior": judged.highest,
        "kind": judged.kind,
        "posterior": judged.posterior.tolist(),
        "token_kind": [judged.kinds[k] if k >= 0 else "" for k in judged.kind_of_token.tolist()],
        "log_probs": judged.log_probs.tolist(),
        "turn": [place.message for place in judged.places],
        "start": [place.start for place in judged.places],
        "end": [place.end for place in judged.places],
    }


def span_fields(
    spans: Iterable[BadSpan], record: TrainRecord, words: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Spans as JSON objects."""
    for span in spans:
        yield {
            "turn": span.message,
            "start": span.start,
            "end": span.end,
            "posterior": round(span.posterior, 4),
            "kind": words.get(span.kind, ""),
            "text": record.messages[span.message].content[span.start : span.end],
        }


def _row(
    each: FlaggedRecord, own: Any, words: Mapping[str, str], only_suspected: bool
) -> dict[str, Any]:
    record = each.record
    return {
        "source": record.source,
        "file": record.file,
        "line": record.line,
        "row": record.record,
        "only_suspected": only_suspected,
        "num_bad_tokens": round(each.num_bad_tokens, 2),
        "num_tokens": each.num_tokens,
        "kind": each.kind,
        **({} if each.mean_quality is None else {"mean_quality": each.mean_quality}),
        "spans": list(span_fields(each.spans, record, words)),
        "text": each.text_of(each.worst),
        "record": own,
    }


def _write_csv(file: Path, rows: list[dict[str, Any]], found: list[FlaggedRecord]) -> None:
    stream = io.StringIO()
    # The mark at the beginning tells spreadsheets that the text is UTF-8.
    stream.write("\ufeff")
    writer = csv.writer(stream)
    columns = [*CSV_COLUMNS, *(["mean_quality"] if "mean_quality" in (rows or [{}])[0] else [])]
    writer.writerow([*columns, "spans", "text", "record"])
    for row, each in zip(rows, found, strict=True):
        writer.writerow(
            [
                *(row[name] for name in columns),
                json_text(row["spans"]),
                each.marked(each.worst.message),
                json_text(row["record"]),
            ]
        )
    write_atomically(file, stream.getvalue())
