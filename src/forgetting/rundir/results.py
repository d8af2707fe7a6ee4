"""What is measured: figures with standard errors, by task. As JSON, one file a task."""

from __future__ import annotations

from pydantic import BaseModel


class Metric(BaseModel):
    """One figure."""

    value: float
    stderr: float | None
    higher_is_better: bool


class Group(BaseModel):
    """The figures of a part of a task's items."""

    num_items: int
    metrics: dict[str, Metric]


class TaskResult(Group):
    """The figures of a task or of a suite, whole and by group."""

    task: str
    local: bool = False
    """Whether items come from local files rather than from the task's own data set."""
    num_fewshot: int | None = None
    """Examples in the prompt; None for what has no prompt, or several."""
    notes: list[str] = []
    """What a reader must know to compare the figures: files, derived items, what is missing."""
    groups: dict[str, Group] = {}
