"""Fields of a record are shown unless they are its messages."""

from __future__ import annotations

from typing import Any

import pytest

from forgetting.inspector.record_texts import other_fields

LONG = "Name the three largest lakes of Europe."


@pytest.mark.parametrize(
    ("record", "messages", "shown"),
    [
        ({"instruction": LONG, "input": "", "output": "No."}, [LONG, "No."], []),
        ({"instruction": LONG, "input": "x"}, [f"Do this:\n{LONG}\nx"], [("input", "x")]),
        ({"id": "2", "output": "It is 25."}, ["It is 25."], [("id", "2")]),
        ({"messages": [{"role": "user", "content": "Hi"}], "n": 3}, ["Hi"], [("n", "3")]),
        (
            {"tags": ["é", "b"], "meta": {"a": None}},
            ["x"],
            [("tags", '["é", "b"]'), ("meta", '{"a": null}')],
        ),
        ({"tags": []}, ["x"], [("tags", "[]")]),
    ],
)
def test_fields_that_are_messages_are_not_repeated(
    record: dict[str, Any], messages: list[str], shown: list[tuple[str, str]]
) -> None:
    assert other_fields(record, messages) == shown
