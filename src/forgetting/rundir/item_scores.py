"""Scores of a task's items under one model, so that two models can be compared item by item.

One CSV file per task and model: the item's number and one column per metric. `evaluate` writes it
before the task's result; a run that was evaluated before there were such files has none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.storage import write_atomically

ITEM = "item"


@dataclass(frozen=True)
class ItemScores:
    """The scores of a task's items."""

    items: NDArray[np.int64]
    """Number of each item, shape (items,)."""
    scores: Mapping[str, NDArray[np.float64]]
    """By metric, shape (items,). The metric's value is their mean."""


def write_item_scores(folder: Path, task: str, found: ItemScores) -> Path:
    """Write the scores into the folder of a variant's evaluation; returns the file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([ITEM, *found.scores])
    columns = [found.items.tolist(), *(values.tolist() for values in found.scores.values())]
    writer.writerows(zip(*columns, strict=True))
    file = layout.items_file(folder, task)
    write_atomically(file, text.getvalue())
    return file


def read_item_scores(folder: Path, task: str) -> ItemScores | None:
    """Read the scores; None if there are none.

    Raises:
        InputError: the file is damaged.
    """
    file = layout.items_file(folder, task)
    if not file.is_file():
        return None
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            header, *rows = csv.reader(lines)
        if header[:1] != [ITEM] or any(len(row) != len(header) for row in rows):
            raise ValueError("the columns are not those that `evaluate` writes")
        items = np.array([int(row[0]) for row in rows], np.int64)
        values = np.array([[float(value) for value in row[1:]] for row in rows], np.float64)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read: {error}. Remove it, and evaluate again"
        ) from error
    columns = values.reshape(len(rows), len(header) - 1).T
    return ItemScores(items, dict(zip(header[1:], columns, strict=True)))
