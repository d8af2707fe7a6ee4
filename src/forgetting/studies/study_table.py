"""The table of a study: means and deviations over seeds, differences to `full`, published values.

In: cells, their evaluations, and published values. Out: a `StudyTable`, which `study_files` writes.
Runs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from forgetting.errors import InputError, did_you_mean
from forgetting.method.comparison import Difference, mean_difference
from forgetting.method.metrics import mean_and_deviation
from forgetting.report.result_table import Cell as Value
from forgetting.report.result_table import Column, ResultsTable, tabulate
from forgetting.report.verdict import BASELINE
from forgetting.rundir.results import Evaluation, Group, Metric
from forgetting.studies.grid import Levels, StudyCell

Results = Sequence[tuple[StudyCell, Sequence[Evaluation]]]
"""Every cell of a study with its evaluations, which may be none."""


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
    paired: Mapping[tuple[str, str], Difference] = field(default_factory=dict)
    """The mean over seeds of a row minus `full` with the same seed and data, by `Row.key` and
    `Column.key`."""

    def value(self, row: Row, column: Column) -> Value | None:
        """A row's mean and standard deviation; None if there is none."""
        return self.results.cell(row.key, column)

    def paired_difference(self, row: Row, column: Column) -> Difference | None:
        """A row minus `full`, paired over seeds; None if there is no pair."""
        return self.paired.get((row.key, column.key))

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
    results: Results,
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
        column = table.column(metric)
        if column is None:
            keys = [c.key for c in table.columns]
            hints = [did_you_mean(metric, keys), f"The metrics are: {', '.join(keys)}"]
            raise InputError(f"there is no metric {metric!r}. {' '.join(filter(None, hints))}")
    return StudyTable(list(rows.values()), fields, table, column, _paired(results, members))


def _paired(results: Results, members: Mapping[str, Results]) -> dict[tuple[str, str], Difference]:
    """Every row minus `full`, over the runs that have a result of both."""
    values = {(cell.run, cell.variant): _values(found) for cell, found in results}
    baselines: dict[str, list[StudyCell]] = {}
    for cell, _ in results:
        if cell.name == BASELINE:
            baselines.setdefault(cell.run, []).append(cell)
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row_key, cells in members.items():
        for cell, _ in cells:
            # The runs of a study differ in seed and data, so the partner is in the same run.
            of_run = baselines.get(cell.run, ())
            rival = next((b for b in of_run if b.levels.items() <= cell.levels.items()), None)
            if rival is None or cell.name == BASELINE:
                continue
            own, other = values[cell.run, cell.variant], values[rival.run, rival.variant]
            for key in own.keys() & other.keys():
                pairs.setdefault((row_key, key), []).append((own[key], other[key]))
    return {key: mean_difference(*zip(*found, strict=True)) for key, found in pairs.items()}


def _values(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """The finite values by `Column.key`."""
    found = {}
    for each in evaluations:
        parts: dict[str, Group] = {"": each, **each.groups}
        for group, measurement in parts.items():
            for name, metric in measurement.metrics.items():
                if math.isfinite(metric.value):
                    found["/".join(filter(None, (each.task, name, group)))] = metric.value
    return found


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
        members=evaluations[0].members,
    )


def _mean(measurements: Sequence[Group]) -> Group:
    metrics: dict[str, Metric] = {}
    for name in dict.fromkeys(name for m in measurements for name in m.metrics):
        found = [m.metrics[name] for m in measurements if name in m.metrics]
        mean, deviation = mean_and_deviation([metric.value for metric in found])
        is_higher = found[0].higher_is_better
        metrics[name] = Metric(value=mean, stderr=deviation, higher_is_better=is_higher)
    return Group(num_items=max(m.num_items for m in measurements), metrics=metrics)
