"""Reading `decisions.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forgetting.auditing.decisions import read_decisions
from forgetting.errors import InputError

RUN = "ab" * 32
RECORD = {
    "source": "s",
    "file": "data.jsonl",
    "line": 7,
    "row": 7,
    "sample": 3,
    "decision": "reject",
    "turn": None,
    "span": None,
}
SPAN = RECORD | {"decision": "accept", "turn": 1, "span": [4, 9], "text": "wrong"}


def written(folder: Path, *decisions: Any, **changes: Any) -> Path:
    file = folder / "decisions.json"
    whole = {"version": 1, "run": RUN, "decisions": decisions} | changes
    file.write_text(json.dumps(whole), encoding="utf-8")
    return file


def test_decisions_are_found_by_sample(tmp_path: Path) -> None:
    other = SPAN | {"span": [10, 11], "decision": "edit"}
    found = read_decisions(written(tmp_path, RECORD, SPAN, other), RUN)
    assert found.of_records == {3: "reject"}
    spans = [(each.turn, each.span, each.decision) for each in found.of_spans[3]]
    assert spans == [(1, (4, 9), "accept"), (1, (10, 11), "edit")]


@pytest.mark.parametrize(
    ("decisions", "changes", "told"),
    [
        ([RECORD | {"decision": "keep"}], {}, "decision 1, field `decision`: .*'accept'"),
        ([RECORD, SPAN | {"span": [9, 4]}], {}, "decision 2: .*must end after it begins"),
        ([SPAN | {"turn": None}], {}, "must be given together"),
        ([SPAN | {"span": [1]}], {}, "decision 1, field `span`"),
        ([SPAN | {"row": "7"}], {}, "decision 1, field `row`"),
        ([RECORD, SPAN, RECORD], {}, "decision 3 repeats"),
        ([RECORD | {"why": 1}], {}, "field `why`"),
        ([RECORD], {"version": 2}, "field `version`"),
        ([RECORD], {"run": "cd" * 32}, "another run .cdcdcdcd, this one is abababab"),
    ],
)
def test_what_is_not_of_the_format_is_refused(
    tmp_path: Path, decisions: list[Any], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=rf"decisions\.json.*{told}"):
        read_decisions(written(tmp_path, *decisions, **changes), RUN)


def test_a_mark_before_utf8_is_passed_over(tmp_path: Path) -> None:
    file = written(tmp_path, RECORD)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_decisions(file, RUN).of_records == {3: "reject"}


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "decisions.json"
    with pytest.raises(InputError, match="cannot be read"):
        read_decisions(file, RUN)
    file.write_bytes(b"{\xff")
    with pytest.raises(InputError, match="JSON"):
        read_decisions(file, RUN)
