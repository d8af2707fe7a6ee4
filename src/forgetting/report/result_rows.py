"""The results of a run as tables of the report: values, and differences to the baseline.

Input: a `ResultsTable`. Output: a `Table` with one row per metric.
"""

from __future__ import annotations

from forgetting.method.comparison import LEVEL
from forgetting.report.result_table import INTERVALS, Column, ResultsTable
from forgetting.report.tables import DASH, Table, TableCell, TableColumn, column, count


def results_rows(table: ResultsTable) -> Table:
    """Metrics by variants, with standard errors."""
    columns = [TableColumn("", ("task", "metric", "group"), is_text=True)]
    columns += [TableColumn(v, (v, f"{v}: standard error")) for v in table.variants]
    rows = []
    for metric in table.columns:
        row = [_metric_cell(metric)]
        for variant in table.variants:
            cell = table.cell(variant, metric)
            values = (None, None) if cell is None else (cell.value, cell.stderr)
            shown = table.text(variant, metric)
            row.append(_with_spread(shown, values, cell is not None and cell.best))
        rows.append([*row, count(metric.num_items)])
    return Table(
        "results-by-variant",
        "Results",
        [*columns, column("items")],
        rows,
        f"↑ higher is better, ↓ lower is better. Shares are in percent. {INTERVALS} ± is one "
        "standard error over the items. Bold marks a value that is better than all others by more "
        "than the combined standard error. Nothing here includes variation between seeds.",
    )


def difference_rows(table: ResultsTable) -> Table | None:
    """Metrics by variants, minus the baseline on the same items; None if nothing was paired."""
    if table.paired is None or not table.compared_columns:
        return None
    limits = ("difference", "low", "high")
    columns = [TableColumn("", ("task", "metric", "group"), is_text=True)]
    columns += [TableColumn(v, tuple(f"{v}: {name}" for name in limits)) for v in table.compared]
    rows = []
    for metric in table.compared_columns:
        row = [_metric_cell(metric)]
        numbers = []
        for variant in table.compared:
            found = table.difference(variant, metric)
            if found is None:
                row.append(TableCell(DASH, (None, None, None)))
                continue
            numbers.append(found.num_pairs)
            low, high = (found.low, found.high) if found.has_interval else (None, None)
            is_better = found.is_apart and (found.value > 0) == metric.higher_is_better
            row.append(_with_spread(metric.difference(found), (found.value, low, high), is_better))
        rows.append([*row, count(max(numbers))])
    return Table(
        "differences",
        f"Minus {table.paired.baseline}, paired",
        [*columns, column("n")],
        rows,
        f"Each model minus {table.paired.baseline} on the same n items, in points for shares, with "
        f"a {100 * LEVEL:.0f}% interval. Pairing removes what makes an item hard for both. Bold "
        "marks an interval on the better side of 0.",
    )


def _with_spread(shown: str, values: tuple[float | None, ...], is_best: bool) -> TableCell:
    """A cell whose interval or error is on a line of its own."""
    value, space, spread = shown.partition(" ")
    return TableCell(value if space else shown, values, is_best, spread=spread)


def _metric_cell(metric: Column) -> TableCell:
    arrow = "↑" if metric.higher_is_better else "↓"
    title = f"{metric.task_title}: {metric.metric_title} {arrow}"
    if metric.group is not None:
        title = f"   {metric.group}"
    return TableCell(title, (metric.task, metric.metric, metric.group or ""))
