"""The table, its bold marks, the sentence and the files."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from scipy import stats

from forgetting.errors import InputError
from forgetting.method.comparison import Difference
from forgetting.report.paired import Paired
from forgetting.report.result_files import to_csv, to_json, to_markdown
from forgetting.report.result_table import Column, ResultsTable, results_table, tabulate
from forgetting.rundir import layout
from forgetting.rundir.results import Evaluation, Group
from tests.written_run import metric, write_recipe


def heldout(
    variant: str, exact: float, *, loss: float = 1.0, stderr: float | None = 0.02
) -> Evaluation:
    metrics = {"loss": metric(loss, stderr, False), "exact_match": metric(exact, stderr)}
    return Evaluation(variant=variant, task="heldout", num_items=100, metrics=metrics)


def task(variant: str, name: str, value: float, stderr: float | None = 0.02) -> Evaluation:
    metrics = {"acc,none": metric(value, stderr)}
    return Evaluation(variant=variant, task=name, num_items=50, metrics=metrics)


def bold(table: ResultsTable, key: str) -> list[str]:
    return [v for v in table.variants if (v, key) in table.cells and table.cells[v, key].best]


@pytest.mark.parametrize(
    ("evaluations", "sentence"),
    [
        (
            [heldout("full", 0.744, stderr=0.017), heldout("forgetting", 0.621, stderr=0.019)],
            "On held-out questions, forgetting is 12.3 points below training on all tokens "
            "(62.1 [53.9, 69.7] versus 74.4 [66.6, 80.9]).",
        ),
        (
            [heldout("full", 0.5), heldout("forgetting", 0.625), heldout("base", 0.9)],
            "On held-out questions, forgetting is 12.5 points above training on all tokens "
            "(62.5 [54.3, 70.0] versus 50.0 [41.9, 58.1]).",
        ),
        (
            [heldout("full", 0.62), heldout("forgetting", 0.63)],
            "On held-out questions, forgetting and training on all tokens do not differ beyond the "
            "standard error (exact match 63.0 [54.8, 70.5] versus 62.0 [53.8, 69.6]).",
        ),
        (
            [heldout("base", 0.1), heldout("full", 0.5), heldout("ignoring", 0.7)],
            "On held-out questions, ignoring is 20.0 points above training on all tokens "
            "(70.0 [62.0, 76.9] versus 50.0 [41.9, 58.1]).",
        ),
        (
            [heldout("base", 0.1), heldout("forgetting", 0.5)],
            "On held-out questions, forgetting is 40.0 points above the base model without "
            "fine-tuning (50.0 [41.9, 58.1] versus 10.0 [6.1, 16.0]).",
        ),
        (
            [heldout("full", 0.0, loss=1.5), heldout("forgetting", 0.001, loss=2.0)],
            "On held-out responses, the loss of forgetting is 0.5 higher than the loss of training "
            "on all tokens, which is worse (2.000 ± 0.020 versus 1.500 ± 0.020).",
        ),
        (
            [heldout("full", 0.0, loss=1.5), heldout("forgetting", 0.0, loss=1.25)],
            "On held-out responses, the loss of forgetting is 0.25 lower than the loss of training "
            "on all tokens, which is better (1.250 ± 0.020 versus 1.500 ± 0.020).",
        ),
        (
            [heldout("full", 0.0, loss=1.5), heldout("forgetting", 0.0, loss=math.inf)],
            "On held-out responses, the loss of forgetting is not a finite number and cannot be "
            "compared.",
        ),
        (
            [heldout("full", 0.7), heldout("forgetting", 0.5, stderr=None)],
            "On held-out questions, forgetting and training on all tokens have exact match 50.0 "
            "[41.9, 58.1] versus 70.0 [62.0, 76.9]. Without standard errors, this may or may not "
            "be a real difference.",
        ),
        (
            [heldout("forgetting", 0.5)],
            "On held-out questions, forgetting has exact match 50.0 [41.9, 58.1]. Nothing "
            "else was evaluated.",
        ),
        (
            [task("full", "boolq", 0.6), task("forgetting", "boolq", 0.7)],
            "On boolq, forgetting is 10.0 points above training on all tokens "
            "(70.0 [58.5, 79.4] versus 60.0 [48.4, 70.6]).",
        ),
        ([], "Nothing has been evaluated yet."),
    ],
)
def test_sentence_says_what_came_out(evaluations: list[Evaluation], sentence: str) -> None:
    assert tabulate(evaluations).sentence == sentence


def test_best_is_marked_only_beyond_the_combined_error() -> None:
    # The combined error of two values with 0.02 each is 0.0283.
    near = [heldout("full", 0.50), heldout("forgetting", 0.528)]
    far = [heldout("full", 0.50), heldout("forgetting", 0.529)]
    assert bold(tabulate(near), "heldout/exact_match") == []
    assert bold(tabulate(far), "heldout/exact_match") == ["forgetting"]


def test_best_is_the_lowest_where_lower_is_better() -> None:
    table = tabulate([heldout("full", 0.5, loss=1.0), heldout("forgetting", 0.5, loss=2.0)])
    assert bold(table, "heldout/loss") == ["full"]


def test_nothing_is_best_without_errors_or_without_rivals() -> None:
    unknown = [heldout("full", 0.1, stderr=None), heldout("forgetting", 0.9)]
    assert bold(tabulate(unknown), "heldout/exact_match") == []
    assert bold(tabulate([heldout("full", 0.9)]), "heldout/exact_match") == []


def test_variants_are_in_the_order_of_the_method_then_by_name() -> None:
    names = ["zeta", "forgetting", "alpha", "ignoring", "base", "full"]
    table = tabulate([heldout(name, 0.5) for name in names])
    assert table.variants == ["base", "full", "ignoring", "forgetting", "alpha", "zeta"]


def test_heldout_comes_first_with_its_groups_then_tasks(run_dir: Path) -> None:
    keys = [column.key for column in results_table(run_dir).columns]
    assert keys == [
        "heldout/exact_match",
        "heldout/exact_match/addition",
        "heldout/exact_match/fact",
        "heldout/exact_match/world",
        "heldout/loss",
        "heldout/perplexity",
        "boolq/acc,none",
    ]


def test_text_of_a_missing_cell_is_a_dash() -> None:
    table = tabulate([heldout("full", 0.5), task("forgetting", "boolq", 0.5)])
    assert [table.text("full", column) for column in table.columns] == [
        "50.0 [41.9, 58.1]",
        "1.000 ± 0.020",
        "–",
    ]


def test_a_metric_named_like_a_share_but_above_one_is_not_percent() -> None:
    (column,) = tabulate([task("full", "counts", 12.5), task("base", "counts", 0.5)]).columns
    assert not column.percent


def test_files_hold_every_cell(run_dir: Path) -> None:
    table = results_table(run_dir)
    results = json.loads(to_json(table))["results"]
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(results) == len(rows) == len(table.cells) == 4 * 7
    for result, row in zip(results, rows, strict=True):
        assert (result["variant"], result["task"]) == (row["variant"], row["task"])
        assert result["value"] == float(row["value"])
    lines = to_markdown(table).splitlines()
    rows_of = [line for line in lines if line.startswith("| ")]
    # Below the results: header, one row per variant but `full`, and the numbers of pairs.
    assert len(rows_of) == 1 + len(table.variants) + 1 + (len(table.variants) - 1) + 1


def test_json_is_valid_where_a_result_is_not_finite() -> None:
    table = tabulate([heldout("forgetting", 0.5, loss=math.inf)])
    values = json.loads(to_json(table), parse_constant=pytest.fail)["results"]
    assert [entry["value"] for entry in values] == [0.5, None]


def test_markdown_shows_hostile_names_as_text(hostile: str) -> None:
    text = to_markdown(tabulate([heldout(hostile + "|x", 0.5)]))
    assert "<script" not in text.replace("\\<", "")
    assert "\\|x" in text
    assert "\u202e" not in text


def test_variant_that_the_recipe_dropped_is_left_out(run_dir: Path) -> None:
    write_recipe(run_dir, {"full": {}})
    assert results_table(run_dir).variants == ["base", "full"]


def test_folder_without_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        results_table(tmp_path)


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"task": "heldout", "num_items": 1}', '{"task": 1}']
)
def test_damaged_result_is_refused_by_its_path(run_dir: Path, damage: str) -> None:
    path = layout.result_file(layout.evaluation_dir(run_dir, "full"), "heldout")
    path.write_text(damage)
    with pytest.raises(InputError, match=r"full/heldout\.json cannot be read"):
        results_table(run_dir)


def test_a_suite_shows_its_average_its_members_and_that_it_is_local() -> None:
    average = {"average": metric(0.25, 0.02)}
    groups = {name: Group(num_items=20, metrics=average) for name in ("TruthfulQA", "BoolQ")}
    overall = {"num_items": 40, "metrics": average}
    suite = Evaluation(variant="full", task="paper", **overall, groups=groups, local=True)
    table = tabulate([suite])
    assert [(c.task_title, c.title) for c in table.columns] == [
        ("paper (local build)", "average"),
        ("paper (local build)", "average, TruthfulQA"),
        ("paper (local build)", "average, BoolQ"),
    ]
    assert table.text("full", table.columns[0]) == "25.0 ± 2.0"


def test_a_suites_only_task_is_not_shown_twice() -> None:
    """But the other metrics of a member, and the tasks of a mean over several, are shown."""
    average = {"average": metric(0.25, 0.02)}
    groups = {name: Group(num_items=20, metrics=average) for name in ("A", "B")}
    suite = Evaluation(
        variant="full",
        task="paper",
        num_items=40,
        metrics=average,
        groups=groups,
        members={"A": ["a/acc"], "B": ["b1/acc", "b2/acc"]},
    )
    single = {"acc": metric(0.25, 0.02), "acc_norm": metric(0.5, 0.02)}
    tasks = [
        Evaluation(variant="full", task=name, num_items=20, metrics=single)
        for name in ("a", "b1", "b2")
    ]
    assert [column.key for column in tabulate([suite, *tasks]).columns] == [
        "a/acc_norm",
        *(f"{task}/{name}" for task in ("b1", "b2") for name in ("acc", "acc_norm")),
        *("paper/average", "paper/average/A", "paper/average/B"),
    ]


def test_zero_of_five_is_no_certainty() -> None:
    """The interval is scipy's; the standard error of lm-eval is 0."""
    counted = {"acc": metric(0.0, 0.0), "loss": metric(1.0, 0.5, False), "f1": metric(0.0, 0.0)}
    few = Evaluation(variant="full", task="few", num_items=5, metrics=counted)
    table = tabulate([few])
    wanted = stats.binomtest(0, 5).proportion_ci(0.9, method="wilson")
    accuracy, loss, f1 = table.columns
    assert table.text("full", accuracy) == f"0.0 [0.0, {100 * wanted.high:.1f}]"
    assert table.short_text("full", accuracy) == table.text("full", accuracy)
    assert table.text("full", loss) == "1.000 ± 0.500"
    # Not a share of items that are right or wrong.
    assert table.text("full", f1) == "0.0 ± 0.0"
    (row, *_) = csv.DictReader(io.StringIO(to_csv(table)))
    assert float(row["high"]) == pytest.approx(wanted.high)


