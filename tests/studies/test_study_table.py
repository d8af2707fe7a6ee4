"""Means and deviations over seeds are those of numpy; published figures stand beside their row."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics

import pytest

from forgetting.errors import InputError
from forgetting.rundir.results import Evaluation, Group
from forgetting.studies import study_table as tables
from forgetting.studies.grid import StudyCell
from forgetting.studies.plot import write_figure
from forgetting.studies.study_table import Published, build_table, by_value
from tests.written_run import metric

RHO = "selection.rho"
VALUES = {"0.5": [0.40, 0.50, 0.60], "0.7": [0.70, 0.72, 0.71]}


def evaluation(variant, value, groups=()):
    metrics = {"average": metric(value, 0.01), "loss": metric(3 * value, None, False)}
    parts = dict.fromkeys(groups, Group(num_items=100, metrics=metrics))
    return Evaluation(variant=variant, task="paper", num_items=100, metrics=metrics, groups=parts)


@pytest.fixture
def results():
    cells = []
    for seed in range(3):
        run = f"tiny-seed-{seed}"
        cells.append((StudyCell(run, "full", "tiny", "full", {}, seed), [evaluation("full", 0.55)]))
        for rho, values in VALUES.items():
            name = f"forgetting-rho-{rho}"
            cell = StudyCell(run, name, "tiny", "forgetting", {RHO: rho}, seed)
            cells.append((cell, [evaluation(name, values[seed], ("BoolQ",))]))
    return cells


@pytest.fixture
def published():
    return [
        Published("tiny", "forgetting", 52.0, {RHO: "0.5"}, False),
        Published("tiny", "forgetting", 69.0, {RHO: "0.7"}, True),
        Published("other", "full", 1.0, {}, False),
    ]


def build(results, **options):
    return build_table(results, [RHO], metric="paper/average", **options)


def test_mean_and_deviation_are_over_seeds(results):
    table = build(results)
    assert [(r.variant, dict(r.levels), r.num_seeds) for r in table.rows] == [
        ("full", {}, 3),
        ("forgetting", {RHO: "0.5"}, 3),
        ("forgetting", {RHO: "0.7"}, 3),
    ]
    for row in table.rows[1:]:
        values = VALUES[row.levels[RHO]]
        cell = table.value(row, table.metric)
        assert cell.value == pytest.approx(statistics.mean(values))
        assert cell.stderr == pytest.approx(statistics.stdev(values))


def test_one_seed_has_no_deviation(results):
    table = build([(cell, found) for cell, found in results if cell.seed == 0])
    assert {table.value(row, table.metric).stderr for row in table.rows} == {None}


def test_difference_is_in_percent_and_marked_beyond_one_deviation(results, published):
    table = build(results, published=published)
    full, low, high = table.rows
    assert full.published is None
    assert table.difference(full) is None
    assert table.difference(low) == pytest.approx(-2.0)
    assert table.difference(high) == pytest.approx(2.0)
    # The deviations are 10 and 1.
    assert not table.is_apart(low)
    assert table.is_apart(high)


def test_best_comes_first_in_the_direction_of_the_metric(results):
    best = by_value(build(results))
    assert [r.levels.get(RHO) for r in best.rows] == ["0.7", None, "0.5"]
    least = by_value(build_table(results, [RHO], metric="paper/loss"))
    assert [r.levels.get(RHO) for r in least.rows] == ["0.5", None, "0.7"]


def test_a_diverged_training_is_counted_and_shown(results):
    lost = [(c, [] if c.levels.get(RHO) == "0.7" else found) for c, found in results]
    diverged = {(c.run, c.variant): "why" for c, found in lost if not found}
    table = build(lost, diverged=diverged)
    row = table.rows[2]
    assert (row.num_seeds, row.num_diverged) == (0, 3)
    assert "diverged | 0 (3 diverged)" in tables.to_markdown(table, "title")
    assert by_value(table).rows[-1] == row


def test_an_unknown_metric_names_those_that_were_measured(results):
    with pytest.raises(InputError, match=r"no metric 'paper/acc'.*paper/average.*paper/loss"):
        build_table(results, [RHO], metric="paper/acc")


def test_markdown_latex_csv_and_json_hold_the_same_figures(results, published):
    table = build(results, published=published)
    markdown = tables.to_markdown(table, "A | title", ["A note."])
    assert "# A \\| title" in markdown
    assert re.search(r"forgetting \| 0.7 \| 71.0 ± 1.0 \|.*\| 3 \| 69.00 \(d\) \| \+2.0", markdown)
    latex = tables.to_latex(table, "100 % & more")
    assert r"forgetting & 0.7 & 71.0 $\pm$ 1.0" in latex
    assert r"100 \% \& more" in latex
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(table))))
    (row,) = [r for r in rows if r[RHO] == "0.7" and (r["metric"], r["group"]) == ("average", "")]
    assert float(row["mean"]) == pytest.approx(0.71)
    assert float(row["deviation"]) == pytest.approx(0.01)
    assert (float(row["published"]), float(row["difference"])) == pytest.approx((69.0, 2.0))
    document = json.loads(tables.to_json(table))
    assert document["metric"] == "paper/average"
    assert document["rows"][2]["mean"] == pytest.approx(0.71)


def test_every_cell_is_kept_before_any_mean(results):
    rows = list(csv.DictReader(io.StringIO(tables.cells_to_csv(results, [RHO]))))
    averages = [r for r in rows if (r["metric"], r["group"], r[RHO]) == ("average", "", "0.5")]
    assert [(r["seed"], float(r["value"])) for r in averages] == [
        ("0", 0.4),
        ("1", 0.5),
        ("2", 0.6),
    ]


@pytest.mark.parametrize("x", [RHO, None])
def test_the_figure_is_the_same_each_time(results, published, tmp_path, x):
    table = build(results, published=published)
    pictures = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        write_figure(table, x, "title", folder)
        pictures.append([(folder / f"figure.{kind}").read_bytes() for kind in ("svg", "png")])
    assert pictures[0] == pictures[1]
    assert b"forgetting" in pictures[0][0]
