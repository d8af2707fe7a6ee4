"""Figures of a run as inline SVG: curves, histograms, the reliability of the detector.

Input: arrays and a style per variant. Output: see `drawing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from forgetting.report.counts import SplitLengths
from forgetting.report.drawing import (
    INK,
    MUTED,
    SERIES,
    SeriesStyle,
    new_axes,
    set_title,
    stacked_axes,
    to_svg,
)
from forgetting.rundir.findings import CalibrationBin
from forgetting.rundir.selections import SelectionSummary

Floats = npt.NDArray[np.floating]

NUM_LENGTH_BINS = 40


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
    figure, axes = new_axes(2.4)
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
    set_title(axes, title)
    axes.set_xlabel("optimizer step", color=MUTED)
    return to_svg(figure, figure_id, f"{title} by optimizer step: {', '.join(drawn)}")


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
    figure, axes = new_axes(2.6)
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
    set_title(axes, "Response tokens by quality")
    axes.set_xlabel(f"{selections[0].quality}: {selections[0].measure.formula}", color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    marks = ", ".join(f"{name} {value:.3f}" for name, value in thresholds.items())
    return to_svg(figure, figure_id, f"Histogram of token quality; thresholds: {marks or 'none'}")


def _histogram(selection: SelectionSummary) -> tuple[Floats, npt.NDArray[np.int64]]:
    histogram = selection.histogram
    return np.asarray(histogram.edges), np.asarray(histogram.counts)


def mixture_figure(figure_id: str, selection: SelectionSummary) -> str | None:
    """The fitted components over the histogram of quality; None if there is no fit."""
    fit = selection.mixture_fit
    edges, counts = _histogram(selection)
    if fit is None or counts.sum() == 0:
        return None
    figure, axes = new_axes(2.6)
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
    set_title(axes, title)
    axes.set_xlabel(f"{selection.quality}: {selection.measure.formula}", color=MUTED)
    label = f"Two-component fit to the quality of {selection.variant}; bad: {fit.weight:.1%}"
    return to_svg(figure, figure_id, label)


def position_shares(
    figure_id: str, selections: Sequence[SelectionSummary], styles: Mapping[str, SeriesStyle]
) -> str | None:
    """Share of negative tokens by position in the response; None without tokens."""
    drawn = [s for s in selections if s.by_position]
    if not drawn:
        return None
    figure, axes = new_axes(2.6)
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
    set_title(axes, "Negative tokens by position (%)")
    axes.set_xlabel("first position of the bin", color=MUTED)
    names = ", ".join(s.variant for s in drawn)
    label = f"Share of negative tokens by position in the response: {names}"
    return to_svg(figure, figure_id, label)


def length_histogram(figure_id: str, split: SplitLengths, max_length: int) -> str | None:
    """Samples by total length and by response length; None without samples."""
    if not len(split.lengths):
        return None
    longest = int(split.lengths.max())
    # Bins of equal integer width, so that every bin covers equally many lengths.
    width = longest // NUM_LENGTH_BINS + 1
    edges = np.arange(0, longest + width + 1, width)
    figure, axes = new_axes(2.6)
    counts, _ = np.histogram(split.lengths, edges)
    axes.stairs(counts, edges, fill=True, color=MUTED, alpha=0.4, linewidth=0)
    counts, _ = np.histogram(split.response_lengths, edges)
    axes.stairs(counts, edges, color=SERIES[1], linewidth=1.5)
    if longest >= max_length:
        axes.axvline(max_length, color=INK, linewidth=0.8)
    set_title(axes, "Samples by length")
    axes.set_xlabel("tokens", color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    label = f"Histogram of the lengths of {len(split.lengths):,} samples; see the table for numbers"
    return to_svg(figure, figure_id, label)


def reliability_diagram(figure_id: str, bins: Sequence[CalibrationBin]) -> str | None:
    """Share of planted tokens by posterior, over the number of tokens; None without tokens."""
    if not bins:
        return None
    said, shares, counts = zip(
        *((each.posterior, each.share_planted, each.num_tokens) for each in bins), strict=True
    )
    figure, (top, bottom) = stacked_axes(4.0, (3, 1))
    top.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, dashes=(5, 2))
    top.plot(said, shares, color=SERIES[3], linewidth=1.5, marker="o", markersize=4)
    top.set_ylim(-0.03, 1.03)
    set_title(top, "Share of planted tokens by posterior")
    bottom.bar(said, counts, width=0.04, color=MUTED, alpha=0.6)
    bottom.set_yscale("log")
    # Bars would begin at the smallest count, which would then be invisible.
    bottom.set_ylim(0.5, 3 * max(counts))
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    set_title(bottom, "Tokens (logarithmic)")
    bottom.set_xlim(-0.03, 1.03)
    bottom.set_xlabel("mean posterior of the bin", color=MUTED)
    label = (
        f"Reliability diagram of {len(bins)} bins with {sum(counts):,.0f} tokens; see the table "
        "for numbers"
    )
    return to_svg(figure, figure_id, label)