@pytest.mark.parametrize(
    ("percent", "difference", "text"),
    [
        (True, Difference(-0.009, -0.019, 0.001, 1000), "-0.9 [-1.9, +0.1]"),
        (True, Difference(-0.0024, -0.0037, -0.0011, 3), "-0.24 [-0.37, -0.11]"),
        (False, Difference(-0.0024, -0.0037, -0.0011, 3), "-0.0024 [-0.0037, -0.0011]"),
        (False, Difference(12.0, -5.0, 29.0, 9), "+12 [-5, +29]"),
        (False, Difference(-0.0024, math.nan, math.nan, 1), "-0.0024"),
        (False, Difference(0.0, 0.0, 0.0, 5), "+0.000 [+0.000, +0.000]"),
    ],
)
def test_a_difference_has_two_digits_of_its_uncertainty(
    percent: bool, difference: Difference, text: str
) -> None:
    column = Column("heldout", "exact_match" if percent else "loss", None, 9, percent, percent)
    assert column.difference(difference) == text


def test_a_paired_difference_decides_in_the_sentence_and_is_in_every_file() -> None:
    """The standard errors alone would call 63 against 62 no difference."""
    evaluations = [heldout("full", 0.62), heldout("forgetting", 0.63)]
    found = Difference(0.01, 0.004, 0.016, 100)
    paired = Paired("full", {("forgetting", "heldout/exact_match"): found})
    table = tabulate(evaluations, None, paired)
    assert "forgetting is 1.0 points above training on all tokens" in table.sentence
    assert "paired difference +1.00 [+0.40, +1.60]" in table.sentence
    markdown = to_markdown(table)
    assert "| minus full, paired | held-out: exact match |" in markdown
    assert "| forgetting | +1.00 \\[" not in markdown
    assert "| forgetting | +1.00 [+0.40, +1.60] |" in markdown
    assert "| n | 100 |" in markdown
    row = next(
        row
        for row in csv.DictReader(io.StringIO(to_csv(table)))
        if (row["variant"], row["metric"]) == ("forgetting", "exact_match")
    )
    names = ("difference", "difference_low", "difference_high", "num_pairs")
    assert row["minus"] == "full"
    assert [float(row[name]) for name in names] == [0.01, 0.004, 0.016, 100]
    entry = next(e for e in json.loads(to_json(table))["results"] if e["difference"] is not None)
    assert entry["difference"] == {
        "minus": "full",
        "value": 0.01,
        "low": 0.004,
        "high": 0.016,
        "num_pairs": 100,
    }
    unclear = Paired("full", {("forgetting", "heldout/exact_match"): Difference(0.3, -0.1, 1, 9)})
    sentence = tabulate([heldout("full", 0.4), heldout("forgetting", 0.7)], None, unclear).sentence
    assert "do not differ beyond chance" in sentence


