"""Evaluation results: metrics with standard errors, one JSON file per task and variant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from forgetting.rundir import layout
from forgetting.rundir.storage import json_text, readable, write_atomically

HELDOUT, ANSWERS = "heldout", "answers"
"""The tasks that are held-out samples: their loss, and answers to their prompts."""
# JSON has no NaN and no infinity: both are written as null.
_Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Metric(BaseModel):
    """One metric."""

    value: _Number
    """NaN if it is not finite."""
    stderr: float | None
    """Standard error over the items; None if unknown."""
    higher_is_better: bool


class Group(BaseModel):
    """The metrics of some of a task's items."""

    num_items: int
    metrics: dict[str, Metric]


class TaskResult(Group):
    """The metrics of a task or of a suite, overall and by group."""

    task: str
    local: bool = False
    """Whether items come from local files rather than from the task's own data set."""
    num_fewshot: int | None = None
    """Examples in the prompt; None for a task without a prompt, or with several settings."""
    chat_template: bool | None = None
    """Whether prompts were rendered with the chat template of the run; None for held-out samples,
    which always are."""
    system_instruction: str | None = None
    """System turn of every prompt."""
    notes: list[str] = []
    """What a reader must know to compare the metrics: files, derived items, missing parts."""
    groups: dict[str, Group] = {}
    members: dict[str, list[str]] = {}
    """For a suite, the `task/metric` keys whose mean is each group's value."""

    def of_variant(self, variant: str) -> Evaluation:
        """The same result as that of a variant."""
        return Evaluation(**{**dict(self), "variant": variant})


class Evaluation(TaskResult):
    """The result of one variant, or of the base model, on one task."""

    variant: str


def write_result(folder: Path, variant: str, result: TaskResult) -> Path:
    """Write a result into the folder of a variant's evaluation; returns the file."""
    text = result.of_variant(variant).model_dump_json(indent=1)
    file = layout.result_file(folder, result.task)
    write_atomically(file, text)
    return file


def read_result(file: Path) -> Evaluation:
    """Read one result.

    Raises:
        InputError: the file is missing or damaged.
    """
    with readable(file, "evaluate"):
        return Evaluation.model_validate_json(file.read_bytes())


def read_results(folder: Path) -> list[Evaluation]:
    """All results in the folder of a variant's evaluation, by task.

    Raises:
        InputError: a file is damaged.
    """
    return [read_result(file) for file in sorted(folder.glob("*.json"))]


def has_result(folder: Path, task: str) -> bool:
    """Whether a task is done. Its answers are written before its result."""
    return layout.result_file(folder, task).is_file()


def write_answers(folder: Path, task: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write prompts, answers and scores of a task's items; returns the file. Call it before
    `write_result`, whose file marks the task as done."""
    lines = (json_text(row) for row in rows)
    file = layout.answers_file(folder, task)
    write_atomically(file, "".join(f"{line}\n" for line in lines))
    return file
