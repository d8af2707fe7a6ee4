"""The detector's trees: what was written is read; damaged and other files are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forgetting.errors import InputError
from forgetting.method.explainer import Explainer, Trees
from forgetting.rundir.explainer_files import read_explainer, save_explainer

STUMP = Trees(
    np.array([0, 1]),
    np.array([-1, 1, -1, -1], np.int16),
    np.array([0, 2.5, 0, 0]),
    np.array([0, 2, 0, 0], np.int32),
    np.array([0, 3, 0, 0], np.int32),
    np.array([-0.3, 0, 0.1, 1 / 3]),
)
LEAF = Trees(
    np.array([0]),
    *(np.zeros(1, kind) for kind in (np.int16, np.float64, np.int32, np.int32)),
    np.array([0.7]),
)
EXPLAINER = Explainer(
    ("loss", "rank"),
    (np.array([0.1, 0.2]), np.zeros(0)),
    np.array([0.15, 3], np.float32),
    (STUMP, replace(LEAF, feature=np.array([-1], np.int16))),
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_explainer(tmp_path, "tokens") is None
    save_explainer(tmp_path, EXPLAINER, "tokens")
    found = read_explainer(tmp_path, "tokens")
    assert found is not None
    assert found.names == EXPLAINER.names
    assert [edges.tolist() for edges in found.edges] == [[0.1, 0.2], []]
    assert np.array_equal(found.medians, EXPLAINER.medians)
    for own, expected in zip(found.folds, EXPLAINER.folds, strict=True):
        for name, values in vars(expected).items():
            read = getattr(own, name)
            assert read.dtype == values.dtype, name
            assert np.array_equal(read, values), name


def test_trees_of_other_tokens_are_refused(tmp_path: Path) -> None:
    save_explainer(tmp_path, EXPLAINER, "tokens")
    with pytest.raises(InputError, match=r"trees.parquet belongs to other tokens"):
        read_explainer(tmp_path, "others")


@pytest.mark.parametrize(
    "change",
    [
        {"left": np.array([0, 1, 0, 0], np.int32)},
        {"right": np.array([0, 9, 0, 0], np.int32)},
        {"feature": np.array([-1, 2, -1, -1], np.int16)},
        {"roots": np.array([0, 4])},
        {"value": np.zeros(4), "feature": np.array([0, 1, -1, -1], np.int16)},
    ],
    ids=str,
)
def test_trees_that_lead_nowhere_are_refused(change: dict[str, np.ndarray], tmp_path: Path) -> None:
    save_explainer(tmp_path, replace(EXPLAINER, folds=(replace(STUMP, **change),)), "tokens")
    with pytest.raises(InputError, match="whole trees"):
        read_explainer(tmp_path, "tokens")
