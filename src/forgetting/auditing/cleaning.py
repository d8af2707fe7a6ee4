"""Makes a clean copy of audited data: without the bad records, or with the bad tokens masked.

Input: the data, its `Audit`, a probability, and the marks of a user, if there are any. Output: a
folder with the data in the form it came in (or, masked, in the forms that trainers read),
`removed.jsonl` with everything that was taken out, the records to edit in a file of their own, and
`summary.json` with the reasons. The data itself is only read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forgetting.auditing.audit import Audit
from forgetting.auditing.decisions import Decisions
from forgetting.auditing.flagged import span_fields, words_of
from forgetting.auditing.masked import MESSAGES, TOKENS, masked_line, write_tokens
from forgetting.auditing.rewriting import copy_without
from forgetting.auditing.ruling import Outcome, Ruling, rulings
from forgetting.data.files import Unreadable
from forgetting.data.records import Record, parse_records, recognise
from forgetting.data.sources import Origin, read_source
from forgetting.errors import InputError
from forgetting.inspecting import resolved
from forgetting.pipeline import plan_with_state
from forgetting.rundir.folders import new_folder
from forgetting.rundir.storage import json_text

REMOVED = "removed.jsonl"
SUMMARY = "summary.json"
TO_EDIT = "to-edit-"
"""Before the name of the data, in the name of the file with the records to edit."""
DUPLICATE = "repeats a removed record"
REJECTED = "rejected by hand"


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
    num_to_edit: int = 0
    """Records that wait in a file of their own."""
    by_hand: dict[str, int] = field(default_factory=dict)
    """Number of records that the user's marks decided about, by what became of them."""
    by_posterior: dict[str, int] = field(default_factory=dict)
    """Number of records that were dropped or masked without a mark."""


def drop_records(
    data: str, audit: Audit, output: Path, threshold: float, decisions: Decisions | None = None
) -> Cleaning:
    """Write the data without the records that hold a bad token.

    Exact repetitions of such a record go with it. All other records stay as they are.

    Args:
        data: the data that was audited.
        output: folder to write.
        threshold: probability of being bad from which a token counts.
        decisions: marks of the user, which win over the detector: a rejected record or one with a
            rejected span is dropped, an accepted one stays, and one to edit goes to a file of its
            own.

    Raises:
        InputError: these are other data than those of the audit, a mark is about something else, or
            `output` is not empty.
    """
    check_same(data, audit)
    with _whole(output) as folder:
        return _drop(_Job(data, audit, folder, threshold), output, decisions)


@dataclass(frozen=True)
class _Job:
    """What is written where."""

    data: str
    audit: Audit
    folder: Path
    threshold: float

    @property
    def name(self) -> str:
        """Name of the file with the data."""
        own = Path(self.data)
        return own.name if own.is_file() else "data.jsonl"

    def raw(self) -> Iterator[tuple[Origin, Any]]:
        """The records of the data as they are there."""
        recipe = self.audit.recipe
        return read_source(self.audit.source, recipe.seed, recipe.data.max_record_bytes)

    def copy(self, name: str, left_out: Container[int]) -> str:
        """Copy the data without some records; returns the name."""
        own, source, target = Path(self.data), self.audit.source, self.folder / name
        if own.is_file():
            has_header = source.columns is None
            copy_without(own, target, left_out, has_header=has_header, escaped=source.escaped)
            return name
        with target.open("w", encoding="utf-8") as file:
            for origin, raw in self.raw():
                if origin.record not in left_out:
                    file.write(_line(raw))
        return name


@dataclass(frozen=True)
class _AllBut(Container[int]):
    """All numbers but some."""

    numbers: Container[int]

    def __contains__(self, number: object) -> bool:
        return number not in self.numbers


def _drop(job: _Job, output: Path, decisions: Decisions | None) -> Cleaning:
    words = words_of(job.audit)
    done = Cleaning(output, job.threshold, [job.name])
    found: dict[int, tuple[Outcome, dict[str, Any]]] = {}
    judged_rows = set()
    for ruling in rulings(job.audit, decisions, job.threshold, masks=False):
        number = ruling.judged.record.record
        judged_rows.add(number)
        _count(done, ruling)
        if ruling.outcome is not Outcome.KEPT:
            found[number] = ruling.outcome, _removed(ruling, job.threshold, words)
    reasons: Counter[str] = Counter()
    dropped: set[int] = set()
    to_edit: set[int] = set()
    keys: dict[bytes, int] = {}
    read = _parser(job.audit)
    with (job.folder / REMOVED).open("w", encoding="utf-8") as removed:
        for origin, raw in job.raw():
            done.num_records += 1
            number = origin.record
            mine = found.get(number)
            # The audit kept the first of several equal records.
            key = read(origin, raw)
            if mine is None and key is not None and number not in judged_rows and key in keys:
                mine = found[keys[key]][0], {"reason": DUPLICATE, "of_row": keys[key]}
            if mine is None:
                done.num_not_judged += number not in judged_rows
                continue
            if key is not None:
                keys.setdefault(key, number)
            outcome, why = mine
            if outcome is Outcome.TO_EDIT:
                to_edit.add(number)
                continue
            dropped.add(number)
            reasons[why["reason"]] += 1
            removed.write(_line({**_place(origin), **why, "record": raw}))
    job.copy(job.name, dropped | to_edit)
    return _finished(done, reasons, to_edit, job)


