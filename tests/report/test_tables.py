"""Tables: what is read and what a CSV holds are the same."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from forgetting.report import tables
from forgetting.report.counts import Negatives, NegativeToken, Share, SplitLengths
from forgetting.report.result_rows import difference_rows, results_rows
from forgetting.report.result_table import results_table
from forgetting.rundir.reader import RunReader
from forgetting.rundir.stats import StageCost

GIB = 2**30


def rows_of(table: tables.Table) -> list[dict[str, str]]:
    link = table.csv_link
    assert link.startswith("data:text/csv;charset=utf-8,")
    return list(csv.DictReader(io.StringIO(unquote(link.partition(",")[2]))))


def test_results_hold_values_and_errors_whole(run_dir: Path) -> None:
    results = results_table(run_dir)
    rows = rows_of(results_rows(results))
    assert len(rows) == len(results.columns)
    for row, column in zip(rows, results.columns, strict=True):
        assert (row["task"], row["metric"], row["group"]) == (
            column.task,
            column.metric,
            column.group or "",
        )
        for variant in results.variants:
            cell = results.cell(variant, column)
            assert cell is not None
            assert float(row[variant]) == cell.value
            assert float(row[f"{variant}: standard error"]) == cell.stderr


def test_shares_of_negatives_by_source(run_dir: Path) -> None:
    selections = list(RunReader(run_dir).selections.values())
    shares = tables.shares_by_source(selections)
    table = tables.negative_shares("by-source", "By source", "source", shares)
    for row, cells in zip(rows_of(table), table.rows, strict=True):
        for place, selection in enumerate(selections, 2):
            counts = next(c for c in selection.by_source if c.source == row["source"])
            share = counts.num_negative / counts.num_tokens
            assert int(row[f"{selection.variant}: negative"]) == counts.num_negative
            assert float(row[f"{selection.variant}: share"]) == share
            assert cells[place].text == f"{100 * share:.1f}%"


def test_a_group_without_tokens_has_no_share() -> None:
    table = tables.negative_shares("x", "x", "type", {"a": {"one": (0, 0), "two": (4, 1)}})
    assert [cell.text for cell in table.rows[0]] == ["a", "4", "–", "25.0%"]
    assert rows_of(table)[0]["one: share"] == ""


def test_tokens_show_their_spaces() -> None:
    tokens = [NegativeToken(7, " a\n", Share(8, 2)), NegativeToken(9, "", Share(1, 1))]
    table = tables.token_rows("own", Negatives({}, tokens))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["␣a↵", "7", "8", "2", "25.0%"],
        ["(no text)", "9", "1", "1", "100.0%"],
    ]


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@x", "=cmd|' /C calc'!A0", "a\u202eb"])
def test_nothing_in_a_csv_is_a_formula(name: str) -> None:
    table = tables.negative_shares("x", "x", "source", {name: {"own": (2, 1)}})
    (row,) = rows_of(table)
    assert row["source"][0] not in "=+-@"
    assert name.lstrip("=+-@").replace("\u202e", "⟨U+202E⟩") in row["source"]


def test_lengths_are_quantiles_of_whole_samples() -> None:
    lengths = np.arange(1, 101)[::-1]
    (row,) = rows_of(tables.length_rows([SplitLengths("train", lengths, lengths // 2, {})]))
    assert list(row.values()) == ["train", "50", "95", "100", "25", "47", "50"]
    assert tables.length_rows([SplitLengths("heldout", lengths[:0], lengths[:0], {})]).rows == []


def test_costs_with_and_without_accelerators() -> None:
    stages = [
        StageCost("score", 90.0, 1000, 3 * GIB, None),
        StageCost("train:own", 30.0, None, GIB, None),
    ]
    table = tables.cost_rows(stages)
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["score", "1 min 30 s", "1,000", "3.00 GiB"],
        ["train:own", "30.0 s", "–", "1.00 GiB"],
        ["total", "2 min 00 s", "–", "3.00 GiB"],
    ]
    stages.append(StageCost("evaluate:own", 1.0, 5, GIB, 7 * GIB))
    assert [row[-1].text for row in tables.cost_rows(stages).rows] == [
        "–",
        "–",
        "7.00 GiB",
        "7.00 GiB",
    ]


def test_differences_hold_values_and_limits_whole(run_dir: Path) -> None:
    results = results_table(run_dir)
    table = difference_rows(results)
    assert table is not None
    rows = rows_of(table)
    assert results.headline is not None
    found = results.difference("forgetting", results.headline)
    assert found is not None
    assert rows[0]["task"] == "heldout"
    limits = [float(rows[0][f"forgetting: {n}"]) for n in ("difference", "low", "high")]
    assert limits == [found.value, found.low, found.high]
    assert rows[0]["n"] == "80"
    assert "full: difference" not in rows[0]


def test_marked_text_is_in_brackets_in_a_csv() -> None:
    cell = tables.marked_text([("It is ", False), ("blue", True)])
    assert (cell.text, cell.values) == ("It is blue", ("It is ⟦blue⟧",))
