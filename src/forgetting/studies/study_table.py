"""The table of a study: means and standard deviations over seeds, next to published values.

In: cells, their evaluations, and published values. Out: a `StudyTable`, and its form as Markdown,
CSV, LaTeX and JSON. Numbers are formatted as in a run's report. Runs nothing.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from forgetting.errors import InputError, did_you_mean
from forgetting.method.metrics import mean_and_deviation
from forgetting.report.result_table import Cell as Value
from forgetting.report.result_table import Column, ResultsTable, plain, tabulate
from forgetting.rundir.results import Evaluation, Group, Metric
from forgetting.studies.grid import Levels, StudyCell, short_names
from forgetting.studies.markup import DIVERGED, NO_VALUE, as_latex, as_markdown


@dataclass(frozen=True)
class Published:
    """A published value, in percent if the column is."""

    model: str
    variant: str
    value: float
    levels: Levels
    derived: bool


@dataclass(frozen=True)
class Row:
    """The cells that differ only in their seed."""

    model: str
    variant: str
    levels: Levels
    num_seeds: int
    """Number of seeds with a result."""
    num_diverged: int
    published: Published | None = None

    @property
    def key(self) -> str:
        """Identifies the row in its table."""
        return json.dumps([self.model, self.variant, dict(self.levels)])


@dataclass(frozen=True)
class StudyTable:
    """Rows by columns; a value's `stderr` is the standard deviation over seeds."""

    rows: Sequence[Row]
    fields: Sequence[str]
    """Fields of the grid, without the seed."""
    results: ResultsTable
    metric: Column | None
    """The study's metric; None if nothing was measured."""

    def value(self, row: Row, column: Column) -> Value | None:
        """A row's mean and standard deviation; None if there is none."""
        return self.results.cell(row.key, column)

    def difference(self, row: Row) -> float | None:
        """Our value minus the published one, in its unit; None if either is missing."""
        if row.published is None or self.metric is None:
            return None
        value = self.value(row, self.metric)
        if value is None:
            return None
        return (100 if self.metric.percent else 1) * value.value - row.published.value

    def is_apart(self, row: Row) -> bool:
        """Whether our value differs from the published one by more than a standard deviation."""
        difference = self.difference(row)
        value = self.value(row, self.metric) if self.metric is not None else None
        if self.metric is None or difference is None or value is None or value.stderr is None:
            return False
        return abs(difference) > (100 if self.metric.percent else 1) * value.stderr

    @property
    def columns(self) -> list[Column]:
        """The metric, and its parts."""
        if self.metric is None:
            return []
        about = (self.metric.task, self.metric.metric)
        parts = [c for c in self.results.columns if (c.task, c.metric) == about]
        return [self.metric, *(c for c in parts if c.key != self.metric.key)]


def build_table(
    results: Sequence[tuple[StudyCell, Sequence[Evaluation]]],
    fields: Sequence[str],
    *,
    metric: str | None = None,
    diverged: Mapping[tuple[str, str], str] | None = None,
    published: Sequence[Published] = (),
) -> StudyTable:
    """Gather cells into rows.

    Args:
        results: every cell with its evaluations, which may be none.
        fields: fields of the grid without the seed, in the order of their columns.
        metric: `task/metric` or `task/metric/group`; None: the headline metric of a run's report.
        diverged: messages of the trainings that diverged, by run and variant.
        published: values of a paper.

    Raises:
        InputError: no task has this metric.
    """
    diverged = diverged or {}
    members: dict[str, list[tuple[StudyCell, Sequence[Evaluation]]]] = {}
    rows: dict[str, Row] = {}
    for cell, evaluations in results:
        row = Row(cell.model, cell.name, cell.levels, 0, 0)
        known = rows.setdefault(row.key, row)
        members.setdefault(row.key, []).append((cell, evaluations))
        rows[row.key] = replace(
            known,
            num_seeds=known.num_seeds + bool(evaluations),
            num_diverged=known.num_diverged + ((cell.run, cell.variant) in diverged),
            published=next((p for p in published if _is_about(p, cell)), None),
        )
    table = tabulate(
        [
            _over_seeds(key, evaluations)
            for key, cells in members.items()
            for evaluations in _by_task(cells)
        ]
    )
    column = table.headline
    if metric is not None and table.columns:
        column = next((c for c in table.columns if c.key == metric), None)
        if column is None:
            keys = [c.key for c in table.columns]
            hints = [did_you_mean(metric, keys), f"The metrics are: {', '.join(keys)}"]
            raise InputError(f"there is no metric {metric!r}. {' '.join(filter(None, hints))}")
    return StudyTable(list(rows.values()), fields, table, column)


