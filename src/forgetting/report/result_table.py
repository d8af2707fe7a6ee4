"""The results of a run: variants by metrics with standard errors, and one sentence.

Input: evaluations. Output: a `ResultsTable`, also as JSON, CSV and Markdown. This module
alone decides what counts as a difference: more than the combined standard error of two values.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forgetting.escaping import visible
from forgetting.report.sentences import verdict_sentence
from forgetting.report.verdict import Verdict, run_verdict
from forgetting.rundir.reader import RunReader, in_order
from forgetting.rundir.results import Evaluation, Group, Metric

HELDOUT = "heldout"
HELDOUT_METRICS = ("exact_match", "loss", "perplexity")
# Below this a model answers almost nothing correctly, differences are chance, and loss says more.
LEAST_EXACT_MATCH = 0.02
ANSWERS = "answers"
SHARES = re.compile(r"acc|exact_match|^em$|^f1$|^mc[12]$|^average$|^chrf$")
TITLES = {"chrf": "chrF"}
SPOKEN = {
    "full": "training on all tokens",
    "base": "the base model without fine-tuning",
    "ignoring": "ignoring",
    "forgetting": "forgetting",
}


@dataclass(frozen=True)
class Column:
    """One metric of one task, over all items or one group of items."""

    task: str
    metric: str
    group: str | None
    num_items: int
    higher_is_better: bool
    percent: bool
    """Whether values are shares of 1 that are shown in percent."""
    local: bool = False
    """Whether items come from local files."""

    @property
    def key(self) -> str:
        """Unique in a table."""
        return "/".join(filter(None, (self.task, self.metric, self.group)))

    @property
    def task_title(self) -> str:
        """The task, for people."""
        if self.task == HELDOUT:
            return "held-out"
        if self.task == ANSWERS:
            return "held-out answers"
        return f"{self.task} (local build)" if self.local else self.task

    @property
    def metric_title(self) -> str:
        """The metric, for people."""
        return TITLES.get(self.metric, self.metric.replace("_", " ").removesuffix(",none"))

    @property
    def title(self) -> str:
        """The metric and the group, for people."""
        return self.metric_title if self.group is None else f"{self.metric_title}, {self.group}"

    def number(self, value: float) -> str:
        """`value` with the digits that this column shows."""
        if not math.isfinite(value):
            return "not finite"
        if self.percent:
            return f"{100 * value:.1f}"
        if abs(value) >= 1e5:
            return f"{value:.1e}"
        return f"{value:.{3 if abs(value) < 10 else 2 if abs(value) < 100 else 1}f}"


@dataclass(frozen=True)
class Cell:
    """One result. `best`: better than every other by more than the combined standard error."""

    value: float
    stderr: float | None
    best: bool = False


@dataclass(frozen=True)
class ResultsTable:
    """Variants by columns. `cells` has no entry if a variant lacks a metric."""

    variants: Sequence[str]
    columns: Sequence[Column]
    cells: Mapping[tuple[str, str], Cell]
    """By variant and `Column.key`."""
    headline: Column | None
    """The column that `sentence` is about."""
    sentence: str
    """The verdict, if there is one, and the main difference."""
    verdict: Verdict | None = None
    """Which model to use; None if variants cannot be compared."""

    def cell(self, variant: str, column: Column) -> Cell | None:
        """The result of a variant; None if there is none."""
        return self.cells.get((variant, column.key))

    def text(self, variant: str, column: Column) -> str:
        """The cell as `62.1 ± 1.9`, percentages without a sign; a dash if there is no result."""
        cell = self.cell(variant, column)
        return "–" if cell is None else _text(column, cell)


def results_table(run_dir: Path) -> ResultsTable:
    """The results of a run, complete or not.

    Raises:
        InputError: `run_dir` is not a run directory, or a result cannot be read.
    """
    run = RunReader(run_dir)
    return tabulate(run.evaluations, run_verdict(run))


def tabulate(evaluations: Sequence[Evaluation], verdict: Verdict | None = None) -> ResultsTable:
    """Arrange evaluations: held-out first, with groups for the headline metric, then the tasks.

    Args:
        verdict: which model to use.
    """
    variants = in_order({evaluation.variant for evaluation in evaluations})
    exact = [e.metrics.get("exact_match") for e in evaluations if e.task == HELDOUT]
    answers = any(metric is not None and metric.value >= LEAST_EXACT_MATCH for metric in exact)
    grouped = "exact_match" if answers else "loss"
    columns: dict[str, Column] = {}
    cells: dict[tuple[str, str], Cell] = {}
    for task in sorted({e.task for e in evaluations}, key=lambda name: (name != HELDOUT, name)):
        of_task = [e for e in evaluations if e.task == task]
        for metric, group in _metrics(of_task, grouped):
            found = {
                e.variant: m for e in of_task if (m := _measured(e, metric, group)) is not None
            }
            column = _column(task, metric, group, list(found.values()))
            column = replace(column, local=any(e.local for e in of_task))
            columns[column.key] = column
            for variant, cell in _cells({v: m.metrics[metric] for v, m in found.items()}).items():
                cells[variant, column.key] = cell
    headline = columns.get(f"{HELDOUT}/{grouped}") or next(iter(columns.values()), None)
    same = {} if verdict is None else verdict.same
    sentence = _sentence(headline, [name for name in variants if name not in same], cells)
    return ResultsTable(
        variants=variants,
        columns=list(columns.values()),
        cells=cells,
        headline=headline,
        sentence=sentence if verdict is None else f"{verdict_sentence(verdict)} {sentence}",
        verdict=verdict,
    )


def _metrics(evaluations: Sequence[Evaluation], grouped: str) -> list[tuple[str, str | None]]:
    """Metrics of a task in the order of its columns. A single held-out group is omitted, because it
    would repeat the whole."""
    names = list(dict.fromkeys(name for e in evaluations for name in e.metrics))
    if evaluations[0].task != HELDOUT:
        # The members of a suite follow its average.
        members = dict.fromkeys(group for e in evaluations for group in e.groups)
        return [(name, group) for name in names for group in (None, *members)]
    names.sort(
        key=lambda n: HELDOUT_METRICS.index(n) if n in HELDOUT_METRICS else len(HELDOUT_METRICS)
    )
    groups = sorted({group for e in evaluations for group in e.groups})
    columns: list[tuple[str, str | None]] = []
    for name in names:
        columns.append((name, None))
        if name == grouped and len(groups) > 1:
            columns += [(name, group) for group in groups]
    return columns


def _measured(evaluation: Evaluation, metric: str, group: str | None) -> Group | None:
    measurement = evaluation if group is None else evaluation.groups.get(group)
    return measurement if measurement is not None and metric in measurement.metrics else None


def _column(task: str, metric: str, group: str | None, found: Sequence[Group]) -> Column:
    values = [m.metrics[metric].value for m in found]
    in_unit_range = all(0 <= value <= 1 for value in values if math.isfinite(value))
    return Column(
        task=task,
        metric=metric,
        group=group,
        num_items=max((m.num_items for m in found), default=0),
        higher_is_better=all(m.metrics[metric].higher_is_better for m in found),
        percent=in_unit_range and SHARES.search(metric.split(",")[0]) is not None,
    )


def _cells(metrics: Mapping[str, Metric]) -> dict[str, Cell]:
    cells = {variant: Cell(m.value, m.stderr) for variant, m in metrics.items()}
    sign = 1 if all(m.higher_is_better for m in metrics.values()) else -1
    finite = [variant for variant in cells if math.isfinite(cells[variant].value)]
    ranked = sorted(finite, key=lambda variant: -sign * cells[variant].value)
    if len(ranked) > 1 and all(_differs(cells[ranked[0]], cells[other]) for other in ranked[1:]):
        best = cells[ranked[0]]
        cells[ranked[0]] = Cell(best.value, best.stderr, best=True)
    return cells


def _differs(one: Cell, other: Cell) -> bool:
    """Whether two values differ by more than their combined standard error; False if unknown."""
    if one.stderr is None or other.stderr is None:
        return False
    return abs(one.value - other.value) > math.hypot(one.stderr, other.stderr)


def _text(column: Column, cell: Cell) -> str:
    value = column.number(cell.value)
    return value if cell.stderr is None else f"{value} ± {column.number(cell.stderr)}"


def _sentence(
    column: Column | None, variants: Sequence[str], cells: Mapping[tuple[str, str], Cell]
) -> str:
    if column is None:
        return "Nothing has been evaluated yet."
    present = [variant for variant in variants if (variant, column.key) in cells]
    others = [variant for variant in present if variant not in SPOKEN]
    subject = _first(["forgetting", "ignoring", *others, "full", "base"], present)
    rival = _first(["full", "ignoring", "base", *others], [v for v in present if v != subject])
    if column.task != HELDOUT:
        where = f"On {column.task}"
    else:
        where = "On held-out questions" if column.percent else "On held-out responses"
    measure = column.title
    if subject is None:
        return "Nothing has been evaluated yet."
    cell, spoken = cells[subject, column.key], SPOKEN.get(subject, subject)
    if rival is None:
        return f"{where}, {spoken} has {measure} {_text(column, cell)}. Nothing else was evaluated."
    rival_cell, rival_spoken = cells[rival, column.key], SPOKEN.get(rival, rival)
    both = f"{_text(column, cell)} versus {_text(column, rival_cell)}"
    for name, value in ((spoken, cell.value), (rival_spoken, rival_cell.value)):
        if not math.isfinite(value):
            return (
                f"{where}, the {measure} of {name} is not a finite number and cannot be compared."
            )
    if cell.stderr is None or rival_cell.stderr is None:
        return (
            f"{where}, {spoken} and {rival_spoken} have {measure} {both}. Without standard errors, "
            "this may or may not be a real difference."
        )
    if not _differs(cell, rival_cell):
        return (
            f"{where}, {spoken} and {rival_spoken} do not differ beyond the standard error "
            f"({measure} {both})."
        )
    difference = cell.value - rival_cell.value
    verdict = "better" if (difference > 0) == column.higher_is_better else "worse"
    if column.percent:
        direction = "above" if difference > 0 else "below"
        points = f"{100 * abs(difference):.1f} points {direction} {rival_spoken}"
        note = "" if column.higher_is_better else f"{verdict}; "
        return f"{where}, {spoken} is {points} ({note}{both})."
    direction = "higher" if difference > 0 else "lower"
    return (
        f"{where}, the {measure} of {spoken} is {abs(difference):.3g} {direction} than the "
        f"{measure} of {rival_spoken}, which is {verdict} ({both})."
    )


def _first(wanted: Sequence[str], present: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in present), None)


def to_json(table: ResultsTable, more: Mapping[str, Any] | None = None) -> str:
    """One object with the sentence, the verdict and one entry per cell.

    Values that are not finite are null.

    Args:
        more: further entries of the object.
    """

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

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
    """One line per cell, in the table's order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "task", "metric", "group", "value", "stderr", "num_items"])
    for variant, column, cell in _entries(table):
        stderr = "" if cell.stderr is None else cell.stderr
        row = [variant, column.task, column.metric, column.group or ""]
        writer.writerow([*map(visible, row), cell.value, stderr, column.num_items])
    return text.getvalue()


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
    return "\n".join(lines) + "\n"


def _entries(table: ResultsTable) -> list[tuple[str, Column, Cell]]:
    return [
        (variant, column, cell)
        for variant in table.variants
        for column in table.columns
        if (cell := table.cell(variant, column)) is not None
    ]


def plain(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", visible(" ".join(text.split())))
