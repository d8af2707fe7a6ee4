"""Figures of the results, and bars: differences with their intervals, values, shares.

Input: a `ResultsTable`, or numbers by group and variant. Output: inline SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from forgetting.escaping import shortened
from forgetting.report.drawing import INK, LINE, MUTED, SeriesStyle, new_axes, set_title, to_svg
from forgetting.report.result_table import ResultsTable
from forgetting.rundir import layout

MAX_GROUPS = 10


@dataclass(frozen=True)
class Bar:
    """A value with its standard error (0 if unknown) and its text."""

    value: float
    error: float
    text: str


def bars(
    figure_id: str,
    title: str,
    groups: Mapping[str, Mapping[str, Bar]],
    styles: Mapping[str, SeriesStyle],
) -> str | None:
    """Bars by group and variant for the first `MAX_GROUPS` groups; None if there are none.

    The group with the empty name is all items.
    """
    shown, variants = _drawn(groups, styles)
    if not variants:
        return None
    pitch = len(variants) + 0.9
    figure, axes = new_axes(0.75 + 0.15 * pitch * len(shown))
    for place, group in enumerate(shown.values()):
        for row, variant in enumerate(variants):
            bar = group.get(variant)
            if bar is None or not np.isfinite(bar.value):
                continue
            y, ends = place * pitch + row, (bar.value - bar.error, bar.value + bar.error)
            axes.barh(y, bar.value, height=0.82, color=styles[variant].color)
            if bar.error:
                axes.plot(ends, [y, y], color=INK, linewidth=1)
            axes.annotate(
                bar.text,
                (ends[1], y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=MUTED,
            )
    _name_groups(axes, list(shown), len(variants), pitch)
    axes.margins(x=0.1)
    # If all values are 0, the axis has no natural end.
    is_flat = not any(bar.value for group in shown.values() for bar in group.values())
    axes.set_xlim(0, 1 if is_flat else None)
    set_title(axes, title)
    return to_svg(figure, figure_id, f"{title}, by variant; see the table for numbers")


def _drawn(
    groups: Mapping[str, Mapping[str, Any]], styles: Mapping[str, SeriesStyle]
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """The groups that a figure has room for, and the variants in them."""
    shown = dict(list(groups.items())[:MAX_GROUPS])
    return shown, [name for name in styles if any(name in group for group in shown.values())]


def _name_groups(axes: Axes, names: Sequence[str], num_variants: int, pitch: float) -> None:
    """Name each group at the middle of its variants, the first group on top."""
    middle = (num_variants - 1) / 2
    axes.set_yticks(
        [place * pitch + middle for place in range(len(names))],
        [shortened(name, 19) or "all" for name in names],
    )
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=LINE, linewidth=0.5)


@dataclass(frozen=True)
class Interval:
    """A difference with its interval and its text."""

    value: float
    low: float
    high: float
    text: str


def intervals(
    figure_id: str,
    title: str,
    groups: Mapping[str, Mapping[str, Interval]],
    styles: Mapping[str, SeriesStyle],
) -> str | None:
    """Differences from 0 with their intervals, by group and variant; None if there are none.

    If the largest difference would make the smallest interval invisible, the scale is logarithmic
    on both sides of 0. Groups are those of `bars`.
    """
    shown, variants = _drawn(groups, styles)
    if not variants:
        return None
    pitch = len(variants) + 0.9
    figure, axes = new_axes(0.95 + 0.15 * pitch * len(shown))
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, group in enumerate(shown.values()):
        for row, variant in enumerate(variants):
            found = group.get(variant)
            if found is None:
                continue
            y, color = place * pitch + row, styles[variant].color
            axes.plot((found.low, found.high), (y, y), color=color, linewidth=1.8)
            axes.plot(found.value, y, marker="o", markersize=4, color=color)
            axes.text(
                1.02,
                y,
                found.text,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=7,
                color=MUTED,
            )
    _name_groups(axes, list(shown), len(variants), pitch)
    every = [each for group in shown.values() for each in group.values()]
    largest = max(max(abs(each.low), abs(each.high)) for each in every)
    smallest = min((each.high - each.low) / 2 for each in every)
    if 0 < 30 * smallest < largest:
        axes.set_xscale("symlog", linthresh=10 ** np.ceil(np.log10(smallest)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.set_xlabel("logarithmic on both sides of 0", color=MUTED)
    axes.margins(x=0.05)
    set_title(axes, title)
    return to_svg(figure, figure_id, f"{title}, by variant; see the table for numbers")


def drawn_variants(table: ResultsTable) -> list[str]:
    """The variants in `result_figure`: those with a difference, without the untrained base if
    others have one, or else all."""
    compared = _drawn_differences(table)
    return compared or list(table.variants)


def _drawn_differences(table: ResultsTable) -> list[str]:
    head = table.headline
    if head is None:
        return []
    found = [v for v in table.compared if (d := table.difference(v, head)) and d.has_interval]
    return [name for name in found if name != layout.BASE] or found


def result_figure(
    figure_id: str, table: ResultsTable, styles: Mapping[str, SeriesStyle]
) -> str | None:
    """The headline metric overall and by group: differences from the baseline with intervals, or
    values with standard errors if nothing was paired."""
    head, variants = table.headline, _drawn_differences(table)
    if head is None or table.paired is None or not variants:
        return result_bars(figure_id, table, styles)
    scale = 100 if head.percent else 1
    groups: dict[str, dict[str, Interval]] = {}
    for column in table.columns:
        if (column.task, column.metric) != (head.task, head.metric):
            continue
        of_group = {
            variant: Interval(scale * d.value, scale * d.low, scale * d.high, column.difference(d))
            for variant in variants
            if (d := table.difference(variant, column)) is not None and d.has_interval
        }
        if of_group:
            groups[column.group or ""] = of_group
    better = "right" if head.higher_is_better else "left"
    unit = " (points)" if head.percent else ""
    title = f"{head.metric_title} minus {table.paired.baseline}{unit}, {better} is better"
    drawn = {name: style for name, style in styles.items() if name in variants}
    return intervals(figure_id, title, groups, drawn)


def result_bars(
    figure_id: str, table: ResultsTable, styles: Mapping[str, SeriesStyle]
) -> str | None:
    """The headline metric by variant with standard errors, overall and by group."""
    head = table.headline
    if head is None:
        return None
    groups: dict[str, dict[str, Bar]] = {}
    for column in table.columns:
        if (column.task, column.metric) != (head.task, head.metric):
            continue
        scale = 100 if column.percent else 1
        # A real group may be named "all", so the whole has the empty name.
        groups[column.group or ""] = {
            variant: Bar(scale * cell.value, scale * (cell.stderr or 0), column.number(cell.value))
            for variant in table.variants
            if (cell := table.cell(variant, column)) is not None
        }
    title = f"{head.task_title}: {head.metric_title}{' (%)' if head.percent else ''}"
    return bars(figure_id, title, groups, styles)


def negative_bars(
    figure_id: str,
    title: str,
    shares: Mapping[str, Mapping[str, tuple[int, int]]],
    styles: Mapping[str, SeriesStyle],
) -> str | None:
    """Share of negative tokens by group.

    Args:
        shares: (tokens, negative tokens) by group and variant.
    """
    groups = {
        group: {
            variant: Bar(100 * negative / number, 0, f"{100 * negative / number:.1f}")
            for variant, (number, negative) in row.items()
            if number
        }
        for group, row in shares.items()
    }
    return bars(figure_id, title, groups, styles)
