"""A cleaned copy lacks what is bad, keeps every other byte, and nothing is lost."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from forgetting.auditing.cleaning import DUPLICATE
from forgetting.auditing.judged import BadSpan
from forgetting.auditing.masked import train_detail
from forgetting.cli import main
from tests.auditing.conftest import LINES

pytestmark = pytest.mark.usefixtures("restored_logging")


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def clean(audited, tmp_path):
    """Runs the command; gives its exit code and the output folder."""
    data, audit = audited

    def do(*options, data=data):
        output = tmp_path / "cleaned"
        arguments = ["clean", str(data), "--from", str(audit.folder), "--output", str(output)]
        return main([*arguments, *options]), output

    return do


def test_bad_records_and_their_repetitions_are_dropped(clean, audited, capsys):
    code, output = clean()
    assert code == 0
    before = audited[0].read_text("utf-8").splitlines(keepends=True)
    left_out = {6, 9, len(LINES)}
    kept = [line for number, line in enumerate(before, 1) if number not in left_out]
    assert (output / "mine.jsonl").read_text("utf-8") == "".join(kept)
    removed = lines_of(output / "removed.jsonl")
    assert [row["record"] for row in removed] == [LINES[5], LINES[8], LINES[-1]]
    assert removed[-1]["reason"] == DUPLICATE
    assert removed[-1]["of_row"] == 6
    summary = json.loads((output / "summary.json").read_text())
    assert summary["num_removed"] == sum(summary["reasons"].values()) == 3
    assert summary["num_not_judged"] == 2
    assert "3 of 27 records dropped" in capsys.readouterr().out


def test_the_threshold_decides(clean):
    assert clean("--drop", "0.92")[0] == 0
    removed = lines_of(clean()[1] / "removed.jsonl")
    assert [row["line"] for row in removed] == [9]


def test_masked_tokens_are_not_trained_on(clean, audited):
    code, output = clean("--mask", "0.5")
    assert code == 0
    rows = lines_of(output / "masked.jsonl")
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(24)]
    *_, answer = rows[5]["messages"]
    assert answer["train_detail"] == [
        {"begin_offset": 0, "end_offset": 8, "train": True},
        {"begin_offset": 9, "end_offset": 13, "train": False},
    ]
    assert "train_detail" not in rows[0]["messages"][-1]
    table = pq.read_table(output / "tokens.parquet").to_pylist()
    assert len(table) == 24
    num_masked = [
        sum(y >= 0 and w == 0 for y, w in zip(row["labels"], row["token_weights"], strict=True))
        for row in table
    ]
    assert sorted(num_masked)[-3:] == [0, 5, 5]
    assert len(lines_of(output / "removed.jsonl")) == 2


def test_the_ranges_of_a_response_cover_it():
    spans = [BadSpan(1, 0, 3, 0.9, 2.0, "swap"), BadSpan(1, 5, 8, 0.9, 2.0, "swap")]
    assert train_detail(7, spans) == [
        {"begin_offset": 0, "end_offset": 2, "train": False},
        {"begin_offset": 3, "end_offset": 4, "train": True},
        {"begin_offset": 5, "end_offset": 6, "train": False},
    ]
    assert train_detail(3, []) == [{"begin_offset": 0, "end_offset": 2, "train": True}]
    # Only the end of the response is bad: it has no character.
    assert train_detail(3, [BadSpan(1, 3, 4, 0.9, 1.0, "truncate")])[0]["train"] is True


def test_other_data_are_refused(clean, tmp_path, capsys):
    other = tmp_path / "mine.jsonl"
    other.write_text(json.dumps(LINES[0]) + "\n")
    code, output = clean(data=other)
    assert code == 2
    assert "not what" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--drop", "0.5", "--mask", "0.5"), "either --drop or --mask"),
        (("--drop", "0"), "Pass one above 0"),
    ],
)
def test_contradicting_options_are_refused(clean, options, message, capsys):
    assert clean(*options)[0] == 2
    assert message in capsys.readouterr().err


def test_a_folder_with_files_is_not_overwritten(clean, capsys):
    _, output = clean()
    code, _ = clean()
    assert code == 2
    assert "exists" in capsys.readouterr().err
    assert len(list(output.iterdir())) == 3
