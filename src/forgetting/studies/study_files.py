"""The table of a study as Markdown, CSV, LaTeX and JSON, with the columns that a user chose.

In: a `StudyTable`. Out: text. Numbers are formatted as in a run's report.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forgetting.errors import InputError, did_you_mean
from forgetting.method.comparison import LEVEL
from forgetting.report.result_files import difference_entries, difference_values, finite
from forgetting.report.result_table import Column, plain
from forgetting.report.verdict import BASELINE
from forgetting.rundir.results import Group
from forgetting.studies.grid import short_names
from forgetting.studies.markup import DIVERGED, NO_VALUE, as_latex, as_markdown
from forgetting.studies.study_table import Published, Results, Row, StudyTable

MODEL, VARIANT, PAIRED, SEEDS = "model", "variant", "paired", "seeds"
PUBLISHED, DIFFERENCE = "published", "difference"
PAIRED_MARK = ":paired"
"""After a metric: its difference to `full`."""


@dataclass(frozen=True)
class Texts:
    """A table as text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_left: int
    """Number of columns of words on the left."""


def check_columns(columns: Sequence[str], fields: Sequence[str]) -> None:
    """Refuse a column that no study with these grid fields has. Metrics are known after a run.

    Raises:
        InputError: the message names the column.
    """
    known = [MODEL, VARIANT, *short_names(fields).values(), PAIRED, SEEDS, PUBLISHED, DIFFERENCE]
    for name in columns:
        if "/" not in name and name not in known and name not in fields:
            hint = did_you_mean(name, known) or f"The columns are: {', '.join(known)}."
            raise InputError(
                f"--columns: there is no column {name!r}. {hint} Metrics are columns too, such as "
                "heldout/loss or heldout/loss:paired"
            )


def texts(
    table: StudyTable, columns: Sequence[str] | None = None, *, has_parts: bool = True
) -> Texts:
    """The table as text.

    Args:
        table: the table.
        columns: `model`, `variant`, a field of the grid, `TASK/METRIC` or `TASK/METRIC/GROUP`, the
            same with `:paired` for the difference to `full`, `paired` for that of the study's
            metric, `seeds`, `published`, `difference`; None: all that there are, with the study's
            metric.
        has_parts: whether the parts of the metric have columns if `columns` is None.

    Raises:
        InputError: there is no such column.
    """
    chosen = [_column(table, name) for name in (columns or default_columns(table, has_parts))]
    num_left = next((i for i, each in enumerate(chosen) if not each.is_word), len(chosen))
    return Texts(
        [each.title for each in chosen],
        [[each.text(row) for each in chosen] for row in table.rows],
        num_left,
    )


def default_columns(table: StudyTable, has_parts: bool = True) -> list[str]:
    """The columns of a table for which nobody chose any."""
    names = [MODEL] if len({row.model for row in table.rows}) > 1 else []
    names += [VARIANT, *table.fields]
    names += [column.key for column in table.columns[: None if has_parts else 1]]
    if table.metric is not None and any(key == table.metric.key for _, key in table.paired):
        names.append(PAIRED)
    names.append(SEEDS)
    if any(row.published is not None for row in table.rows):
        names += [PUBLISHED, DIFFERENCE]
    return names


@dataclass(frozen=True)
class _Shown:
    title: str
    text: Callable[[Row], str]
    is_word: bool = False


def _column(table: StudyTable, name: str) -> _Shown:
    short = short_names(table.fields)
    own_name = {part: field for field, part in short.items()}
    if name == MODEL:
        return _Shown(name, lambda row: row.model, is_word=True)
    if name == VARIANT:
        return _Shown(name, lambda row: row.variant, is_word=True)
    if (field := own_name.get(name, name)) in short:
        return _Shown(short[field], lambda row: row.levels.get(field, ""), is_word=True)
    if name == SEEDS:
        return _Shown(name, _seeds_text)
    if name == PUBLISHED:
        return _Shown(name, lambda row: _published_text(row.published))
    if name == DIFFERENCE:
        return _Shown(name, lambda row: _difference_text(table, row))
    if name == PAIRED:
        return _paired_column(table, table.metric, f"minus {BASELINE}, paired (n)")
    key = name.removesuffix(PAIRED_MARK)
    metric = table.results.column(key)
    if metric is None:
        keys = [column.key for column in table.results.columns]
        hint = did_you_mean(key, keys) or f"The metrics are: {', '.join(keys)}"
        raise InputError(f"--columns: there is no column {name!r}. {hint}")
    title = f"{metric.task_title}: {metric.title}{' (%)' if metric.percent else ''}"
    if key != name:
        return _paired_column(table, metric, f"{title}, minus {BASELINE}, paired (n)")
    return _Shown(title, lambda row: _value_text(table, row, metric))


