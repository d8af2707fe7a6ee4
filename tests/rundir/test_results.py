"""Answers are kept as they are, whatever characters they hold."""

from __future__ import annotations

import json

from forgetting.rundir.results import write_answers


def test_answers_of_any_text_are_written_and_read_again(tmp_path):
    rows = [{"answer": text} for text in ("plain", "é\u2028", "half a pair \ud83d", "\0")]
    file = write_answers(tmp_path, "task", rows)
    lines = file.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines if line] == rows
    assert "é" in lines[1]
