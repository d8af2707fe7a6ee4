"""The map of the noise benchmark: no text of it overprints another, however few columns it has."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from experiments.noise.map import draw_figure
from experiments.noise.table import ACCURACY, AUROC, FULL, TO_FULL, Corpus, Figures, Mean
from forgetting.studies import ALL_KINDS

TITLE = "Noise benchmark, quick: one seed of small worlds, to show that it runs"


def figures(worlds, references, rates, names):
    means = {}
    for world, reference, rate in itertools.product(worlds, references, rates):
        corpus = Corpus(world, reference, rate, ALL_KINDS)
        means[corpus, ACCURACY, FULL, ALL_KINDS] = Mean(0.5, None, 1)
        for name in names:
            means[corpus, TO_FULL, name, ALL_KINDS] = Mean(-0.1, 0.02, 3)
            means[corpus, AUROC, name, ALL_KINDS] = Mean(0.9, None, 1)
    return Figures(means, {}, [FULL, *names])


def overprinted(figure):
    """Pairs of texts whose boxes overlap, and texts that leave the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    pairs = [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]
    width, height = figure.bbox.width, figure.bbox.height
    outside = [
        text
        for text, box in boxes
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width + 0.5 or box.y1 > height + 0.5
    ]
    assert len(boxes) > 8
    return pairs, outside


@pytest.mark.parametrize("worlds", [["facts"], ["facts", "unknown entities"]])
@pytest.mark.parametrize("rates", [[0.4], [0.0, 0.1, 0.2, 0.4]])
def test_no_text_overprints_another(worlds, rates):
    drawn = draw_figure(figures(worlds, ["noisy", "clean"], rates, ["weighted", "npo"]), TITLE)
    assert overprinted(drawn) == ([], [])


def test_long_names_take_the_room_that_they_need():
    long = ["a variant with a name that is much longer than any of the shipped recipes has"]
    drawn = draw_figure(figures(["facts", "w" * 60], ["noisy"], [0.4], long), "t")
    assert overprinted(drawn) == ([], [])


def test_without_results_there_is_no_map():
    assert draw_figure(Figures({}, {}, []), "t") is None
