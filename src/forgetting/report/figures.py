"""Figures as inline SVG: curves, histograms, bars.

Input: arrays and a style per variant. Output: SVG that takes its colors from the page's CSS
(with fallbacks), contains no style that a content security policy would block, has unique ids, and
is reproducible byte for byte.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from forgetting.escaping import shortened
from forgetting.report.counts import SplitLengths
from forgetting.report.result_table import ResultsTable
from forgetting.rundir.findings import CalibrationBin
from forgetting.rundir.selections import SelectionSummary

Floats = npt.NDArray[np.floating]

# Drawn in these colors, which are then replaced by the page's CSS variables.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
CSS = {INK: "currentColor", MUTED: "var(--muted, #6b6f76)", LINE: "var(--line, #c9ccd1)"}
# Okabe and Ito's palette, distinguishable with all common forms of color blindness.
SERIES = ("#7f858d", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#a07d00", "#56b4e9", "#6a4c93")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
KNOWN = {"base": (0, ()), "full": (1, (5, 2)), "ignoring": (2, (1.5, 1.5)), "forgetting": (3, ())}
MAX_GROUPS = 10
NUM_LENGTH_BINS = 40
# Only tags are rewritten, because the text between them can come from the data.
TAG = re.compile(r"<[^>]*>")
STYLE = re.compile(r' style="([^"]*)"')
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "forgetting",
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.linewidth": 0.6,
}


@dataclass(frozen=True)
class SeriesStyle:
    """Color and dashes (in points) of a variant, the same in every figure."""

    color: str
    css_color: str
    dashes: tuple[float, ...]

    @property
    def css_dashes(self) -> str:
        """Dashes for an SVG line of width 2. matplotlib counts dashes in line widths."""
        return " ".join(f"{2 * length:g}" for length in self.dashes) or "none"


def series_styles(variants: Sequence[str]) -> dict[str, SeriesStyle]:
    """A style per variant. The default variants always look the same."""
    others = [name for name in variants if name not in KNOWN]
    styles = {}
    for name in variants:
        place = others.index(name) if name in others else 0
        number, dashes = KNOWN.get(name) or (4 + place % 4, DASHES[place // 4 % 4])
        styles[name] = SeriesStyle(
            SERIES[number], f"var(--series-{number}, {SERIES[number]})", dashes
        )
    return styles


def curve_figure(
    figure_id: str,
    title: str,
    curves: Mapping[str, tuple[Floats, Floats]],
    styles: Mapping[str, SeriesStyle],
    last_step: float | None = None,
) -> str | None:
    """One line per variant; None if no value is finite.

    If the largest value is more than 100 times the smallest, the scale is logarithmic.

    Args:
        curves: (steps, values) by variant.
        last_step: end of the step axis, to give several figures the same axis.
    """
    drawn = {name: xy for name, xy in curves.items() if np.isfinite(xy[1]).any()}
    if not drawn:
        return None
    figure, axes = _axes(2.4)
    for name, (steps, values) in drawn.items():
        style = styles[name]
        axes.plot(
            steps,
            np.where(np.isfinite(values), values, np.nan),
            color=style.color,
            dashes=style.dashes or (None, None),
            linewidth=1.5,
            marker="o" if len(steps) == 1 else None,
        )
    finite = np.concatenate([values[np.isfinite(values)] for _, values in drawn.values()])
    if finite.min() > 0 and finite.max() > 100 * finite.min():
        axes.set_yscale("log")
        # SVG text is not typeset, so powers of ten are written out.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        title += " (logarithmic)"
    if last_step is not None:
        margin = 0.03 * last_step
        axes.set_xlim(-margin, last_step + margin)
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel("optimizer step", color=MUTED)
    return _svg(figure, figure_id, f"{title} by optimizer step: {', '.join(drawn)}")


def quality_histogram(
    figure_id: str, selections: Sequence[SelectionSummary], styles: Mapping[str, SeriesStyle]
) -> str | None:
    """A histogram of quality with the thresholds; None without tokens.

    Args:
        selections: at least one, all by the same measure.
    """
    edges, counts = _histogram(selections[0])
    if counts.sum() == 0:
        return None
    thresholds = {s.variant: s.threshold for s in selections if s.threshold is not None}
    # The tails hold single tokens, so the axis shows 99.8% of the tokens and all thresholds.
    share = np.cumsum(counts) / counts.sum()
    first = edges[int(np.searchsorted(share, 0.001))]
    last = edges[min(int(np.searchsorted(share, 0.999)) + 1, len(counts))]
    margin = 0.02 * (last - first)
    figure, axes = _axes(2.6)
    axes.stairs(counts, edges, fill=True, color=MUTED, alpha=0.4, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for name, threshold in thresholds.items():
        style = styles[name]
        axes.axvline(
            threshold, color=style.color, dashes=style.dashes or (None, None), linewidth=1.8
        )
    axes.set_xlim(
        min([first, *thresholds.values()]) - margin, max([last, *thresholds.values()]) + margin
    )
    axes.set_title("Response tokens by quality", loc="left", fontsize=9, color=INK)
    axes.set_xlabel(f"{selections[0].quality}: {selections[0].measure.formula}", color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    marks = ", ".join(f"{name} {value:.3f}" for name, value in thresholds.items())
    return _svg(figure, figure_id, f"Histogram of token quality; thresholds: {marks or 'none'}")


def _histogram(selection: SelectionSummary) -> tuple[Floats, npt.NDArray[np.int64]]:
    histogram = selection.histogram
    return np.asarray(histogram.edges), np.asarray(histogram.counts)


def mixture_figure(figure_id: str, selection: SelectionSummary) -> str | None:
    """The fitted components over the histogram of quality; None if there is no fit."""
    fit = selection.mixture_fit
    edges, counts = _histogram(selection)
    if fit is None or counts.sum() == 0:
        return None
    figure, axes = _axes(2.6)
    shares = counts / (counts.sum() * np.diff(edges))
    axes.stairs(shares, edges, fill=True, color=MUTED, alpha=0.4, linewidth=0)
    curve = fit.curve
    axes.plot(curve.quality, curve.bad_density, color=SERIES[3], linewidth=1.5)
    axes.plot(curve.quality, curve.good_density, color=SERIES[2], linewidth=1.5, dashes=(5, 2))
    for edge in (fit.negative_below, fit.positive_from):
        if edge is not None:
            axes.axvline(edge, color=INK, linewidth=0.8)
    axes.set_xlim(curve.quality[0], curve.quality[-1])
    # Only a logarithmic scale shows the few worst tokens.
    axes.set_yscale("log")
    floor = shares[shares > 0].min()
    axes.set_ylim(floor / 2, 2 * shares.max())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    title = f"{selection.variant}: fitted density of quality"
    axes.set_title(shortened(title, 60), loc="left", fontsize=9, color=INK)
    axes.set_xlabel(f"{selection.quality}: {selection.measure.formula}", color=MUTED)
    label = f"Two-component fit to the quality of {selection.variant}; bad: {fit.weight:.1%}"
    return _svg(figure, figure_id, label)


def position_shares(
    figure_id: str, selections: Sequence[SelectionSummary], styles: Mapping[str, SeriesStyle]
) -> str | None:
    """Share of negative tokens by position in the response; None without tokens."""
    drawn = [s for s in selections if s.by_position]
    if not drawn:
        return None
    figure, axes = _axes(2.6)
    for selection in drawn:
        style = styles[selection.variant]
        shares = [100 * c.num_negative / c.num_tokens for c in selection.by_position]
        axes.plot(
            np.arange(len(shares)),
            shares,
            color=style.color,
            dashes=style.dashes or (None, None),
            linewidth=1.5,
            marker="o",
            markersize=3,
        )
    bins = max((s.by_position for s in drawn), key=len)
    axes.set_xticks(range(len(bins)), [f"{bin.start:,}" for bin in bins])
    axes.set_ylim(0, 105)
    axes.set_title("Negative tokens by position (%)", loc="left", fontsize=9, color=INK)
    axes.set_xlabel("first position of the bin", color=MUTED)
    names = ", ".join(s.variant for s in drawn)
    label = f"Share of negative tokens by position in the response: {names}"
    return _svg(figure, figure_id, label)


def length_histogram(figure_id: str, split: SplitLengths, max_length: int) -> str | None:
    """Samples by total length and by response length; None without samples."""
    if not len(split.lengths):
        return None
    longest = int(split.lengths.max())
    # Bins of equal integer width, so that every bin covers equally many lengths.
    width = longest // NUM_LENGTH_BINS + 1
    edges = np.arange(0, longest + width + 1, width)
    figure, axes = _axes(2.6)
    counts, _ = np.histogram(split.lengths, edges)
    axes.stairs(counts, edges, fill=True, color=MUTED, alpha=0.4, linewidth=0)
    counts, _ = np.histogram(split.response_lengths, edges)
    axes.stairs(counts, edges, color=SERIES[1], linewidth=1.5)
    if longest >= max_length:
        axes.axvline(max_length, color=INK, linewidth=0.8)
    axes.set_title("Samples by length", loc="left", fontsize=9, color=INK)
    axes.set_xlabel("tokens", color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    label = f"Histogram of the lengths of {len(split.lengths):,} samples; see the table for numbers"
    return _svg(figure, figure_id, label)


def reliability_diagram(figure_id: str, bins: Sequence[CalibrationBin]) -> str | None:
    """Share of planted tokens by posterior, over the number of tokens; None without tokens."""
    if not bins:
        return None
    said, shares, counts = zip(
        *((each.posterior, each.share_planted, each.num_tokens) for each in bins), strict=True
    )
    figure, (top, bottom) = _stacked_axes(4.0, (3, 1))
    top.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, dashes=(5, 2))
    top.plot(said, shares, color=SERIES[3], linewidth=1.5, marker="o", markersize=4)
    top.set_ylim(-0.03, 1.03)
    top.set_title("Share of planted tokens by posterior", loc="left", fontsize=9, color=INK)
    bottom.bar(said, counts, width=0.04, color=MUTED, alpha=0.6)
    bottom.set_yscale("log")
    # Bars would begin at the smallest count, which would then be invisible.
    bottom.set_ylim(0.5, 3 * max(counts))
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    bottom.set_title("Tokens (logarithmic)", loc="left", fontsize=9, color=INK)
    bottom.set_xlim(-0.03, 1.03)
    bottom.set_xlabel("mean posterior of the bin", color=MUTED)
    label = (
        f"Reliability diagram of {len(bins)} bins with {sum(counts):,.0f} tokens; see the table "
        "for numbers"
    )
    return _svg(figure, figure_id, label)


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
    shown = dict(list(groups.items())[:MAX_GROUPS])
    variants = [name for name in styles if any(name in group for group in shown.values())]
    if not variants:
        return None
    pitch = len(variants) + 0.9
    figure, axes = _axes(0.75 + 0.15 * pitch * len(shown))
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
    middle = (len(variants) - 1) / 2
    axes.set_yticks(
        [place * pitch + middle for place in range(len(shown))],
        [shortened(name, 19) or "all" for name in shown],
    )
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=LINE, linewidth=0.5)
    axes.margins(x=0.1)
    # If all values are 0, the axis has no natural end.
    is_flat = not any(bar.value for group in shown.values() for bar in group.values())
    axes.set_xlim(0, 1 if is_flat else None)
    axes.set_title(shortened(title, 60), loc="left", fontsize=9, color=INK)
    return _svg(figure, figure_id, f"{title}, by variant; see the table for numbers")


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


def _axes(height: float) -> tuple[Figure, Axes]:
    """An empty transparent plot, 4.6 inches wide to fit a phone."""
    figure, (axes,) = _stacked_axes(height, (1,))
    return figure, axes


def _stacked_axes(height: float, shares: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Plots below each other with one horizontal axis; `shares` divide the height."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        stacked = figure.subplots(
            len(shares), squeeze=False, sharex=True, gridspec_kw={"height_ratios": list(shares)}
        )[:, 0].tolist()
    for axes in stacked:
        _clear(axes)
    return figure, stacked


def _clear(axes: Axes) -> None:
    """Transparent, with thin lines and a grid."""
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=MUTED, width=0.6)
    axes.grid(axis="y", color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)


def _svg(figure: Figure, figure_id: str, label: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # A style element in an inline SVG would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    colors = CSS | {color: f"var(--series-{i}, {color})" for i, color in enumerate(SERIES)}

    def fitted(tag: re.Match[str]) -> str:
        found = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{figure_id}-", tag[0])
        found = STYLE.sub(_attributes, found)
        return re.sub("|".join(colors), lambda match: colors[match[0]], found)

    svg = TAG.sub(fitted, svg)
    attributes = f'role="img" aria-label="{html.escape(shortened(label, 300))}"'
    return svg.replace("<svg ", f'<svg {attributes} stroke-linejoin="round" ', 1)


def _attributes(style: re.Match[str]) -> str:
    """A style attribute as presentation attributes, which a content security policy allows. Leaves
    out the font, which is the page's."""
    pairs = (declaration.partition(":") for declaration in style[1].split(";") if declaration)
    declarations = [(name.strip(), value.strip()) for name, _, value in pairs]
    return "".join(f' {name}="{value}"' for name, value in declarations if name != "font-family")