def test_the_sentence_is_decided_by_pairs_whichever_side_is_the_baseline() -> None:
    evaluations = [
        heldout("base", 0.0, loss=7.886, stderr=0.259),
        heldout("full", 0.0, loss=7.682, stderr=0.245),
        heldout("weighted", 0.0, loss=7.682, stderr=0.245),
    ]
    gap = Difference(0.204, 0.178, 0.231, 90)
    same = {"weighted": "full"}
    paired = Paired("full", {("base", "heldout/loss"): gap})
    assert tabulate(evaluations, None, paired, same).sentence == (
        "On held-out responses, the loss of training on all tokens is 0.204 lower than the loss of "
        "the base model without fine-tuning, which is better (7.682 ± 0.245 versus 7.886 ± 0.259; "
        "paired difference -0.204 [-0.231, -0.178]). weighted is the same model as full."
    )
    few = Paired("full", {("base", "heldout/loss"): Difference(0.204, math.nan, math.nan, 1)})
    for unpaired in (few, None):
        sentence = tabulate(evaluations, None, unpaired, same).sentence
        assert "do not differ beyond the standard error" in sentence


def test_a_model_is_compared_with_the_one_it_was_paired_with() -> None:
    # The order of names would compare `forgetting` with `ignoring`, which was not paired with it.
    evaluations = [heldout("forgetting", 0.5), heldout("ignoring", 0.5), heldout("mine", 0.49)]
    found = Difference(0.01, 0.004, 0.016, 100)
    paired = Paired("mine", {("forgetting", "heldout/exact_match"): found})
    sentence = tabulate(evaluations, None, paired).sentence
    assert "forgetting is 1.0 points above mine" in sentence
