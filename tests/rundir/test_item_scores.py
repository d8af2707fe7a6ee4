"""Scores of items: what was written is read, and damage is refused."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.item_scores import ItemScores, read_item_scores, write_item_scores

SCORES = ItemScores(
    np.array([7, 3]), {"acc": np.array([1.0, 0.0]), "f1, strict": np.array([1 / 3, 2 / 3])}
)


def test_what_was_written_is_read(tmp_path):
    write_item_scores(tmp_path, "task", SCORES)
    found = read_item_scores(tmp_path, "task")
    assert found.items.tolist() == [7, 3]
    assert {name: v.tolist() for name, v in found.scores.items()} == {
        "acc": [1.0, 0.0],
        "f1, strict": [1 / 3, 2 / 3],
    }


def test_without_a_file_there_are_no_scores(tmp_path):
    assert read_item_scores(tmp_path, "task") is None


def test_no_items_or_no_metrics_can_be_written(tmp_path):
    write_item_scores(tmp_path, "task", ItemScores(np.array([1, 2]), {}))
    assert read_item_scores(tmp_path, "task").scores == {}
    write_item_scores(tmp_path, "task", ItemScores(np.zeros(0, int), {"acc": np.zeros(0)}))
    assert read_item_scores(tmp_path, "task").scores["acc"].size == 0


@pytest.mark.parametrize("text", ["", "other,acc\n1,2\n", "item,acc\n1\n", "item,acc\n1,much\n"])
def test_a_damaged_file_is_refused_by_its_path(tmp_path, text):
    layout.items_file(tmp_path, "task").write_text(text)
    with pytest.raises(InputError, match=r"task\.items\.csv cannot be read.*evaluate again"):
        read_item_scores(tmp_path, "task")
