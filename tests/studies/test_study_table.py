"""Means and deviations over seeds are those of numpy; published figures stand beside their row."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics

import numpy as np
import pytest
from scipy import stats

from forgetting.errors import InputError
from forgetting.rundir.results import Evaluation, Group
from forgetting.studies import study_files as tables
from forgetting.studies.grid import StudyCell
from forgetting.studies.markup import as_latex
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


def test_the_task_of_a_suite_is_found_by_its_own_metric():
    """Its column is the suite's, because a task is shown once."""
    cell = StudyCell("run", "full", "tiny", "full", {}, 1)
    suite = evaluation("full", 0.5, ("BoolQ",)).model_copy(
        update={"members": {"BoolQ": ["boolq/acc"]}, "metrics": {"average": metric(0.5, 0.01)}}
    )
    task = Evaluation(
        variant="full", task="boolq", num_items=100, metrics={"acc": metric(0.5, 0.01)}
    )
    table = build_table([(cell, [suite, task])], [], metric="boolq/acc")
    assert table.metric.key == "paper/average/BoolQ"
    shown = tables.texts(table, ["variant", "boolq/acc"])
    assert shown.header == ["variant", "paper: average, BoolQ (%)"]


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
    line = tables.to_markdown(table, "title").splitlines()[6]
    assert line == "| forgetting | 0.7 | diverged | diverged | – | 0 (3 diverged) |"
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
    assert r"& 0.7 & 71.0 $\pm$ 1.0" in latex
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


def test_pairs_of_one_seed_show_what_the_spread_hides():
    """The figures of the issue: 5.029 +- 0.229 and 5.032 +- 0.230, and -0.0024 +- 0.0013 paired."""
    rng = np.random.default_rng(0)
    full = 5.03 + rng.normal(0, 0.23, 3)
    own = full - 0.0024 + rng.normal(0, 0.0003, 3)
    results = []
    for seed in range(3):
        for name, values in (("full", full), ("weighted", own)):
            cell = StudyCell(f"run-{seed}", name, "tiny", name, {}, seed)
            found = {"loss": metric(float(values[seed]), 0.1, False)}
            results.append(
                (cell, [Evaluation(variant=name, task="heldout", num_items=9, metrics=found)])
            )
    table = build_table(results, [], metric="heldout/loss")
    baseline, weighted = table.rows
    found = table.paired_difference(weighted, table.metric)
    wanted = stats.ttest_rel(own, full).confidence_interval(0.9)
    assert found.value == pytest.approx(np.mean(own - full))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.num_pairs == 3
    assert found.is_apart
    assert table.paired_difference(baseline, table.metric) is None
    # Value, interval and number are in every form.
    text = f"{table.metric.difference(found)} (3)"
    assert text.startswith("-0.002")
    assert text in tables.to_markdown(table, "t").replace("\\", "")
    in_latex = text.replace("-", "$-$").replace("[", "{[}").replace("]", "{]}")
    assert in_latex in tables.to_latex(table, "t")
    row = list(csv.DictReader(io.StringIO(tables.to_csv(table))))[1]
    names = ("minus_full", "paired_low", "paired_high", "num_pairs")
    assert [float(row[n]) for n in names] == [found.value, found.low, found.high, 3]
    assert json.loads(tables.to_json(table))["rows"][1]["minus_full"]["value"] == found.value


def test_pairs_are_within_a_run_and_seeds_without_a_partner_do_not_count(results):
    lost = [(c, [] if (c.seed, c.name) == (1, "full") else found) for c, found in results]
    table = build(lost)
    found = table.paired_difference(table.rows[1], table.metric)
    differences = [VALUES["0.5"][0] - 0.55, VALUES["0.5"][2] - 0.55]
    assert found.value == pytest.approx(statistics.mean(differences))
    assert found.num_pairs == 2
    # The partner has no other level than the row.
    cells = [
        (StudyCell("run", name, "tiny", kind, {"loss.a": level}, 0), [evaluation(name, value)])
        for name, kind, level, value in (
            ("full-0.25", "full", "0.25", 0.25),
            ("full-0.5", "full", "0.5", 0.5),
            ("own", "own", "0.5", 0.75),
        )
    ]
    table = build_table(cells, ["loss.a"], metric="paper/average")
    assert table.paired_difference(table.rows[2], table.metric).value == 0.25


def test_a_study_without_full_has_no_column_for_it(results):
    table = build([(cell, found) for cell, found in results if cell.name != "full"])
    assert "paired" not in tables.to_markdown(table, "title")


def test_zero_right_answers_are_no_certainty():
    cells = [
        (
            StudyCell(f"run-{seed}", "full", "tiny", "full", {}, seed),
            [
                Evaluation(
                    variant="full", task="few", num_items=5, metrics={"acc": metric(0.0, 0.0)}
                )
            ],
        )
        for seed in range(3)
    ]
    table = build_table(cells, [])
    markdown = tables.to_markdown(table, "title").replace("\\", "")
    assert "| 0.0 ± 0.0 [0.0, 35.1] |" in markdown
    assert "Wilson's 90% interval" in markdown


def test_latex_is_a_small_booktabs_table_with_the_chosen_columns(results, published):
    table = build(results, published=published)
    columns = ["variant", "rho", "paper/loss", "paper/average:paired", "published"]
    lines = tables.to_latex(table, "t", columns).splitlines()
    assert lines[:4] == [
        r"\begin{table}",
        r"\centering",
        r"\small",
        r"\setlength{\tabcolsep}{4pt}",
    ]
    assert r"\begin{tabular}{@{}llrrr@{}}" in lines
    body = lines[lines.index(r"\toprule") :]
    assert body == [
        r"\toprule",
        r"variant & rho & paper: loss & paper: average (\%), minus full, paired (n) & published \\",
        r"\midrule",
        r"full &  & 1.650 $\pm$ 0.000 & -- & -- \\",
        r"\addlinespace",
        r"forgetting & 0.5 & 1.500 $\pm$ 0.300 & $-$5.0 {[}$-$21.9, $+$11.9{]} (3) & 52.00 \\",
        r" & 0.7 & 2.130 $\pm$ 0.030 & $+$16.0 {[}$+$14.3, $+$17.7{]} (3) & 69.00 (d) \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    # Every row has as many cells as the header, and nothing is left to escape.
    assert {line.count("&") for line in body if line.endswith(r"\\")} == {4}
    markdown = tables.to_markdown(table, "t", columns=columns)
    assert markdown.splitlines()[2].count("|") == 6


def test_latex_begins_no_row_with_a_bracket():
    """It would be read as the argument of the line break before it."""
    latex = as_latex(["level", "x"], [["[q]", "-1e-05"], ["b", "+2"]], 1, "50 % of [a]")
    assert r"{[}q{]} & $-$1e-05 \\" in latex
    assert r"b & $+$2 \\" in latex
    assert not re.search(r"^\[", latex, re.MULTILINE)


def test_a_column_that_there_is_not_is_refused(results):
    with pytest.raises(InputError, match=r"no column 'varant'. Did you mean variant\? Metrics are"):
        tables.check_columns(["varant"], [RHO])
    tables.check_columns(["variant", "rho", RHO, "seeds", "a/b", "a/b:paired"], [RHO])
    table = build(results)
    # What is measured is known after the runs.
    with pytest.raises(InputError, match=r"no column 'paper/avrage'.*Did you mean paper/average"):
        tables.texts(table, ["paper/avrage"])
