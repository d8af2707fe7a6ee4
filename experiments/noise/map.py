"""The map of the noise benchmark, as SVG and PNG: what is found, and where it helps or hurts.

In: the means of the table. Out: two files of one picture. The upper half shows the accuracy of each
model minus that of training on all tokens, the lower half the AUROC of each measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.noise.design import BASE
from experiments.noise.table import (
    ACCURACY,
    AUROC,
    FULL,
    TO_FULL,
    Corpus,
    Figures,
    column_title,
    columns,
)
from forgetting.report.drawing import SETTINGS
from forgetting.studies import ALL_KINDS, DIVERGED

# Distinct under all common forms of color blindness: red is worse, blue is better.
COLORS = matplotlib.colormaps["RdBu"]
WORST_DIFFERENCE = 0.8
"""Difference in accuracy at which the color scale ends."""
SUBTITLE = (
    "means over seeds; blue: better than full, or than chance; red: worse; columns: noisy records"
)
GAP = 0.3
"""Gap between the columns of all kinds of noise and those of one kind, in columns."""
CELL_WIDTH, CELL_HEIGHT = 0.5, 0.21
"""In inches."""
TITLE_SIZE, NAME_SIZE, SUPTITLE_SIZE = 8, 7, 9
"""Font sizes in points."""
PAD = 0.3
"""Room next to a text, in inches."""


@dataclass(frozen=True)
class _Panel:
    world: str
    reference: str
    figure: str
    rows: tuple[str, ...]


def write_figure(figures: Figures, title: str, folder: Path) -> None:
    """Write `figure.svg` and `figure.png`, or nothing if nothing was measured."""
    figure = draw_figure(figures, title)
    if figure is None:
        return
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(folder / "figure.svg", metadata={"Date": None})
        figure.savefig(folder / "figure.png", dpi=160, metadata={"Software": None})


def draw_figure(figures: Figures, title: str) -> Figure | None:
    """The map; None if nothing was measured. It is as wide as its titles need, because titles take
    no part in the layout and would overprint each other."""
    panels = _panels(figures)
    if not panels:
        return None
    worlds = list(dict.fromkeys(panel.world for panel in panels))
    by_world = [[panel for panel in panels if panel.world == world] for world in worlds]
    heights = [len(panel.rows) for panel in by_world[0]]
    places = _places(columns(figures))
    width = max(places.values()) + 1
    with matplotlib.rc_context(SETTINGS):
        whole = f"{title}\n{SUBTITLE}"
        titles = [_title(panel) for panel in panels]
        names = [name for panel in panels for name in panel.rows]
        panel_width = max(CELL_WIDTH * width, *_widths(titles, TITLE_SIZE)) + PAD
        size = (
            max(
                max(_widths(names, NAME_SIZE)) + 2 * PAD + len(worlds) * panel_width,
                max(_widths([whole], SUPTITLE_SIZE)) + PAD,
            ),
            1.3 + sum(CELL_HEIGHT * height + 0.75 for height in heights),
        )
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        grid = figure.subplots(
            len(heights),
            len(worlds),
            squeeze=False,
            gridspec_kw={"height_ratios": [height + 1.5 for height in heights]},
        )
        for place, of_world in enumerate(by_world):
            for row, panel in enumerate(of_world):
                _draw(grid[row][place], panel, figures, places, shows_names=place == 0)
        figure.suptitle(whole, fontsize=SUPTITLE_SIZE)
    return figure


def _widths(texts: Sequence[str], size: float) -> list[float]:
    """Widths of texts in inches, as matplotlib sets them."""
    ground = Figure()
    renderer = FigureCanvasAgg(ground).get_renderer()
    drawn = [ground.text(0, 0, text, fontsize=size) for text in texts]
    return [text.get_window_extent(renderer).width / ground.dpi for text in drawn]


def _title(panel: _Panel) -> str:
    what = "accuracy − full, points" if panel.figure == TO_FULL else "AUROC against all noise"
    return f"{panel.world}, D_ref {panel.reference}: {what}"


def _panels(figures: Figures) -> list[_Panel]:
    """The panels of each world, the same for all, so that they line up."""
    means = figures.means
    worlds = list(dict.fromkeys(key[0].world for key in means))
    references = sorted({key[0].reference for key in means}, key=lambda name: name != "noisy")
    panels = []
    for world in worlds:
        for figure in (TO_FULL, AUROC):
            for reference in references:
                members = [
                    key
                    for key in means
                    if key[0].reference == reference and key[1] == figure and key[3] == ALL_KINDS
                ]
                # What is measured only without noise does not depend on the reference.
                found = {key[2] for key in members if reference == "noisy" or key[0].rate > 0}
                rows = [name for name in figures.names if name in found and name != BASE]
                names = (FULL, *rows) if figure == TO_FULL and rows else tuple(rows)
                if names:
                    panels.append(_Panel(world, reference, figure, names))
    return panels


def _places(shown: list[tuple[float, str]]) -> dict[tuple[float, str], float]:
    """Left edge of each column, with a gap between all kinds of noise and single kinds."""
    return {column: place + GAP * (column[1] != ALL_KINDS) for place, column in enumerate(shown)}


def _draw(
    axes: Axes,
    panel: _Panel,
    figures: Figures,
    places: dict[tuple[float, str], float],
    *,
    shows_names: bool,
) -> None:
    axes.set_xlim(0, max(places.values()) + 1)
    axes.set_ylim(len(panel.rows), 0)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    drawn = set()
    for row, of in enumerate(panel.rows):
        for column, place in places.items():
            corpus = Corpus(panel.world, panel.reference, *column)
            text, color = _cell(figures, panel.figure, corpus, of)
            if text is None:
                continue
            drawn.add(column)
            box = Rectangle((place, row), 1, 1, facecolor=color, edgecolor="white", linewidth=0.8)
            axes.add_patch(box)
            ink = "white" if color is not None and _is_dark(color) else "black"
            axes.text(
                place + 0.5, row + 0.52, text, ha="center", va="center", fontsize=6.5, color=ink
            )
    titles = {column: column_title(*column) for column in places if column in drawn}
    axes.set_xticks(
        [places[column] + 0.5 for column in titles],
        [title.replace(" ", "\n", title.count(" ") - 1) for title in titles.values()],
        fontsize=6.5,
    )
    axes.set_yticks(
        [row + 0.5 for row in range(len(panel.rows))],
        list(panel.rows) if shows_names else [""] * len(panel.rows),
        fontsize=NAME_SIZE,
    )
    axes.set_title(_title(panel), loc="left", fontsize=TITLE_SIZE)


def _cell(
    figures: Figures, figure: str, corpus: Corpus, of: str
) -> tuple[str | None, tuple[float, float, float, float] | None]:
    """Text and color; the accuracy of training on all tokens is gray."""
    if figure == TO_FULL and of == FULL:
        # It does not depend on the reference model, and is trained with the first.
        mean = figures.mean(replace(corpus, reference="noisy"), ACCURACY, FULL)
        if corpus.reference != "noisy" and corpus.kind != ALL_KINDS:
            mean = None
        return (None if mean is None else f"{100 * mean.mean:.0f} %"), (0.92, 0.92, 0.92, 1.0)
    mean = figures.mean(corpus, figure, of)
    if mean is None:
        return (DIVERGED if figures.num_diverged.get((corpus, of)) else None), (1.0, 1.0, 1.0, 1.0)
    if figure == AUROC:
        return f"{mean.mean:.2f}", _shade((mean.mean - 0.5) / 0.5)
    return f"{100 * mean.mean:+.0f}", _shade(mean.mean / WORST_DIFFERENCE)


def _shade(share: float) -> tuple[float, float, float, float]:
    # Small differences matter, and would all look white.
    bent = math.copysign(math.sqrt(min(abs(share), 1.0)), share)
    red, green, blue, alpha = COLORS(0.5 + 0.45 * bent)
    return float(red), float(green), float(blue), float(alpha)


def _is_dark(color: tuple[float, float, float, float]) -> bool:
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 0.5
