"""Makes a clean copy of audited data: without the bad records, or with the bad tokens masked.

Input: the data, its `Audit`, and a probability. Output: a folder with the data in the form it came
in (or, masked, in the forms that trainers read), `removed.jsonl` with everything that was taken
out, and `summary.json` with the reasons. The data itself is only read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forgetting.auditing.audit import Audit
from forgetting.auditing.flagged import span_fields, words_of
from forgetting.auditing.judged import JudgedRecord, judged_records
from forgetting.auditing.masked import MESSAGES, TOKENS, masked_line, write_tokens
from forgetting.auditing.rewriting import copy_without
from forgetting.console import progress
from forgetting.data.records import Record, parse_records, recognise
from forgetting.data.sources import read_source
from forgetting.errors import InputError
from forgetting.inspecting import resolved
from forgetting.pipeline import plan_with_state
from forgetting.rundir.storage import new_folder

REMOVED = "removed.jsonl"
SUMMARY = "summary.json"
DUPLICATE = "repeats a removed record"


@dataclass
class Cleaning:
    """What became of the records."""

    output: Path
    threshold: float
    """Probability of being bad from which a token counts."""
    files: list[str]
    """Names of the files with the data."""
    num_records: int = 0
    num_not_judged: int = 0
    """Records that the audit could not use or did not read twice: kept as they are, or, masked,
    left out."""
    num_removed: int = 0
    """Records that were dropped, or that hold masked tokens."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Number of removed records by the likely kind of noise, in words."""


def drop_records(data: str, audit: Audit, output: Path, threshold: float) -> Cleaning:
    """Write the data without the records that hold a bad token.

    Exact repetitions of such a record go with it. All other records stay as they are.

    Args:
        data: the data that was audited.
        output: folder to write.
        threshold: probability of being bad from which a token counts.

    Raises:
        InputError: these are other data than those of the audit, or `output` is not empty.
    """
    check_same(data, audit)
    with _whole(output) as folder:
        return _drop(data, audit, output, folder, threshold)


def _drop(data: str, audit: Audit, output: Path, folder: Path, threshold: float) -> Cleaning:
    words = words_of(audit)
    bad: dict[int, dict[str, Any]] = {}
    judged_rows = set()
    for judged in _shown(audit):
        judged_rows.add(judged.record.record)
        if judged.highest >= threshold:
            bad[judged.record.record] = _removed(judged, threshold, words)
    own = Path(data)
    name = own.name if own.is_file() else "data.jsonl"
    done = Cleaning(output, threshold, [name])
    reasons: Counter[str] = Counter()
    left_out: set[int] = set()
    keys: dict[bytes, int] = {}
    read = _parser(audit)
    with (folder / REMOVED).open("w", encoding="utf-8") as removed:
        for origin, raw in read_source(audit.source, audit.recipe.seed):
            done.num_records += 1
            number = origin.record
            found = bad.get(number)
            # The audit kept the first of several equal records.
            key = read(origin, raw)
            if found is None and key is not None and number not in judged_rows and key in keys:
                found = {"reason": DUPLICATE, "of_row": keys[key]}
            if found is None:
                done.num_not_judged += number not in judged_rows
                continue
            if key is not None:
                keys.setdefault(key, number)
            left_out.add(number)
            reasons[found["reason"]] += 1
            place = {"file": origin.name, "line": origin.line, "row": number}
            removed.write(_line({**place, **found, "record": raw}))
    if own.is_file():
        has_header = audit.source.columns is None
        copy_without(
            own, folder / name, left_out, has_header=has_header, escaped=audit.source.escaped
        )
    else:
        with (folder / name).open("w", encoding="utf-8") as file:
            for origin, raw in read_source(audit.source, audit.recipe.seed):
                if origin.record not in left_out:
                    file.write(_line(raw))
    return _finished(done, len(left_out), reasons, folder)


def mask_tokens(data: str, audit: Audit, output: Path, threshold: float) -> Cleaning:
    """Write the judged records for trainers that skip the bad tokens, in the order of the data.

    In memory are the records as text.

    Args:
        data: the data that was audited.
        output: folder to write.
        threshold: probability of being bad from which a token is masked.

    Raises:
        InputError: as `drop_records`.
    """
    check_same(data, audit)
    words = words_of(audit)
    done = Cleaning(output, threshold, [MESSAGES, TOKENS])
    reasons: Counter[str] = Counter()
    with _whole(output) as folder:
        judged = {each.record.record: each for each in _shown(audit)}
        with (
            (folder / MESSAGES).open("w", encoding="utf-8") as messages,
            (folder / REMOVED).open("w", encoding="utf-8") as removed,
        ):
            for origin, raw in read_source(audit.source, audit.recipe.seed):
                done.num_records += 1
                each = judged.get(origin.record)
                if each is None:
                    done.num_not_judged += 1
                    continue
                messages.write(masked_line(each, raw, threshold))
                if each.highest >= threshold:
                    found = _removed(each, threshold, words)
                    reasons[found["reason"]] += 1
                    place = {"file": origin.name, "line": origin.line, "row": origin.record}
                    removed.write(_line({**place, **found}))
        write_tokens(audit, folder / TOKENS, threshold)
        return _finished(done, reasons.total(), reasons, folder)


def check_same(data: str, audit: Audit) -> None:
    """Refuse data that the audit has not seen.

    Raises:
        InputError: the data differ.
    """
    source = audit.source.model_copy(update={"path": resolved(data)})
    settings = audit.recipe.data.model_copy(update={"sources": [source]})
    recipe = audit.recipe.model_copy(update={"data": settings})
    if source.path != audit.source.path and not Path(str(source.path)).exists():
        raise InputError(f"no data at {data}")
    if "prepare" not in plan_with_state(recipe, audit.run)[1]:
        raise InputError(
            f"{data} is not what {audit.folder} has audited, or has changed since. Audit it again"
        )


def _parser(audit: Audit) -> Callable[[Any, Any], bytes | None]:
    """A function from a raw record to what equal conversations have in common."""
    form: str | None = None

    def key(origin: Any, raw: Any) -> bytes | None:
        nonlocal form
        if form is None:
            form = recognise(raw, audit.source, str(audit.source.path))
        found = parse_records(raw, form, audit.source, origin)[0]
        return found.key() if isinstance(found, Record) else None

    return key


def _shown(audit: Audit) -> Iterator[JudgedRecord]:
    """The judged records, with progress."""
    number = sum(source.num_samples for source in audit.findings.by_source)
    with progress("Reading the audit", number) as advance:
        for judged in judged_records(audit):
            yield judged
            advance(1, "")


def _removed(judged: JudgedRecord, threshold: float, words: dict[str, str]) -> dict[str, Any]:
    spans = judged.spans_from(threshold)
    return {
        "reason": words.get(judged.kind, judged.kind),
        "num_bad_tokens": round(judged.num_bad_tokens, 2),
        "spans": list(span_fields(spans, judged.record, words)),
    }


def _finished(done: Cleaning, number: int, reasons: Counter[str], folder: Path) -> Cleaning:
    done.num_removed, done.reasons = number, dict(reasons.most_common())
    summary = {name: value for name, value in asdict(done).items() if name != "output"}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return done


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` if the context ends without an error."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists. Choose another folder with --output")
    with new_folder(output) as folder:
        yield folder
        if output.exists():
            output.rmdir()
