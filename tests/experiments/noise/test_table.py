"""Means over seeds and the table, from results that are made up."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.known_noise import DetectorVerdict, Negatives
from experiments.noise.cell import Detection, Outcome, TokenGroup
from experiments.noise.design import load_benchmark
from experiments.noise.map import write_figure
from experiments.noise.table import (
    CellResult,
    Corpus,
    Mean,
    column_title,
    columns,
    gather,
    short_texts,
    texts,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from forgetting.studies import DetectionScore

BENCHMARK = load_benchmark()


def accuracy_of(cell, name):
    """A number that is known, for a test to find again."""
    place = {"full": 0.8, "base": 0.0, "forgetting": 0.3}.get(name, 0.5)
    return place + 0.1 * cell.seed - cell.rate / 4


def made_up(cell):
    """What could have come of a cell."""
    auroc = None if cell.rate == 0 else 0.6 + 0.01 * cell.seed
    found = DetectionScore(auroc=auroc, average_precision=None if auroc is None else 0.25)
    kinds = ["all", "answers", *(["answers about new"] if cell.world == "unknown" else [])]
    detection = Detection(
        num_tokens=100,
        num_noisy={"all": 10},
        found={m: dict.fromkeys(kinds, found) for m in ("influence", "base_loss")},
        verdict=DetectorVerdict(
            found=cell.rate > 0,
            true_share=cell.rate / 2,
            share=cell.rate / 4,
            low=cell.rate / 8,
            high=cell.rate,
            marked=0.1,
            precision=0.9,
            recall=0.5,
            calibration_error=0.02,
        ),
        groups={},
    )
    group = TokenGroup(share=0.5, base_loss=2.0, reference_loss=1.0, among_worst={"influence": 0.3})
    detection = detection.model_copy(update={"groups": {"right answers": group}})
    outcomes = {}
    for name in cell.trained:
        accuracy = accuracy_of(cell, name)
        groups = {"all": accuracy, "known": accuracy}
        groups |= {"new": accuracy / 2} if cell.world == "unknown" else {}
        negatives = None
        if name not in ("base", "full"):
            recall = None if cell.rate == 0 else 0.5
            negatives = Negatives(
                share=0.3, share_ignored=0.0, precision=0.1, recall=recall, recall_by_kind={}
            )
        outcomes[name] = Outcome(accuracy=groups, loss=1.0, negatives=negatives)
    return CellResult(cell, detection, outcomes)


@pytest.fixture(scope="module")
def figures():
    return gather([made_up(cell) for cell in BENCHMARK.cells()], list(BENCHMARK.variants))


def test_figures_are_means_and_deviations_over_seeds(figures):
    corpus = Corpus("known", "noisy", 0.2, "all")
    values = [0.3 + 0.1 * seed - 0.05 for seed in (1, 2, 3)]
    mean = figures.mean(corpus, "accuracy", "forgetting")
    assert mean.mean == pytest.approx(np.mean(values))
    assert mean.deviation == pytest.approx(np.std(values, ddof=1))
    assert mean.num_seeds == 3
    auroc = figures.mean(corpus, "AUROC", "influence")
    assert auroc.mean == pytest.approx(0.62)


def test_the_difference_to_full_is_of_the_same_seed(figures):
    for reference in ("noisy", "clean"):
        corpus = Corpus("unknown", reference, 0.1, "all")
        found = figures.mean(corpus, "accuracy - full", "forgetting")
        # Seeds differ much, and the difference not at all.
        assert found.mean == pytest.approx(-0.5)
        assert found.deviation == pytest.approx(0.0, abs=1e-12)


def test_without_noise_both_references_are_one(figures):
    for of in ("full", "forgetting"):
        both = [
            figures.mean(Corpus("known", reference, 0.0, "all"), "accuracy", of)
            for reference in ("noisy", "clean")
        ]
        assert both[0] == both[1]
        assert both[0].num_seeds == 3


def test_the_table_has_a_column_for_every_rate_and_kind(figures):
    header, rows, num_left = texts(figures)
    assert [column_title(*column) for column in columns(figures)] == header[num_left:]
    assert header[num_left:] == [
        *("0 %", "5 %", "10 %", "20 %", "40 %"),
        *("wrong answer 20 %", "swapped response 20 %", "junk phrase 20 %"),
        *("label flip 20 %", "truncated response 20 %", "common error 20 %"),
        "shuffled words 20 %",
    ]
    assert all(len(row) == len(header) for row in rows)
    lines = {tuple(row[:num_left]): row[num_left:] for row in rows}
    assert len(lines) == len(rows)
    # 0.3 + 0.1 * seed, less a quarter of the rate.
    forgetting = lines["known", "noisy", "accuracy", "forgetting", "all"]
    assert forgetting[:2] == ["50.0 ± 10.0", "48.8 ± 10.0"]
    assert lines["known", "noisy", "AUROC", "influence", "all"][:2] == ["–", "0.620 ± 0.010"]
    assert ("known", "noisy", "accuracy", "full", "new") not in lines
    assert ("unknown", "noisy", "accuracy", "full", "new") in lines
    assert ("unknown", "noisy", "AUROC", "influence", "answers about new") in lines
    assert set(lines["known", "noisy", "loss", "base", "right answers"]) == {"2.00 ± 0.00"}


def test_models_stand_in_the_order_of_the_benchmark(figures):
    _, rows, _ = texts(figures)
    order = [r[3] for r in rows if r[:3] == ["known", "noisy", "accuracy"] and r[4] == "all"]
    assert order == ["base", *BENCHMARK.variants]


def test_a_training_that_diverged_is_in_no_mean_but_in_the_table():
    results = []
    for cell in BENCHMARK.cells():
        result = made_up(cell)
        if (cell.world, cell.rate, cell.kind, cell.reference) == ("known", 0.2, "all", "noisy"):
            gone = Outcome(accuracy={}, loss=None, diverged="at step 3")
            names = ["forgetting"] if cell.seed > 1 else []
            outcomes = {**result.outcomes, **dict.fromkeys([*names, "ignoring"], gone)}
            result = replace(result, outcomes=outcomes)
        results.append(result)
    figures = gather(results, list(BENCHMARK.variants))
    corpus = Corpus("known", "noisy", 0.2, "all")
    assert figures.mean(corpus, "accuracy", "forgetting") == Mean(pytest.approx(0.35), None, 1)
    assert figures.mean(corpus, "accuracy", "ignoring") is None
    header, rows, _ = texts(figures)
    place = header.index("20 %")
    lines = {tuple(row[:5]): row[place] for row in rows}
    assert lines["known", "noisy", "accuracy", "forgetting", "all"] == "35.0 (2 diverged)"
    assert lines["known", "noisy", "accuracy", "ignoring", "all"] == "diverged"
    row = next(r for r in _records(figures) if r["of"] == "ignoring" and r["diverged"] == "3")
    assert (row["mean"], row["rate"], row["seeds"]) == ("", "0.2", "0")


def _records(figures):
    return list(csv.DictReader(io.StringIO(to_csv(figures))))


def test_csv_and_json_have_every_mean(figures):
    rows = _records(figures)
    assert len(rows) == len(figures.means)
    for row in rows:
        corpus = Corpus(row["world"], row["reference"], float(row["rate"]), row["noise"])
        mean = figures.mean(corpus, row["figure"], row["of"], row["among"])
        assert float(row["mean"]) == mean.mean
    assert len(json.loads(to_json(figures))["rows"]) == len(rows)


def test_markdown_and_latex_hold_the_same_lines(figures):
    header, rows, _ = texts(figures)
    markdown = to_markdown(figures, "Noise")
    assert sum(line.startswith("| ") for line in markdown.splitlines()) == len(rows) + 1
    latex = to_latex(figures, "Noise")
    assert sum(line.count("&") == len(header) - 1 for line in latex.splitlines()) == len(rows) + 1
    assert r"D\_ref" in latex


def test_the_terminal_has_means_alone(figures):
    header, rows, num_left = short_texts(figures)
    assert header[num_left:] == ["0 %", "5 %", "10 %", "20 %", "40 %"]
    assert len({tuple(row[:num_left]) for row in rows}) == len(rows)
    assert max(len(" ".join(row)) for row in rows) < 75
    assert not any("±" in text for row in rows for text in row)
    lines = {tuple(row[:2]): row[2:] for row in rows}
    assert lines["known", "forgetting"][:2] == ["50", "49"]
    assert lines["known", "influence (AUROC)"][:2] == ["–", "0.62"]


def test_the_map_has_a_text_for_every_cell(figures, tmp_path):
    write_figure(figures, "Noise", tmp_path)
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    svg = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    for world in ("known", "unknown"):
        for reference in ("noisy", "clean"):
            assert f"{world}, D_ref {reference}: accuracy − full, points" in svg
            assert f"{world}, D_ref {reference}: AUROC against all noise" in svg
    # `forgetting` is 50 points below `full` in every corpus: five with a noisy reference and four
    # with a clean one, and that without noise once more, in either world.
    assert svg.count(">-50<") == 2 * (5 + 5)
    assert "unlikelihood-rho-0.95-token" in svg
    assert svg.count("<text") > 300


def test_the_verdict_of_the_detector_is_in_the_table(figures):
    corpus = Corpus("known", "noisy", 0.2, "all")
    expected = {"share of noise": 0.1, "estimated share": 0.05, "interval holds it": 1.0}
    for figure, value in {**expected, "marked": 0.1, "precision of marks": 0.9}.items():
        assert figures.mean(corpus, figure, "detector").mean == pytest.approx(value)
    clean = Corpus("known", "noisy", 0.0, "all")
    assert figures.mean(clean, "estimated share", "detector").mean == 0
    assert figures.mean(clean, "interval holds it", "detector") is None


def test_nothing_measured_is_no_map(tmp_path):
    write_figure(gather([], []), "Noise", tmp_path)
    assert not list(tmp_path.iterdir())