def mask_tokens(
    data: str, audit: Audit, output: Path, threshold: float, decisions: Decisions | None = None
) -> Cleaning:
    """Write the judged records for trainers that skip the bad tokens, in the order of the data.

    In memory are the records as text.

    Args:
        data: the data that was audited.
        output: folder to write.
        threshold: probability of being bad from which a token is masked.
        decisions: marks of the user, which win over the detector: rejected spans are masked,
            accepted ones are not, rejected records are dropped, and those to edit go to a file of
            their own.

    Raises:
        InputError: as `drop_records`, or no record is left.
    """
    check_same(data, audit)
    with _whole(output) as folder:
        return _mask(_Job(data, audit, folder, threshold), output, decisions)


def _mask(job: _Job, output: Path, decisions: Decisions | None) -> Cleaning:
    words, folder = words_of(job.audit), job.folder
    done = Cleaning(output, job.threshold, [MESSAGES, TOKENS])
    reasons: Counter[str] = Counter()
    to_edit: set[int] = set()
    found: dict[int, Ruling] = {}
    for ruling in rulings(job.audit, decisions, job.threshold, masks=True):
        _count(done, ruling)
        found[ruling.judged.record.record] = ruling
    with (
        (folder / MESSAGES).open("w", encoding="utf-8") as messages,
        (folder / REMOVED).open("w", encoding="utf-8") as removed,
    ):
        for origin, raw in job.raw():
            done.num_records += 1
            mine = found.get(origin.record)
            if mine is None:
                done.num_not_judged += 1
            elif mine.outcome is Outcome.TO_EDIT:
                to_edit.add(origin.record)
            else:
                if mine.outcome is not Outcome.DROPPED:
                    messages.write(masked_line(mine.judged, raw, job.threshold))
                if mine.outcome is not Outcome.KEPT:
                    why = _removed(mine, job.threshold, words)
                    reasons[why["reason"]] += 1
                    record = {"record": raw} if mine.outcome is Outcome.DROPPED else {}
                    removed.write(_line({**_place(origin), **why, **record}))
    posteriors = {
        each.judged.record.sample_id: each.judged.posterior
        for each in found.values()
        if each.outcome in (Outcome.KEPT, Outcome.MASKED)
    }
    if not posteriors:
        raise InputError("no record is left: the decisions reject them all or leave them to edit")
    write_tokens(job.audit, folder / TOKENS, job.threshold, posteriors)
    return _finished(done, reasons, to_edit, job)


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
        if form is None and not isinstance(raw, Unreadable):
            form = recognise(raw, audit.source, str(audit.source.path))
        found = parse_records(raw, form or "", audit.source, origin)[0]
        return found.key() if isinstance(found, Record) else None

    return key


def _count(done: Cleaning, ruling: Ruling) -> None:
    outcome = str(ruling.outcome)
    if ruling.by_hand:
        done.by_hand[outcome] = done.by_hand.get(outcome, 0) + 1
    elif ruling.outcome is not Outcome.KEPT:
        done.by_posterior[outcome] = done.by_posterior.get(outcome, 0) + 1


def _removed(ruling: Ruling, threshold: float, words: dict[str, str]) -> dict[str, Any]:
    judged = ruling.judged
    spans = judged.spans_from(threshold)
    reason = REJECTED if ruling.by_hand else words.get(judged.kind, judged.kind)
    return {
        "reason": reason,
        "num_bad_tokens": round(judged.num_bad_tokens, 2),
        "spans": list(span_fields(spans, judged.record, words)),
    }


def _place(origin: Origin) -> dict[str, Any]:
    return {"file": origin.name, "line": origin.line, "row": origin.record}


def _finished(done: Cleaning, reasons: Counter[str], to_edit: set[int], job: _Job) -> Cleaning:
    if to_edit:
        done.files.append(job.copy(f"{TO_EDIT}{job.name}", _AllBut(to_edit)))
    done.num_to_edit = len(to_edit)
    done.num_removed, done.reasons = reasons.total(), dict(reasons.most_common())
    summary = {name: value for name, value in asdict(done).items() if name != "output"}
    (job.folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return done


def _line(value: Any) -> str:
    return json_text(value) + "\n"


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` if the context ends without an error."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists. Choose another folder with --output")
    with new_folder(output) as folder:
        yield folder
