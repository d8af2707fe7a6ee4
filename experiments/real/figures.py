"""Two figures: how well noise is found, and what training on it gives.

In: results of cells. Out: SVG and PNG files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from experiments.real.cells import CORPORA, Cell
from experiments.real.finding import IFD, Found
from experiments.real.training import FULL, Trained
from forgetting.method.measures import DETECTOR
from forgetting.report.drawing import SETTINGS
from forgetting.rundir import layout
from forgetting.studies import ALL_KINDS

# Distinct under all common forms of color blindness (Okabe and Ito).
SHOWN = {
    DETECTOR: ("detector", "#0072B2", "o"),
    "entropy_gap": ("entropy gap", "#009E73", "s"),
    "base_loss": ("base loss", "#E69F00", "^"),
    IFD: ("IFD", "#CC79A7", "D"),
}

TICKS = (-0.02, 0, 0.02, 0.1, 0.5)


def draw_finding(found: Mapping[Cell, Found], folder: Path) -> None:
    """Average precision by corpus and rate, next to the share of noise, which is chance."""
    cells = sorted(
        (cell for cell in found if cell.corpus in CORPORA and cell.rate and not cell.reference),
        key=lambda cell: (CORPORA.index(cell.corpus), cell.rate),
    )
    if not cells:
        return
    with matplotlib.rc_context(SETTINGS):
        figure, axes = _figure(1.6 + 0.32 * len(cells))
        places = np.arange(len(cells))[::-1]
        for name, (title, color, marker) in SHOWN.items():
            values = [
                score.average_precision
                if (score := found[cell].scores.get(name, {}).get(ALL_KINDS)) is not None
                else None
                for cell in cells
            ]
            known = [(v, p) for v, p in zip(values, places, strict=True) if v is not None]
            if known:
                axes.plot(*zip(*known, strict=True), marker, color=color, label=title)
        chance = [found[cell].verdict.true_share for cell in cells]
        axes.plot(chance, places, "|", color="black", markersize=9, label="chance")
        axes.set_yticks(places, [f"{c.corpus}, {100 * c.rate:.0f} % noisy" for c in cells])
        axes.set_xlim(0, 1)
        axes.set_xlabel("average precision of bad tokens")
        axes.grid(axis="x", color="0.9")
        figure.legend(loc="outside upper center", ncols=len(SHOWN) + 1, frameon=False)
        _save(figure, folder / "finding")


def draw_training(trained: Mapping[Cell, Trained], folder: Path) -> None:
    """Loss on clean held-out responses minus that of `full`, one dot a seed, by rate and model."""
    rates = sorted({cell.rate for cell in trained})
    names = [
        name for name in next(iter(trained.values())).models if name not in (FULL, layout.BASE)
    ]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.5, 1.0 + 0.28 * len(names)), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(rates), squeeze=False, sharex=True, sharey=True)[0]
        for axes, rate in zip(panels, rates, strict=True):
            places = np.arange(len(names))[::-1]
            for place, name in zip(places, names, strict=True):
                gaps = [r.models[name].loss for c, r in trained.items() if c.rate == rate]
                for gap in gaps:
                    if gap.difference is None:
                        continue
                    if gap.low is not None and gap.high is not None:
                        axes.plot([gap.low, gap.high], [place, place], color="#0072B2", alpha=0.35)
                    axes.plot(gap.difference, place, "o", color="#0072B2", markersize=4)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_yticks(places, names)
            axes.set_title(f"{100 * rate:.0f} % noisy records", fontsize=9)
            axes.set_xscale("symlog", linthresh=0.02)
            axes.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS], minor=False)
            axes.set_xticks([], minor=True)
            axes.tick_params(axis="x", labelsize=7)
            axes.grid(axis="x", color="0.9")
        figure.supxlabel("clean held-out loss minus full, nats per token (left is better)")
        _save(figure, folder / "training")


def _figure(height: float) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(7.5, height), layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