def _paired_column(table: StudyTable, metric: Column | None, title: str) -> _Shown:
    def text(row: Row) -> str:
        found = None if metric is None else table.paired_difference(row, metric)
        if found is None or metric is None:
            return NO_VALUE
        return f"{metric.difference(found)} ({found.num_pairs})"

    return _Shown(title, text)


def _value_text(table: StudyTable, row: Row, column: Column) -> str:
    """Mean, deviation over seeds, and Wilson's interval of a share."""
    value = table.value(row, column)
    if value is None:
        return DIVERGED if row.num_diverged and not row.num_seeds else NO_VALUE
    text = column.number(value.value)
    if value.stderr is not None:
        text += f" ± {column.number(value.stderr)}"
    if value.interval is not None:
        text += f" [{', '.join(map(column.number, value.interval))}]"
    return text


def _seeds_text(row: Row) -> str:
    seeds = str(row.num_seeds)
    return f"{seeds} ({row.num_diverged} diverged)" if row.num_diverged else seeds


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
    if any(c.is_counted for c in table.columns):
        text += (
            f" Brackets after a share: Wilson's {100 * LEVEL:.0f}% interval over one seed's items."
        )
    if table.paired:
        text += (
            f" Minus {BASELINE}, paired: mean over n seeds of the difference to {BASELINE} with "
            f"the same seed and data, with a {100 * LEVEL:.0f}% t interval."
        )
    if any(row.published is not None for row in table.rows):
        text += (
            " Difference: ours minus the published value; * if it is larger than our standard "
            "deviation."
        )
    if any(row.published is not None and row.published.derived for row in table.rows):
        text += " (d) derived from a published value and a published difference."
    return text


def to_markdown(
    table: StudyTable,
    title: str,
    notes: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> str:
    """The title, the table and its notes; `columns` as for `texts`."""
    shown = texts(table, columns)
    lines = [f"# {plain(title)}", "", as_markdown(shown.header, shown.rows, shown.num_left)]
    lines += ["", legend(table), *(line for note in notes for line in ("", plain(note)))]
    return "\n".join(lines) + "\n"


def to_latex(table: StudyTable, title: str, columns: Sequence[str] | None = None) -> str:
    """A compact `table` for the package booktabs; `columns` as for `texts`, without the parts of
    the metric by default."""
    shown = texts(table, columns, has_parts=False)
    caption = f"{title}. {legend(table)}"
    return as_latex(shown.header, shown.rows, shown.num_left, caption)


def to_csv(table: StudyTable) -> str:
    """One line per row and metric, in the metric's unit. Published values are as printed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    left = ["model", "variant", *table.fields, "seeds", "diverged"]
    right = ["task", "metric", "group", "mean", "deviation", "low", "high"]
    paired = [f"minus_{BASELINE}", "paired_low", "paired_high", "num_pairs"]
    writer.writerow([*left, *right, *paired, "published", "difference"])
    for row in table.rows:
        left = [row.model, row.variant, *(row.levels.get(field, "") for field in table.fields)]
        left += [str(row.num_seeds), str(row.num_diverged)]
        published = "" if row.published is None else row.published.value
        measured = [(c, v) for c in table.results.columns if (v := table.value(row, c)) is not None]
        for column, value in measured:
            figure = [column.task, column.metric, column.group or "", value.value]
            is_about = column == table.metric
            beside = [published, _blank(table.difference(row))] if is_about else ["", ""]
            figure += [_blank(value.stderr), *(value.interval or ("", ""))]
            found = table.paired_difference(row, column)
            figure += [""] * len(paired) if found is None else difference_values(found)
            writer.writerow([*left, *figure, *beside])
        if not measured:
            writer.writerow([*left, *[""] * (len(right) + len(paired)), published, ""])
    return text.getvalue()


def cells_to_csv(results: Results, fields: Sequence[str]) -> str:
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
    rows = []
    for row in table.rows:
        value = table.value(row, table.metric) if table.metric is not None else None
        found = table.paired_difference(row, table.metric) if table.metric is not None else None
        rows.append(
            {
                "model": row.model,
                "variant": row.variant,
                "levels": dict(row.levels),
                "mean": finite(value.value) if value is not None else None,
                "deviation": finite(value.stderr) if value is not None else None,
                "interval": list(value.interval) if value is not None and value.interval else None,
                f"minus_{BASELINE}": None if found is None else difference_entries(found),
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
