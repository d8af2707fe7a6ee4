"""Figures: which are drawn, and that they fit into a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from forgetting.report.collect import MixtureFit, read_run
from forgetting.report.figures import (
    curve_figure,
    mixture_figure,
    position_shares,
    quality_histogram,
    result_bars,
    series_styles,
)
from forgetting.report.results import tabulate

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
    run = read_run(run_dir)
    table = tabulate(run.evaluations)
    bars = result_bars("bars", table, series_styles(table.variants))
    assert bars is not None
    ElementTree.fromstring(bars)
    colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", bars))
    assert "currentColor" in colors
    assert all(c == "none" or c == "currentColor" or c.startswith("var(") for c in colors)


def test_hostile_labels_are_text(make_run: Callable[..., Path], hostile: str) -> None:
    run = read_run(make_run(source=hostile, variants=["full", "forgetting"]))
    table = tabulate(run.evaluations)
    bars = result_bars("bars", table, series_styles(table.variants))
    assert bars is not None
    labels = {"".join(e.itertext()).strip() for e in ElementTree.fromstring(bars).iter()}
    assert f"{hostile[:13]}…" in labels
    assert "<script" not in bars


def test_histogram_has_a_line_for_each_threshold(run_dir: Path) -> None:
    selections = list(read_run(run_dir).selections.values())
    styles = series_styles(["ignoring", "forgetting"])
    svg = quality_histogram("quality", selections, styles)
    assert svg is not None
    for selection in selections:
        assert styles[selection.variant].css_color in svg
        assert f"{selection.variant} {selection.threshold:.3f}" in svg


def test_a_threshold_on_another_measure_is_not_drawn(run_dir: Path) -> None:
    first, other = read_run(run_dir).selections.values()
    styles = series_styles(["ignoring", "forgetting"])
    svg = quality_histogram("quality", [first, replace(other, quality="base_loss")], styles)
    assert svg is not None
    assert f"influence: {first.formula}" in svg
    assert styles[first.variant].css_color in svg
    assert styles[other.variant].css_color not in svg


def test_positions_have_a_line_for_each_variant(run_dir: Path) -> None:
    selections = list(read_run(run_dir).selections.values())
    styles = series_styles(["ignoring", "forgetting"])
    svg = position_shares("positions", selections, styles)
    assert svg is not None
    for selection in selections:
        assert styles[selection.variant].css_color in svg
    assert position_shares("positions", [], styles) is None


def test_a_mixture_is_drawn_over_the_histogram(run_dir: Path) -> None:
    selection = read_run(run_dir).selections["forgetting"]
    assert mixture_figure("mixture", selection) is None
    points = np.linspace(-3, 3, 50)
    fit = MixtureFit(0.125, points, np.exp(-((points + 2) ** 2)), np.exp(-(points**2)), -1.5, None)
    svg = mixture_figure("mixture", replace(selection, mixture=fit))
    assert svg is not None
    ElementTree.fromstring(svg)
    assert "bad: 12.5%" in svg
