"""What is flagged is at the right characters of the right record, with the record's own fields."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from forgetting.auditing.announcement import as_json, print_verdict
from forgetting.auditing.audit import Audit
from forgetting.auditing.flagged import NUM_WORST, write_files
from forgetting.auditing.judged import judged_records
from tests.auditing.conftest import LINES, RECORDS, write_findings


def test_the_worst_record_comes_first_with_its_own_fields(audited):
    _, audit = audited
    write_files(audit)
    rows = [json.loads(line) for line in audit.flagged_jsonl.read_text("utf-8").splitlines()]
    assert [(row["file"], row["line"], row["row"]) for row in rows] == [
        ("mine.jsonl", 6, 6),
        ("mine.jsonl", 9, 9),
    ]
    assert [row["record"] for row in rows] == [LINES[5], LINES[8]]
    assert not any(row["only_suspected"] for row in rows)
    assert rows[0]["text"] == LINES[5]["completion"]
    assert rows[0]["num_bad_tokens"] == pytest.approx(5 * 0.9, abs=0.1)


def test_where_nothing_is_found_the_likeliest_records_are_listed(audited, capsys):
    _, audit = audited
    write_findings(audit, found=False)
    audit = Audit(audit.folder)
    found = write_files(audit)
    rows = sorted(
        pq.read_table(audit.scores).to_pylist(),
        key=lambda row: (-row["num_bad_tokens"], row["row"]),
    )
    listed = [row["row"] for row in rows[:NUM_WORST]]
    flagged = [row["row"] for row in rows if row["highest_posterior"] >= 0.5]
    assert [each.record.record for each in found[:NUM_WORST]] == listed
    assert {each.record.record for each in found} == {*listed, *flagged}
    # Such a record shows where it looks worst, though no token of it is flagged.
    (other,) = [each for each in found if not each.is_flagged][:1]
    highest = next(row["highest_posterior"] for row in rows if row["row"] == other.record.record)
    assert 0 < max(span.posterior for span in other.spans) == pytest.approx(highest)
    assert min(span.posterior for span in other.spans) >= highest / 2
    # Hardly anything is not nothing.
    found[0] = replace(found[0], num_bad_tokens=0.01)
    print_verdict(audit, found)
    shown = capsys.readouterr().out
    assert f"1. {found[0].place}: fewer than 0.1 of {found[0].num_tokens} tokens" in shown
    assert f"{NUM_WORST}. mine.jsonl, line" in shown
    assert as_json(audit, found)["num_flagged"] == len(flagged)


def test_spans_are_characters_of_the_response(audited):
    _, audit = audited
    first, second = write_files(audit)
    assert first.text_of(first.worst)[first.worst.start : first.worst.end] == "wrong"
    assert [(s.message, s.start, s.end) for s in second.spans] == [(1, 0, 2), (1, 6, 9)]
    assert [s.posterior for s in second.spans] == pytest.approx([0.6, 0.95])
    assert second.marked(1) == "[It] is [64.]"


def test_a_bad_end_is_shown(audited):
    _, audit = audited
    first, _ = write_files(audit)
    length = len(LINES[5]["completion"])
    span = replace(first.spans[0], start=length, end=length + 1)
    assert replace(first, spans=(span,)).marked(1) == "Straße 🙂 wrong[(end)]"


def test_the_table_has_the_same_rows(audited):
    _, audit = audited
    write_files(audit)
    with audit.flagged_csv.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["line"] for row in rows] == ["6", "9"]
    assert rows[0]["text"] == "Straße 🙂 [wrong]"
    assert json.loads(rows[0]["record"]) == LINES[5]
    assert rows[0]["kind"] in ("garbled word", "answer to another question")


def test_scores_hold_every_record_and_token(audited):
    _, audit = audited
    write_files(audit)
    table = pq.read_table(audit.scores).to_pylist()
    assert sorted(row["row"] for row in table) == list(range(1, len(RECORDS) + 1))
    for row in table:
        text = RECORDS[row["row"] - 1]["completion"]
        assert row["num_tokens"] == len(text.encode()) + 1
        assert all(len(row[name]) == row["num_tokens"] for name in ("posterior", "start", "turn"))
        assert (row["start"][-1], row["end"][-1]) == (len(text), len(text) + 1)
        assert row["num_bad_tokens"] == pytest.approx(sum(row["posterior"]), rel=1e-5)


def test_spans_from_another_probability(audited):
    _, audit = audited
    by_row = {judged.record.record: judged for judged in judged_records(audit)}
    assert [(s.start, s.end) for s in by_row[9].spans_from(0.9)] == [(6, 9)]
    assert [(s.start, s.end) for s in by_row[12].spans_from(0.3)] == [(0, 1)]
    assert not by_row[12].is_flagged