def by_value(table: StudyTable) -> StudyTable:
    """The same table with the best row first. Rows without a value come last."""

    def place(row: Row) -> tuple[bool, float]:
        value = table.value(row, table.metric) if table.metric is not None else None
        if table.metric is None or value is None or not math.isfinite(value.value):
            return True, 0.0
        return False, -value.value if table.metric.higher_is_better else value.value

    return replace(table, rows=sorted(table.rows, key=place))


def _is_about(published: Published, cell: StudyCell) -> bool:
    return (published.model, published.variant) == (cell.model, cell.name) and (
        published.levels.items() <= cell.levels.items()
    )


def _by_task(cells: Sequence[tuple[StudyCell, Sequence[Evaluation]]]) -> list[list[Evaluation]]:
    tasks = dict.fromkeys(e.task for _, evaluations in cells for e in evaluations)
    return [
        [e for _, evaluations in cells for e in evaluations if e.task == task] for task in tasks
    ]


def _over_seeds(key: str, evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation with the means and standard deviations of several seeds."""
    groups = dict.fromkeys(name for e in evaluations for name in e.groups)
    overall = _mean(evaluations)
    return Evaluation(
        variant=key,
        task=evaluations[0].task,
        num_items=overall.num_items,
        metrics=overall.metrics,
        groups={
            name: _mean([e.groups[name] for e in evaluations if name in e.groups])
            for name in groups
        },
        local=any(e.local for e in evaluations),
    )


def _mean(measurements: Sequence[Group]) -> Group:
    metrics: dict[str, Metric] = {}
    for name in dict.fromkeys(name for m in measurements for name in m.metrics):
        found = [m.metrics[name] for m in measurements if name in m.metrics]
        mean, deviation = mean_and_deviation([metric.value for metric in found])
        is_higher = found[0].higher_is_better
        metrics[name] = Metric(value=mean, stderr=deviation, higher_is_better=is_higher)
    return Group(num_items=max(m.num_items for m in measurements), metrics=metrics)


def texts(table: StudyTable, columns: Sequence[Column]) -> tuple[list[str], list[list[str]], int]:
    """Header and rows as text, and the number of columns of words on the left."""
    short = short_names(table.fields)
    many_models = len({row.model for row in table.rows}) > 1
    left = ["model"] * many_models + ["variant", *(short[field] for field in table.fields)]
    header = [*left, *(f"{c.task_title}: {c.title}" for c in columns), "seeds"]
    has_published = any(row.published is not None for row in table.rows)
    if has_published:
        header += ["published", "difference"]
    rows = []
    for row in table.rows:
        cells = [row.model] * many_models
        cells += [row.variant, *(row.levels.get(field, "") for field in table.fields)]
        missing = DIVERGED if row.num_diverged and not row.num_seeds else NO_VALUE
        for column in columns:
            value = table.results.text(row.key, column)
            cells.append(missing if table.value(row, column) is None else value)
        seeds = str(row.num_seeds)
        cells.append(f"{seeds} ({row.num_diverged} diverged)" if row.num_diverged else seeds)
        if has_published:
            cells += [_published_text(row.published), _difference_text(table, row)]
        rows.append(cells)
    return header, rows, len(left)


def _published_text(published: Published | None) -> str:
    if published is None:
        return NO_VALUE
    return f"{published.value:.2f}{' (d)' if published.derived else ''}"


def _difference_text(table: StudyTable, row: Row) -> str:
    difference = table.difference(row)
    if difference is None:
        return NO_VALUE
    return f"{difference:+.1f}{' *' if table.is_apart(row) else ''}"


def legend(table: StudyTable) -> str:
    """What the signs in the table mean."""
    text = "Mean ± standard deviation over seeds."
    if any(row.published is not None for row in table.rows):
        text += (
            " Difference: ours minus the published value; * if it is larger than our standard "
            "deviation."
        )
    if any(row.published is not None and row.published.derived for row in table.rows):
        text += " (d) derived from a published value and a published difference."
    return text


def to_markdown(table: StudyTable, title: str, notes: Sequence[str] = ()) -> str:
    """The title, the table and its notes."""
    lines = [f"# {plain(title)}", "", as_markdown(*texts(table, table.columns))]
    lines += ["", legend(table), *(line for note in notes for line in ("", plain(note)))]
    return "\n".join(lines) + "\n"


def to_latex(table: StudyTable, title: str) -> str:
    """A `table` for the package booktabs."""
    return as_latex(*texts(table, table.columns), f"{title}. {legend(table)}")


def to_csv(table: StudyTable) -> str:
    """One line per row and metric, in the metric's unit. Published values are as printed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    left = ["model", "variant", *table.fields, "seeds", "diverged"]
    right = ["task", "metric", "group", "mean", "deviation", "published", "difference"]
    writer.writerow([*left, *right])
    for row in table.rows:
        left = [row.model, row.variant, *(row.levels.get(field, "") for field in table.fields)]
        left += [str(row.num_seeds), str(row.num_diverged)]
        published = "" if row.published is None else row.published.value
        measured = [(c, v) for c in table.results.columns if (v := table.value(row, c)) is not None]
        for column, value in measured:
            figure = [column.task, column.metric, column.group or "", value.value]
            is_about = column == table.metric
            beside = [published, _blank(table.difference(row))] if is_about else ["", ""]
            writer.writerow([*left, *figure, _blank(value.stderr), *beside])
        if not measured:
            writer.writerow([*left, "", "", "", "", "", published, ""])
    return text.getvalue()


def cells_to_csv(
    results: Sequence[tuple[StudyCell, Sequence[Evaluation]]], fields: Sequence[str]
) -> str:
    """One line per cell and metric, before averaging."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run", "model", "variant", *fields, "seed", "task", "metric", "group", "value", "stderr"]
    )
    for cell, evaluations in results:
        left = [cell.run, cell.model, cell.name]
        left += [*(cell.levels.get(field, "") for field in fields), str(cell.seed)]
        for evaluation in evaluations:
            parts: dict[str, Group] = {"": evaluation, **evaluation.groups}
            for group, measurement in parts.items():
                for name, metric in measurement.metrics.items():
                    figures = [metric.value, _blank(metric.stderr)]
                    writer.writerow([*left, evaluation.task, name, group, *figures])
    return text.getvalue()


def to_json(table: StudyTable) -> str:
    """The metric of every row. Missing and non-finite values are null."""

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    rows = []
    for row in table.rows:
        value = table.value(row, table.metric) if table.metric is not None else None
        rows.append(
            {
                "model": row.model,
                "variant": row.variant,
                "levels": dict(row.levels),
                "mean": finite(value.value) if value is not None else None,
                "deviation": finite(value.stderr) if value is not None else None,
                "seeds": row.num_seeds,
                "diverged": row.num_diverged,
                "published": row.published.value if row.published is not None else None,
                "difference": finite(table.difference(row)),
            }
        )
    metric = table.metric.key if table.metric is not None else None
    return json.dumps({"metric": metric, "rows": rows}, indent=1, allow_nan=False) + "\n"


def _blank(value: float | None) -> float | str:
    return "" if value is None else value
