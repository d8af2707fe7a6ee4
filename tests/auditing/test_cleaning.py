"""A cleaned copy lacks what is bad, keeps every other byte, and nothing is lost."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from forgetting.auditing import write_files
from forgetting.auditing.audit import audit_data
from forgetting.auditing.cleaning import DUPLICATE, REJECTED
from forgetting.auditing.judged import BadSpan
from forgetting.auditing.masked import train_detail
from forgetting.cli import main
from forgetting.rundir.train_records import train_records
from tests.auditing.conftest import LINES, write_findings

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


@pytest.fixture
def decided(audited, tmp_path):
    """Writes marks: (line, decision) on a record, (line, decision, span) on a span."""

    def write(*marks, last=(), **changes):
        run = audited[1].fingerprint
        records = [row for part in train_records(audited[1].run, run) for row in part]
        ids = {record.line: record.sample_id for record in records}
        rows = [
            {
                "source": "mine",
                "file": "mine.jsonl",
                "line": line,
                "row": line,
                "sample": ids.get(line, 9999),
                "decision": decision,
                "turn": 1 if span else None,
                "span": span[0] if span else None,
            }
            for line, decision, *span in marks
        ]
        rows[-1] |= last
        whole = {"version": 1, "run": run, "decisions": rows} | changes
        (tmp_path / "decisions.json").write_text(json.dumps(whole))
        return "--decisions", str(tmp_path / "decisions.json")

    return write


def lines_in(path):
    return [row["id"] for row in lines_of(path)]


def test_marks_win_over_the_detector(clean, decided, capsys):
    # 6 and 9 are bad. The last line repeats 6.
    marks = decided((6, "edit"), (9, "accept"), (2, "reject"), (3, "reject", [0, 2]))
    code, output = clean(*marks)
    assert code == 0
    assert lines_in(output / "to-edit-mine.jsonl") == ["r5", "bad again"]
    removed = lines_of(output / "removed.jsonl")
    assert [row["line"] for row in removed] == [2, 3]
    assert {row["reason"] for row in removed} == {REJECTED}
    assert [span["text"] for span in removed[1]["spans"]] == ["It"]
    kept = set(lines_in(output / "mine.jsonl"))
    assert {row["id"] for row in LINES} - kept == {"r1", "r2", "r5", "bad again"}
    shown = capsys.readouterr().out
    assert "Decided by hand: " in shown
    assert "2 dropped" in shown
    assert "Decided by posterior: nothing." in shown
    summary = json.loads((output / "summary.json").read_text())
    assert summary["by_hand"] == {"to edit": 1, "kept": 1, "dropped": 2}
    assert summary["num_to_edit"] == 2


def test_without_a_mark_the_posterior_decides(clean, decided):
    # Of the two bad spans of 9, one is accepted; that of 6 is accepted too.
    marks = decided((9, "accept", [6, 9]), (6, "accept", [9, 14]))
    code, output = clean(*marks)
    assert code == 0
    assert [row["line"] for row in lines_of(output / "removed.jsonl")] == [9]
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["by_hand"], summary["by_posterior"]) == ({"kept": 1}, {"dropped": 1})
    assert not (output / "to-edit-mine.jsonl").exists()


def test_marked_spans_are_masked(clean, decided):
    marks = decided(
        (9, "accept", [6, 9]),
        (3, "reject", [3, 5]),
        (2, "reject"),
        (4, "edit", [0, 1]),
        (6, "accept"),
    )
    code, output = clean("--mask", "0.5", *marks)
    assert code == 0
    rows = {row["id"]: row["messages"][-1] for row in lines_of(output / "masked.jsonl")}
    assert set(rows) == {f"r{i}" for i in range(24)} - {"r1", "r3"}
    masked = {
        name: [(part["begin_offset"], part["end_offset"] + 1) for part in parts]
        for name, row in rows.items()
        if (parts := [part for part in row.get("train_detail", ()) if not part["train"]])
    }
    assert masked == {"r8": [(0, 2)], "r2": [(3, 5)]}
    table = pq.read_table(output / "tokens.parquet").to_pylist()
    assert len(table) == 22
    num_masked = [
        sum(y >= 0 and w == 0 for y, w in zip(row["labels"], row["token_weights"], strict=True))
        for row in table
    ]
    assert sum(num_masked) == 4
    removed = {row["row"]: row for row in lines_of(output / "removed.jsonl")}
    assert set(removed) == {2, 3, 9}
    assert removed[2]["record"] == LINES[1]
    assert lines_in(output / "to-edit-mine.jsonl") == ["r3"]


def test_a_mark_on_the_record_wins_over_those_on_its_spans(clean, decided):
    marks = decided(
        (6, "accept"), (6, "reject", [0, 2]), (9, "reject"), (9, "edit", [0, 2]), (3, "edit")
    )
    code, output = clean(*marks)
    assert code == 0
    assert [row["line"] for row in lines_of(output / "removed.jsonl")] == [9]
    assert lines_in(output / "to-edit-mine.jsonl") == ["r2"]


@pytest.mark.parametrize(
    "last", [{"line": 7}, {"row": 7}, {"source": "other"}, {"file": "other.jsonl"}]
)
def test_a_mark_that_names_another_record_than_its_sample_is_refused(clean, decided, last, capsys):
    marks = decided((9, "accept"), (6, "accept", [0, 2]), (6, "reject", [9, 14]), last=last)
    code, output = clean(*marks)
    assert code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "is row 6 of mine.jsonl of source mine, line 6. Download it again" in told
    assert not output.exists()
    # A mark need not say the line.
    assert clean(*decided((6, "accept"), last={"line": None}))[0] == 0


@pytest.mark.parametrize(
    ("marks", "changes", "told"),
    [
        ([(6, "reject")], {"run": "ab" * 32}, "about another run"),
        ([(26, "reject")], {}, "mark mine.jsonl, line 26, which is not a record of"),
        ([(6, "reject", [0, 99])], {}, "characters up to 99 of turn 1 of mine.jsonl, row 6"),
    ],
)
def test_marks_on_something_else_are_refused(clean, decided, marks, changes, told, capsys):
    code, output = clean(*decided(*marks, **changes))
    assert code == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


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


def test_half_a_surrogate_pair_in_another_field_is_kept(tmp_path, tiny_model):
    records = [{**line, "note": "\ud83d"} for line in LINES[:24]]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in records), encoding="utf-8")
    audit = audit_data(str(data), tmp_path / "audit", model=str(tiny_model))
    write_findings(audit)
    write_files(audit)
    assert [row["record"] for row in lines_of(audit.flagged_jsonl)] == [records[5], records[8]]
    for option in ("--drop", "--mask"):
        output = tmp_path / option
        arguments = ["clean", str(data), "--from", str(audit.folder), "--output", str(output)]
        assert main([*arguments, option, "0.5"]) == 0
    assert [row["record"] for row in lines_of(tmp_path / "--drop" / "removed.jsonl")] == [
        records[5],
        records[8],
    ]
    assert {row["note"] for row in lines_of(tmp_path / "--mask" / "masked.jsonl")} == {"\ud83d"}
