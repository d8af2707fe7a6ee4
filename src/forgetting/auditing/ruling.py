"""What becomes of a judged record in cleaned data: by the user's marks, else by its posterior.

Input: judged records, the `Decisions` of a user, and a probability. Output: a `Ruling` for each. A
mark on a record wins over marks on its spans, and every mark wins over the detector. Writes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from forgetting.auditing.audit import Audit
from forgetting.auditing.decisions import AGAIN, Decision, Decisions
from forgetting.auditing.judged import JudgedRecord, judged_records
from forgetting.console import with_progress
from forgetting.errors import InputError
from forgetting.rundir.train_records import TrainRecord

CERTAIN = 1.0
"""Probability of being bad of a token in a rejected span."""


class Outcome(StrEnum):
    """What becomes of a record."""

    KEPT = "kept"
    DROPPED = "dropped"
    MASKED = "masked"
    """It stays, with tokens that trainers skip."""
    TO_EDIT = "to edit"
    """It goes to a file of its own, unchanged."""


@dataclass(frozen=True)
class Ruling:
    """What becomes of a record, and why."""

    outcome: Outcome
    by_hand: bool
    """Whether a mark decided it."""
    judged: JudgedRecord
    """The record with the posterior as the marks leave it."""


def rule(
    judged: JudgedRecord, decisions: Decisions | None, threshold: float, *, masks: bool
) -> Ruling:
    """Decide about a record.

    Args:
        decisions: of the user; None: the posterior decides everything.
        threshold: probability of being bad from which a token counts.
        masks: whether bad tokens are masked. If not, their record is dropped.

    Raises:
        InputError: a mark is about characters that the record does not have.
    """
    sample = judged.record.sample_id
    own = None if decisions is None else decisions.of_records.get(sample)
    spans = () if decisions is None else decisions.of_spans.get(sample, ())
    choices = {span.decision for span in spans}
    decided = replace(judged, posterior=marked_posterior(judged, own == "accept", spans))
    if own == "reject":
        return Ruling(Outcome.DROPPED, True, decided)
    if own == "edit" or (own is None and "edit" in choices):
        return Ruling(Outcome.TO_EDIT, True, decided)
    if not masks and own == "accept":
        return Ruling(Outcome.KEPT, True, decided)
    removed = Outcome.MASKED if masks else Outcome.DROPPED
    if "reject" in choices:
        return Ruling(removed, True, decided)
    if decided.highest >= threshold:
        return Ruling(removed, False, decided)
    return Ruling(Outcome.KEPT, own == "accept" or judged.highest >= threshold, decided)


def marked_posterior(
    judged: JudgedRecord, is_accepted: bool, spans: Iterable[Decision]
) -> NDArray[np.float32]:
    """The posterior with 1 in rejected spans and 0 in accepted ones, shape (response tokens,).

    A token belongs to a span if they share a character. Where spans overlap, rejection wins.

    Args:
        is_accepted: whether the record is, so that only rejected spans are bad.

    Raises:
        InputError: the record has no response with these characters.
    """
    posterior = judged.posterior.copy()
    if is_accepted:
        posterior[:] = 0
    turns, starts, ends = (
        np.array([getattr(place, name) for place in judged.places], np.int64)
        for name in ("message", "start", "end")
    )
    for span in sorted(spans, key=lambda span: span.decision == "reject"):
        assert span.span is not None
        assert span.turn is not None
        begin, end = span.span
        _check_inside(judged, span.turn, end)
        if span.decision in ("accept", "reject"):
            inside = (turns == span.turn) & (starts < end) & (ends > begin)
            posterior[inside] = CERTAIN if span.decision == "reject" else 0
    return posterior


def _check_inside(judged: JudgedRecord, turn: int, end: int) -> None:
    record = judged.record
    is_response = any(place.message == turn for place in judged.places)
    # One more than the characters: the end of the response.
    if not is_response or end > len(record.messages[turn].content) + 1:
        raise InputError(
            f"the decisions mark characters up to {end} of turn {turn} of {record.file}, row "
            f"{record.record}, which has no such response. {AGAIN} of this audit"
        )


def rulings(
    audit: Audit, decisions: Decisions | None, threshold: float, *, masks: bool
) -> Iterator[Ruling]:
    """What becomes of every judged record, in the order of the run, with progress.

    Args:
        decisions: as in `rule`.
        threshold: as in `rule`.
        masks: as in `rule`.

    Raises:
        InputError: a part of the audit is missing or damaged, or a mark names another record than
            that of its sample, or one that was not judged, which is noticed at the end.
    """
    unknown: dict[int, list[Decision]] = {}
    for mark in () if decisions is None else decisions.decisions:
        unknown.setdefault(mark.sample, []).append(mark)
    number = sum(source.num_samples for source in audit.findings.by_source)
    for judged in with_progress("Reading the audit", number, judged_records(audit)):
        for mark in unknown.pop(judged.record.sample_id, ()):
            _check_about(mark, judged.record)
        yield rule(judged, decisions, threshold, masks=masks)
    for marks in unknown.values():
        raise InputError(
            f"the decisions mark {_place(marks[0])}, which is not a record of {audit.folder}. "
            f"{AGAIN} of this audit"
        )


def _check_about(mark: Decision, record: TrainRecord) -> None:
    """Refuse a mark that names another record than that of its sample."""
    same_line = mark.line in (None, record.line)
    named = (mark.source, mark.file, mark.row)
    if not same_line or named != (record.source, record.file, record.record):
        raise InputError(
            f"the decisions mark {_place(mark)} of source {mark.source} (row {mark.row}), but "
            f"sample {mark.sample} is row {record.record} of {record.file} of source "
            f"{record.source}, line {record.line or 'unknown'}. {AGAIN} of this audit"
        )


def _place(mark: Decision) -> str:
    return f"{mark.file}, {f'row {mark.row}' if mark.line is None else f'line {mark.line}'}"
