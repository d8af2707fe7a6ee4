"""The figure of a study, as SVG and PNG: lines over one field of the grid, or bars.

In: a study's table. Out: two files of the same picture.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from forgetting.escaping import shortened
from forgetting.report.drawing import SETTINGS, fit_titles, series_styles
from forgetting.report.result_table import Column
from forgetting.studies.grid import short_names
from forgetting.studies.study_table import Row, StudyTable

MARKERS = "osD^v"


def write_figure(table: StudyTable, x: str | None, title: str, folder: Path) -> None:
    """Write `figure.svg` and `figure.png`, or nothing if nothing was measured.

    Args:
        x: field on the horizontal axis; None draws bars.
    """
    column = table.metric
    if column is None:
        return
    with matplotlib.rc_context(SETTINGS):
        rows = [row for row in table.rows if _value(table, row, column) is not None]
        height = 3.4 if x is not None else 1.0 + 0.26 * len(rows)
        figure = Figure(figsize=(5.6, height), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(linewidth=0.4, color="#c9ccd1")
        axes.set_axisbelow(True)
        if x is None:
            _bars(axes, table, rows, column)
        else:
            _lines(axes, table, rows, column, x)
            axes.set_xlabel(short_names(table.fields)[x])
            axes.set_ylabel(_axis_title(column))
        axes.set_title(shortened(title, 200), loc="left", fontsize=9)
        fit_titles(figure)
        figure.savefig(folder / "figure.svg", metadata={"Date": None})
        figure.savefig(folder / "figure.png", dpi=200, metadata={"Software": None})


def _lines(axes: Axes, table: StudyTable, rows: list[Row], column: Column, x: str) -> None:
    """One line per series. A variant that the field does not affect is a horizontal line."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(_label(table, row, leave_out=x), []).append(row)
    styles = series_styles(list(series))
    for place, (label, members) in enumerate(series.items()):
        color = styles[label].color
        if x not in members[0].levels:
            value, _ = _value(table, members[0], column) or (0.0, 0.0)
            axes.axhline(value, color=color, dashes=(4, 2), linewidth=1.2, label=label)
            continue
        members.sort(key=lambda row: float(row.levels[x]))
        points = [float(row.levels[x]) for row in members]
        values, errors = zip(
            *(_value(table, row, column) or (0, 0) for row in members), strict=True
        )
        axes.errorbar(
            points,
            values,
            yerr=errors,
            color=color,
            marker=MARKERS[place % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
            capsize=2,
            label=label,
        )
        known = [row for row in members if row.published is not None]
        if known:
            axes.plot(
                [float(row.levels[x]) for row in known],
                [row.published.value for row in known if row.published is not None],
                linestyle="none",
                marker="*",
                markersize=9,
                color="none",
                markeredgecolor=color,
                label=f"{label}, published",
            )
    levels = {float(row.levels[x]) for row in rows if x in row.levels}
    if min(levels) > 0 and max(levels) >= 100 * min(levels):
        axes.set_xscale("log")
    axes.legend(fontsize=7, frameon=False)


def _bars(axes: Axes, table: StudyTable, rows: list[Row], column: Column) -> None:
    styles = series_styles(list(dict.fromkeys(row.variant for row in rows)))
    for place, row in enumerate(rows):
        value, error = _value(table, row, column) or (0.0, 0.0)
        color = styles[row.variant].color
        axes.barh(place, value, height=0.75, color=color, xerr=error or None, capsize=2)
        if row.published is not None:
            published = row.published.value
            axes.plot(published, place, marker="*", color="none", markeredgecolor="black")
    axes.set_yticks(range(len(rows)), [shortened(_label(table, row), 44) for row in rows])
    axes.invert_yaxis()
    stars = any(row.published is not None for row in rows)
    axes.set_xlabel(_axis_title(column) + (" (star: published)" if stars else ""))


def _value(table: StudyTable, row: Row, column: Column) -> tuple[float, float] | None:
    """Mean and deviation as drawn; None if the mean is not finite."""
    value = table.value(row, column)
    if value is None or not math.isfinite(value.value):
        return None
    scale = 100 if column.percent else 1
    error = value.stderr if value.stderr is not None and math.isfinite(value.stderr) else 0.0
    return scale * value.value, scale * error


def _label(table: StudyTable, row: Row, leave_out: str | None = None) -> str:
    short = short_names(table.fields)
    parts = [row.model] if len({r.model for r in table.rows}) > 1 else []
    parts.append(row.variant)
    parts += [f"{short[f]} {v}" for f, v in row.levels.items() if f != leave_out]
    return " ".join(parts)


def _axis_title(column: Column) -> str:
    title = f"{column.task_title}: {column.title}"
    return shortened(f"{title}, %" if column.percent else title, 60)
