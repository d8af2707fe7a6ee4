"""Tables of the evidence: figures by hand, and none that was not measured."""

from __future__ import annotations

import re

import numpy as np
import pytest

from experiments.real.cells import Cell
from experiments.real.figures import draw_finding, draw_training
from experiments.real.finding import Found
from experiments.real.table import (
    benchmark_table,
    cost_table,
    curves_table,
    finding_table,
    kinds_table,
    measures_table,
    training_table,
)
from experiments.real.training import Gap, Model, Score, Trained
from forgetting.studies import DetectionScore


def found(rate=0.15, verdict=None, **changes):
    def score(auroc):
        return DetectionScore(auroc=auroc, average_precision=auroc / 2)

    own = {
        "num_records": 10,
        "num_tokens": 100,
        "scores": {
            "detector": {"all": score(0.96), "junk": score(0.9), "negated": score(0.5)},
            "base_loss": {"all": score(0.6), "junk": score(0.7), "negated": score(0.8)},
            "entropy_gap": {"all": score(0.8), "junk": score(0.75), "negated": score(0.7)},
            "IFD": {"all": score(0.7)},
        },
        "planted_auroc": 0.95,
        "left_out": {},
        "seconds": {"prepare": 6.0, "score": 120.0},
    }
    told = {
        "found": True,
        "true_share": rate / 3,
        "share": 0.04,
        "low": 0.02,
        "high": 0.09,
        "marked": 0.03,
        "precision": 0.8,
        "recall": 0.5,
        "calibration_error": 0.01,
    }
    return Found(verdict={**told, **(verdict or {})}, **{**own, **changes})


def trained(gap, tasks=None, losses=()):
    def model(loss, accuracy):
        return Model(loss=loss, accuracy=accuracy, tasks=tasks or {}, losses=list(losses))

    full = model(Gap(mean=1.5), Gap(mean=0.6))
    other = model(
        Gap(mean=1.5 + gap, difference=gap, low=gap - 0.01, high=gap + 0.01),
        Gap(mean=0.62, difference=0.02, low=0.01, high=0.03),
    )
    return Trained(
        num_clean=9,
        models={"full": full, "weighted": other},
        advised="weighted",
        found=True,
        seconds={"train:full": 60.0, "train:weighted": 120.0},
    )


def row(table, *words):
    lines = [line for line in table.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_a_corpus_has_other_scores_next_to_the_detector():
    cells = row(finding_table({Cell("finding", "dolly", 0.15): found()}), "dolly")
    assert cells[1:4] == ["15 %", "5 %", "0.960 / 0.480"]
    assert cells[4:7] == ["0.600 / 0.300", "–", "0.700 / 0.350"]
    assert cells[7:] == ["0.80", "0.50", "4 % (2 % to 9 %)"]


def test_nothing_found_and_nothing_to_find_are_said():
    nothing = found(
        rate=0.0,
        verdict={"found": False, "precision": None, "recall": None},
        scores={"detector": {"all": DetectionScore(auroc=None, average_precision=None)}},
    )
    cells = row(finding_table({Cell("finding", "flan", 0.0): nothing}), "flan")
    assert cells[3] == "–"
    assert cells[7:] == ["–", "–", "nothing found"]


def test_every_measure_is_shown_where_there_is_a_reference():
    cells = {
        Cell("finding", "dolly", 0.15): found(),
        Cell("finding", "flan", 0.15, reference=True): found(),
    }
    table = measures_table(cells)
    assert "dolly" not in table
    assert row(table, "entropy gap")[1:] == ["0.800 / 0.400"]


def test_kinds_are_means_over_cells_without_a_reference():
    cells = {
        Cell("finding", "dolly", 0.15): found(),
        Cell("finding", "dolly", 0.15, reference=True): found(),
        Cell("finding", "flan", 0.3): found(
            scores={
                name: {"junk": DetectionScore(auroc=0.8, average_precision=0.1)}
                for name in ("detector", "base_loss", "entropy_gap")
            }
        ),
    }
    table = kinds_table(cells)
    assert row(table, "junk")[1] == "0.850 (0.80 to 0.90)"
    assert row(table, "junk")[-1] == "2"
    assert row(table, "negated", "never planted")[-1] == "1"


def test_differences_are_means_and_deviations_over_seeds():
    gaps = [-0.01, -0.02, -0.06]
    cells = {Cell("training", "alpaca", 0.2, seed): trained(gap) for seed, gap in enumerate(gaps)}
    cells[Cell("training", "alpaca", 0.4, 1)] = trained(0.5)
    table = training_table(cells)
    expected = f"{np.mean(gaps):+.4f} ± {np.std(gaps, ddof=1):.4f}"
    assert row(table, "20 %", "weighted")[3] == expected
    assert row(table, "20 %", "full")[3] == "–"
    # One seed has no deviation: its interval over samples is shown.
    assert row(table, "40 %", "weighted")[3] == "+0.5000 (+0.4900 to +0.5100)"
    assert row(table, "40 %", "weighted")[5] == "+2.00 (+1.00 to +3.00)"


def test_large_trainings_have_lines_of_their_own():
    cells = {
        Cell("training", "alpaca", 0.2, num_train=1000): trained(-0.01),
        Cell("training", "alpaca", 0.2, num_train=10_000, is_large=True): trained(-0.03),
    }
    table = training_table(cells)
    assert row(table, "20 % of 1,000", "weighted")[3].startswith("-0.0100")
    assert row(table, "20 % of 10,000", "weighted")[3].startswith("-0.0300")


def test_benchmarks_stand_where_they_were_measured():
    with_tasks = trained(0.1, {"boolq": Score(value=0.5, stderr=0.035)})
    cells = {
        Cell("training", "alpaca", 0.2, 1, has_tasks=True): with_tasks,
        Cell("training", "alpaca", 0.2, 2): trained(0.1),
    }
    table = benchmark_table(cells)
    assert row(table, "weighted")[2:4] == ["50.0 ± 3.5", "–"]


def test_curves_show_the_loss_at_both_ends():
    losses = [(step, float(10 - step)) for step in range(10)]
    cell = Cell("paper", "alpaca", 0.0)
    assert row(curves_table({cell: trained(0.1, losses=losses)}), "full")[2:] == ["8.000", "3.000"]
    assert "full" not in curves_table({cell: trained(0.1)})


def test_cost_is_the_mean_over_cells_of_sums_over_variants():
    cells = {
        Cell("finding", "dolly", 0.15): found(),
        Cell("training", "alpaca", 0.2): trained(0.1),
    }
    table = cost_table(cells)
    assert row(table, "finding")[1:] == ["0.1", "2.0", "–"]
    assert row(table, "training")[1:] == ["–", "–", "3.0"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_show_every_cell(tmp_path, seeds):
    draw_finding({Cell("finding", c, 0.15): found() for c in ("dolly", "flan")}, tmp_path)
    text = (tmp_path / "finding.svg").read_text()
    assert "dolly, 15 % noisy" in text
    assert "flan, 15 % noisy" in text
    cells = {Cell("training", "alpaca", 0.2, seed): trained(-0.01) for seed in range(seeds)}
    draw_training(cells, tmp_path)
    text = (tmp_path / "training.svg").read_text()
    assert "weighted" in text
    assert not re.search(r">full<", text)


def test_without_cells_nothing_is_drawn(tmp_path):
    draw_finding({Cell("finding", "dolly", 0.0): found(rate=0.0)}, tmp_path)
    assert not list(tmp_path.iterdir())
