"""Answers that a model of a run generated to held-out prompts: one JSON file per model.

`write_answer_sheet` writes what `evaluate` generated, `read_answer_sheet` reads it, and
`side_by_side` puts the models of a run next to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from forgetting.rundir import layout
from forgetting.rundir.storage import readable, write_atomically


class Answer(BaseModel):
    """What a model answered to one prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sample_id: int
    """Id of the held-out sample."""
    source: str
    prompt: str
    """Everything before the response, without special tokens."""
    expected: str
    """The response of the sample."""
    answer: str
    """The text that the model generated, without special tokens."""
    exact_match: bool
    """Whether the answer is the response, apart from white space at both ends."""
    chrf: float
    """Overlap of the answer with the response from 0 to 1, see `evaluation.answers.overlap`."""
    is_cut: bool
    """Whether the answer reached the largest number of tokens before it ended."""


class AnswerSheet(BaseModel):
    """The answers of one model, in the order of the held-out samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: list[Answer]


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt and the answers of several models."""

    sample_id: int
    source: str
    prompt: str
    expected: str
    answers: Mapping[str, Answer]
    """By variant, the base model among them."""


def write_answer_sheet(folder: Path, sheet: AnswerSheet) -> Path:
    """Write the answers of a model into the folder of its evaluation; returns the file."""
    file = layout.answer_sheet(folder)
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, sheet.model_dump_json(indent=1))
    return file


def read_answer_sheet(folder: Path) -> AnswerSheet | None:
    """The answers in the folder of a model's evaluation; None if it generated none.

    Raises:
        InputError: the file is damaged.
    """
    file = layout.answer_sheet(folder)
    if not file.is_file():
        return None
    with readable(file, "evaluate"):
        return AnswerSheet.model_validate_json(file.read_bytes())


def side_by_side(sheets: Mapping[str, AnswerSheet]) -> Sequence[AnsweredPrompt]:
    """The prompts that any of the models answered, in the order of the first that did.

    Args:
        sheets: by variant.
    """
    found: dict[int, dict[str, Answer]] = {}
    for variant, sheet in sheets.items():
        for answer in sheet.answers:
            found.setdefault(answer.sample_id, {})[variant] = answer
    prompts = []
    for sample_id, answers in found.items():
        first = next(iter(answers.values()))
        prompts.append(
            AnsweredPrompt(sample_id, first.source, first.prompt, first.expected, answers)
        )
    return prompts
