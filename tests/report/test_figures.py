"""Figures: which are drawn, and that they fit into a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from forgetting.method.mixture import Component
from forgetting.report.bars import Interval, intervals, negative_bars, result_bars
from forgetting.report.counts import SplitLengths
from forgetting.report.drawing import fit_titles, series_styles
from forgetting.report.figures import (
    curve_figure,
    length_histogram,
    mixture_figure,
    position_shares,
    quality_histogram,
    reliability_diagram,
)
from forgetting.report.result_table import tabulate
from forgetting.rundir import layout
from forgetting.rundir.findings import CalibrationBin
from forgetting.rundir.reader import RunReader
from forgetting.rundir.selections import MixtureCurve, MixtureFit, MixtureSummary
from tests.written_run import change_selection

STEPS = np.arange(5.0)


def test_every_variant_looks_different_and_the_known_always_the_same() -> None:
    names = ["base", "full", "ignoring", "forgetting", *(f"v{i}" for i in range(12))]
    styles = series_styles(names)
    assert len({(style.color, style.dashes) for style in styles.values()}) == len(names)
    assert series_styles(["forgetting"])["forgetting"] == styles["forgetting"]


def test_curves_without_a_finite_value_are_not_drawn() -> None:
    styles = series_styles(["full", "forgetting"])
    empty = np.full(5, np.nan)
    assert curve_figure("a", "loss", {"full": (STEPS, empty)}, styles) is None
    svg = curve_figure("a", "loss", {"full": (STEPS, empty), "forgetting": (STEPS, STEPS)}, styles)
    assert svg is not None
    assert styles["forgetting"].css_color in svg
    assert styles["full"].css_color not in svg


def test_diverged_losses_are_drawn_on_a_logarithmic_scale() -> None:
    styles = series_styles(["forgetting"])
    values = np.array([1.0, 5.0, 60.0, 400.0, np.inf])
    diverged = curve_figure("a", "loss", {"forgetting": (STEPS, values)}, styles)
    assert diverged is not None
    assert "loss (logarithmic)" in diverged
    assert "$" not in diverged


def test_colors_come_from_the_page(run_dir: Path) -> None:
    run = RunReader(run_dir)
    table = tabulate(run.evaluations)
    bars = result_bars("bars", table, series_styles(table.variants))
    assert bars is not None
    ElementTree.fromstring(bars)
    colors = set(re.findall(r" (?:fill|stroke)=\"([^\"]+)\"", bars))
    assert "currentColor" in colors
    assert all(c == "none" or c == "currentColor" or c.startswith("var(") for c in colors)


def test_hostile_labels_are_text(make_run: Callable[..., Path], hostile: str) -> None:
    run = RunReader(make_run(source=hostile, variants=["full", "forgetting"]))
    table = tabulate(run.evaluations)
    bars = result_bars("bars", table, series_styles(table.variants))
    assert bars is not None
    labels = {"".join(e.itertext()).strip() for e in ElementTree.fromstring(bars).iter()}
    assert f"{hostile[:18]}…" in labels
    assert "<script" not in bars


def test_histogram_has_a_line_for_each_threshold(run_dir: Path) -> None:
    selections = list(RunReader(run_dir).selections.values())
    styles = series_styles(["ignoring", "forgetting"])
    svg = quality_histogram("quality", selections, styles)
    assert svg is not None
    for selection in selections:
        assert styles[selection.variant].css_color in svg
        assert f"{selection.variant} {selection.threshold:.3f}" in svg


def test_no_figure_holds_a_style_that_a_policy_would_refuse(run_dir: Path) -> None:
    run = RunReader(run_dir)
    selections = list(run.selections.values())
    styles = series_styles(["base", "full", "ignoring", "forgetting"])
    lengths = np.array([3, 4, 4, 9])
    drawn = [
        result_bars("a", tabulate(run.evaluations), styles),
        quality_histogram("b", selections, styles),
        position_shares("c", selections, styles),
        length_histogram("d", SplitLengths("train", lengths, lengths - 2, {}), 9),
        curve_figure("e", "loss", {"full": (STEPS, STEPS)}, styles),
    ]
    for svg in drawn:
        assert svg is not None
        tags = list(ElementTree.fromstring(svg).iter())
        assert not [tag for tag in tags if tag.tag.endswith("style") or "style" in tag.attrib]
        assert [tag for tag in tags if tag.get("font-size", "").endswith("px")]


def test_text_that_looks_like_our_own_marks_stays_as_it_is() -> None:
    name = ' id="x" #0072b2'
    styles = series_styles(["forgetting"])
    svg = negative_bars("bars", "share", {name: {"forgetting": (4, 1)}}, styles)
    assert svg is not None
    texts = ["".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter()]
    assert name.strip() in texts
    assert "25.0" in texts


def test_curves_can_share_their_axis() -> None:
    styles = series_styles(["full"])
    short = {"full": (STEPS, STEPS)}

    def ticks(last: float | None) -> list[float]:
        svg = curve_figure("a", "loss", short, styles, last)
        assert svg is not None
        axis = svg[svg.index('id="a-matplotlib.axis_1"') : svg.index('id="a-matplotlib.axis_2"')]
        return [float(x) for x in re.findall(r">([\d.]+)</text>", axis)]

    assert max(ticks(None)) == 4
    assert max(ticks(80.0)) == 80


def test_bins_of_lengths_have_one_width() -> None:
    """Every length is there once: all bins but the first, which has no length 0, are as high."""
    lengths = np.arange(1, 96)
    svg = length_histogram("lengths", SplitLengths("train", lengths, lengths, {}), 500)
    assert svg is not None
    start = svg.index('id="lengths-patch_2"')
    path = re.search(r' d="([^"]+)"', svg[start:])
    assert path
    heights = [float(y) for y in re.findall(r"L \S+ (\S+)", path[1])]
    ground, first, other = sorted(set(heights), reverse=True)
    assert (ground - first) / (ground - other) == pytest.approx(2 / 3, abs=1e-3)
    assert length_histogram("none", SplitLengths("train", lengths[:0], lengths[:0], {}), 9) is None


def test_positions_have_a_line_for_each_variant(run_dir: Path) -> None:
    selections = list(RunReader(run_dir).selections.values())
    styles = series_styles(["ignoring", "forgetting"])
    svg = position_shares("positions", selections, styles)
    assert svg is not None
    for selection in selections:
        assert styles[selection.variant].css_color in svg
    assert position_shares("positions", [], styles) is None


def test_a_mixture_is_drawn_over_the_histogram(run_dir: Path) -> None:
    selection = RunReader(run_dir).selections["forgetting"]
    assert mixture_figure("mixture", selection) is None
    points = np.linspace(-3, 3, 50)
    bad, good = np.exp(-((points + 2) ** 2)).tolist(), np.exp(-(points**2)).tolist()
    curve = MixtureCurve(points.tolist(), bad, good, [0.5] * 50)
    part = Component(0.0, 1.0, 1.0, 2.0)
    mixture = MixtureSummary(MixtureFit(0.125, part, part, -1.5, None, curve), None)
    change_selection(run_dir, mixture=mixture)
    svg = mixture_figure("mixture", RunReader(run_dir).selections["forgetting"])
    assert svg is not None
    ElementTree.fromstring(svg)
    assert "bad: 12.5%" in svg


def test_a_group_named_all_is_not_taken_for_all(run_dir: Path) -> None:
    path = layout.result_file(layout.evaluation_dir(run_dir, "full"), "heldout")
    path.write_text(path.read_text().replace('"fact"', '"all"'))
    table = tabulate(RunReader(run_dir).evaluations)
    svg = result_bars("bars", table, series_styles(table.variants))
    assert svg is not None
    texts = ["".join(e.itertext()) for e in ElementTree.fromstring(svg).findall(".//{*}text")]
    assert texts.count("all") == 2


def test_a_reliability_diagram_has_a_point_and_a_bar_for_each_bin() -> None:
    bins = [
        CalibrationBin(0.1, 0.12, 70_000),
        CalibrationBin(0.5, 0.4, 9),
        CalibrationBin(0.9, 1, 3),
    ]
    svg = reliability_diagram("calibration", bins)
    assert svg is not None
    ElementTree.fromstring(svg)
    assert "Reliability diagram of 3 bins with 70,012 tokens" in svg
    assert len(re.findall(r"<use [^>]*var\(--series-3", svg)) == 3
    bars = re.findall(r'<path d="([^"]+)"[^>]*fill="var\(--muted', svg)
    heights = [np.ptp([float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", bar)]) for bar in bars]
    heights = [height for height in heights if height > 5]
    assert len(heights) == 3
    assert heights == sorted(heights, reverse=True)
    assert reliability_diagram("calibration", []) is None


def panels(rows: int, columns: int, title: str) -> Figure:
    figure = Figure(figsize=(2.4 * columns, 2 * rows), layout="constrained")
    for axes in np.ravel(figure.subplots(rows, columns, squeeze=False)):
        axes.set_title(title, loc="left", fontsize=9)
    return figure


def boxes(figure: Figure) -> list[Bbox]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    return [
        text.get_window_extent(renderer)
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text()
    ]


def overprinted(figure: Figure) -> int:
    found = boxes(figure)
    return sum(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 2)])
def test_titles_of_panels_do_not_overprint(rows: int, columns: int) -> None:
    """Long titles are cut to the room up to the next panel; short ones stay as they are."""
    figure = panels(rows, columns, "a title that is much longer than its panel is wide")
    assert columns == 1 or overprinted(figure)
    fit_titles(figure)
    assert not overprinted(figure)
    assert max(box.x1 for box in boxes(figure)) <= figure.bbox.x1
    assert all(axes.get_title(loc="left").endswith("…") for axes in figure.axes)
    # Without a cut before the layout, panels of no width would be left.
    huge = panels(rows, columns, "a title " * 20)
    fit_titles(huge)
    assert not overprinted(huge)
    assert min(axes.get_position().width for axes in huge.axes) > 0.5 / columns
    short = panels(rows, columns, "short")
    fit_titles(short)
    assert {axes.get_title(loc="left") for axes in short.axes} == {"short"}


def test_differences_are_drawn_from_zero_with_their_intervals() -> None:
    styles = series_styles(["full", "weighted", "forgetting"])
    near = {"weighted": Interval(-0.9, -2.3, 0.5, "-0.9 [-2.3, +0.5]")}
    linear = intervals("a", "loss minus full", {"": near}, styles)
    assert linear is not None
    assert "-0.9 [-2.3, +0.5]" in linear
    assert "logarithmic" not in linear
    # An interval that would be invisible next to the largest difference.
    far = near | {"forgetting": Interval(-86.0, -88.0, -84.0, "-86")}
    both = intervals("a", "loss minus full", {"": far}, styles)
    assert both is not None
    assert "logarithmic on both sides of 0" in both
    assert intervals("a", "loss", {}, styles) is None
