"""The ground of every figure: panels, styles of variants, titles that fit, and SVG for a page.

Input: a figure of matplotlib. Output: SVG that takes its colors from the page's CSS (with
fallbacks), contains no style that a content security policy would block, has unique ids, and is
reproducible byte for byte. Knows nothing of what is drawn.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from forgetting.escaping import shortened

# Drawn in these colors, which are then replaced by the page's CSS variables.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
CSS = {INK: "currentColor", MUTED: "var(--muted, #6b6f76)", LINE: "var(--line, #c9ccd1)"}
# Okabe and Ito's palette, distinguishable with all common forms of color blindness.
SERIES = ("#7f858d", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#a07d00", "#56b4e9", "#6a4c93")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
KNOWN = {"base": (0, ()), "full": (1, (5, 2)), "ignoring": (2, (1.5, 1.5)), "forgetting": (3, ())}
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


def new_axes(height: float) -> tuple[Figure, Axes]:
    """An empty transparent plot, 4.6 inches wide to fit a phone."""
    figure, (axes,) = stacked_axes(height, (1,))
    return figure, axes


def stacked_axes(height: float, shares: Sequence[float]) -> tuple[Figure, list[Axes]]:
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


def set_title(axes: Axes, title: str) -> None:
    """A title above the left end of the plot. `fit_titles` cuts it to the figure."""
    axes.set_title(shortened(title, 200), loc="left", fontsize=9, color=INK)


def fit_titles(figure: Figure) -> None:
    """Cut the left titles of panels that would leave the figure or reach into the next panel.

    The layout of matplotlib knows the height of titles, but not where they end.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    titles = [_left_title(axes) for axes in figure.axes]
    for axes, title in zip(figure.axes, titles, strict=True):
        # A title of twice this width would leave its panel no room.
        spec = axes.get_subplotspec()
        _cut(title, renderer, figure.bbox.width / (spec.get_gridspec().ncols if spec else 1))
    figure.draw_without_rendering()
    panels = [axes.get_window_extent(renderer) for axes in figure.axes]
    for panel, title in zip(panels, titles, strict=True):
        rights = [p.x0 for p in panels if p.x0 > panel.x1 and p.y0 < panel.y1 and panel.y0 < p.y1]
        _cut(title, renderer, min([figure.bbox.x1, *rights]) - 2 - panel.x0)
    # The layout is done, and takes a tenth of a second.
    figure.set_layout_engine("none")


def _left_title(axes: Axes) -> Text:
    text = axes.get_title(loc="left")
    return next(each for each in axes.findobj(Text) if each.get_text() == text)


def _cut(title: Text, renderer: RendererBase, width: float) -> None:
    """Cut a text to a width in pixels."""
    text = title.get_text()
    while text and title.get_window_extent(renderer).width > width:
        text = text[:-1].rstrip()
        title.set_text(f"{text}…")


def to_svg(figure: Figure, figure_id: str, label: str) -> str:
    """The figure as SVG for a page.

    Args:
        figure: finished, but for titles that do not fit.
        figure_id: begins the ids within it; unique in the page.
        label: says what the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        fit_titles(figure)
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
