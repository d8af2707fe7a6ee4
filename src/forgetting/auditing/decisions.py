"""What a person decided about audited records: `decisions.json`, which the inspector's page saves.

Input: the file. Output: `Decisions`, checked. A decision is about a whole record, or about some
characters of one of its responses. Characters are Unicode code points, as in `flagged.jsonl`.
Knows nothing of audits.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from forgetting.errors import InputError

AGAIN = "Download it again from the page"
Choice = Literal["accept", "reject", "edit"]
"""`accept`: it is fine, whatever the detector says. `reject`: it is bad. `edit`: it is to be
corrected by hand later."""


class Decision(BaseModel):
    """A decision about a record, or about a span of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: str
    file: str
    """Name of the file or data set."""
    line: PositiveInt | None = None
    """Line where the record begins; None if the file has no lines."""
    row: PositiveInt
    """Number of the record in the file, from 1."""
    sample: NonNegativeInt
    """Identity of the sample in the run."""
    decision: Choice
    turn: NonNegativeInt | None = None
    """Place of the response among the messages of the record; None: the whole record."""
    span: tuple[NonNegativeInt, PositiveInt] | None = Field(default=None, strict=False)
    """First character and the one after the last. The character after the last one of the response
    is its end. None: the whole record."""
    text: str | None = None
    """The characters of the span, for people."""

    @model_validator(mode="after")
    def _check_span(self) -> Decision:
        if (self.turn is None) != (self.span is None):
            raise ValueError("`turn` and `span` must be given together")
        if self.span is not None and self.span[0] >= self.span[1]:
            raise ValueError("`span` must end after it begins")
        return self


class Decisions(BaseModel):
    """All decisions about a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    run: str
    """Fingerprint of the tokens of D_train that were judged."""
    decisions: list[Decision]

    @model_validator(mode="after")
    def _check_unique(self) -> Decisions:
        seen = set()
        for number, each in enumerate(self.decisions, 1):
            key = (each.sample, each.turn, each.span)
            if key in seen:
                raise ValueError(f"decision {number} repeats an earlier one")
            seen.add(key)
        return self

    @cached_property
    def of_records(self) -> Mapping[int, Choice]:
        """Decisions about whole records, by `sample`."""
        return {each.sample: each.decision for each in self.decisions if each.span is None}

    @cached_property
    def of_spans(self) -> Mapping[int, tuple[Decision, ...]]:
        """Decisions about spans, by `sample`."""
        found: dict[int, tuple[Decision, ...]] = {}
        for each in self.decisions:
            if each.span is not None:
                found[each.sample] = (*found.get(each.sample, ()), each)
        return found


def read_decisions(file: Path, run: str) -> Decisions:
    """Read a `decisions.json`.

    Args:
        run: fingerprint of the run that the decisions must be about.

    Raises:
        InputError: the file is missing, is not of this format or version, or is about another run.
    """
    try:
        # Editors on Windows put a mark before UTF-8.
        found = Decisions.model_validate_json(file.read_bytes().removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = _field(first["loc"])
        raise InputError(f"{file}: {field}{first['msg']}. {AGAIN}") from error
    if found.run != run:
        raise InputError(
            f"{file} is about another run ({found.run[:8]}, this one is {run[:8]}). {AGAIN} of "
            "this run"
        )
    return found


def _field(place: tuple[int | str, ...]) -> str:
    """Which decision and field is wrong, counted from 1."""
    if len(place) >= 2 and place[0] == "decisions":
        names = f"decision {int(place[1]) + 1}"
        rest = place[2:]
    else:
        names, rest = "", place
    if rest:
        names += f"{', ' if names else ''}field `{rest[0]}`"
    return f"{names}: " if names else ""
