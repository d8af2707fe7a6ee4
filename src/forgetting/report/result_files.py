"""The results of a run as files: JSON, CSV and Markdown.

Input: a `ResultsTable`. Output: text. Values that are not finite are null in JSON.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from forgetting.escaping import visible
from forgetting.method.comparison import Difference
from forgetting.report.result_table import INTERVALS, Cell, Column, ResultsTable, plain


def to_json(table: ResultsTable, more: Mapping[str, Any] | None = None) -> str:
    """One object with the sentence, the verdict and one entry per cell.

    Values that are not finite are null.

    Args:
        more: further entries of the object.
    """
    results = [
        {
            "variant": variant,
            "task": column.task,
            "metric": column.metric,
            "group": column.group,
            "value": finite(cell.value),
            "stderr": finite(cell.stderr),
            "num_items": column.num_items,
            "higher_is_better": column.higher_is_better,
            "best": cell.best,
            "interval": None if cell.interval is None else list(cell.interval),
            "difference": _from_baseline(table, variant, column),
        }
        for variant, column, cell in _entries(table)
    ]
    content = {
        "sentence": table.sentence,
        "verdict": None if table.verdict is None else table.verdict.to_dict(),
        "results": results,
        **(more or {}),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def to_csv(table: ResultsTable) -> str:
    """One line per cell, in the table's order. `minus` is the baseline of `difference`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    left = ["variant", "task", "metric", "group", "value", "stderr", "num_items", "low", "high"]
    right = ["minus", "difference", "difference_low", "difference_high", "num_pairs"]
    writer.writerow([*left, *right])
    for variant, column, cell in _entries(table):
        stderr = "" if cell.stderr is None else cell.stderr
        row = [variant, column.task, column.metric, column.group or ""]
        figures = [cell.value, stderr, column.num_items, *(cell.interval or ("", ""))]
        difference = table.difference(variant, column)
        if difference is not None and table.paired is not None:
            figures += [visible(table.paired.baseline), *difference_values(difference)]
        else:
            figures += [""] * len(right)
        writer.writerow([*map(visible, row), *figures])
    return text.getvalue()


def difference_values(found: Difference) -> list[float | str]:
    """Value, limits and number of pairs for a CSV; limits are empty if there is no interval."""
    limits = [found.low, found.high] if found.has_interval else ["", ""]
    return [found.value, *limits, found.num_pairs]


def _from_baseline(table: ResultsTable, variant: str, column: Column) -> dict[str, Any] | None:
    found = table.difference(variant, column)
    if found is None or table.paired is None:
        return None
    return {"minus": table.paired.baseline, **difference_entries(found)}


def difference_entries(found: Difference) -> dict[str, float | int | None]:
    """The same for JSON; limits are None if there is no interval."""
    return {
        "value": found.value,
        "low": finite(found.low),
        "high": finite(found.high),
        "num_pairs": found.num_pairs,
    }


def finite(value: float | None) -> float | None:
    """The value for JSON, which has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def to_markdown(table: ResultsTable) -> str:
    """The sentence and the table, formatted for people."""
    lines = [plain(table.sentence)]
    if table.columns:
        titles = [plain(f"{column.task_title}: {column.title}") for column in table.columns]
        lines += ["", "| variant | " + " | ".join(titles) + " |"]
        lines.append("|---|" + "---:|" * len(titles))
    for variant in table.variants:
        row = []
        for column in table.columns:
            cell, text = table.cell(variant, column), table.text(variant, column)
            row.append(f"**{text}**" if cell is not None and cell.best else text)
        lines.append(f"| {plain(variant)} | " + " | ".join(row) + " |")
    columns = table.compared_columns
    if table.paired is not None and columns:
        titles = [plain(f"{column.task_title}: {column.title}") for column in columns]
        lines += ["", f"| minus {plain(table.paired.baseline)}, paired | " + " | ".join(titles)]
        lines[-1] += " |"
        lines.append("|---|" + "---:|" * len(titles))
        for variant in table.compared:
            found = [(c, table.difference(variant, c)) for c in columns]
            row = ["–" if d is None else c.difference(d) for c, d in found]
            lines.append(f"| {plain(variant)} | " + " | ".join(row) + " |")
        counts = [str(_num_pairs(table, column)) for column in columns]
        lines.append("| n | " + " | ".join(counts) + " |")
    if table.columns:
        lines += ["", INTERVALS]
    return "\n".join(lines) + "\n"


def _num_pairs(table: ResultsTable, column: Column) -> int:
    found = (table.difference(variant, column) for variant in table.compared)
    return max((each.num_pairs for each in found if each is not None), default=0)


def _entries(table: ResultsTable) -> list[tuple[str, Column, Cell]]:
    return [
        (variant, column, cell)
        for variant in table.variants
        for column in table.columns
        if (cell := table.cell(variant, column)) is not None
    ]
