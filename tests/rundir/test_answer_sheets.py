"""Answers of a model are kept in one file, and those of several models put side by side."""

from __future__ import annotations

import pytest

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.answer_sheets import (
    AnswerSheet,
    read_answer_sheet,
    side_by_side,
    write_answer_sheet,
)
from tests.evaluation.conftest import answer


def test_a_damaged_file_is_named(tmp_path):
    write_answer_sheet(tmp_path, AnswerSheet(answers=[answer()]))
    assert read_answer_sheet(tmp_path) == AnswerSheet(answers=[answer()])
    assert read_answer_sheet(tmp_path / "other") is None
    file = layout.answer_sheet(tmp_path)
    file.write_text(file.read_text().replace("chrf", "other"))
    with pytest.raises(InputError, match=r"answers\.json cannot be read .*`forgetting evaluate`"):
        read_answer_sheet(tmp_path)


def test_prompts_of_some_models_only_are_kept():
    one = AnswerSheet(answers=[answer(1), answer(2)])
    two = AnswerSheet(answers=[answer(2, answer="b"), answer(3)])
    found = side_by_side({"base": one, "full": two})
    assert [(p.sample_id, list(p.answers)) for p in found] == [
        (1, ["base"]),
        (2, ["base", "full"]),
        (3, ["full"]),
    ]
