"""What the detector looks at in a token: its trees and its features, without pickle.

`save_explainer` writes them next to the posterior, `read_explainer` reads them. Both files carry
the fingerprint of D_train.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from forgetting.errors import InputError
from forgetting.method.explainer import Explainer, Trees
from forgetting.rundir import layout
from forgetting.rundir.findings import AGAIN
from forgetting.rundir.samples import list_column, lists, read_table, write_table

NODES = ("feature", "threshold", "left", "right", "value")


def save_explainer(folder: Path, explainer: Explainer, fingerprint: str) -> None:
    """Write the trees and the features.

    Args:
        folder: of the detector.
        fingerprint: of D_train.
    """
    starts = np.r_[0, np.cumsum([len(trees.value) for trees in explainer.folds])]
    roots = np.r_[0, np.cumsum([len(trees.roots) for trees in explainer.folds])]
    table = {"roots": lists(np.concatenate([trees.roots for trees in explainer.folds]), roots)}
    for name in NODES:
        values = np.concatenate([getattr(trees, name) for trees in explainer.folds])
        table[name] = lists(values, starts)
    write_table(pa.table(table), layout.trees_file(folder), fingerprint)
    ends = np.r_[0, np.cumsum([len(edges) for edges in explainer.edges])]
    features = {
        "name": list(explainer.names),
        "median": explainer.medians,
        "edges": lists(np.concatenate(explainer.edges), ends),
    }
    write_table(pa.table(features), layout.features_file(folder), fingerprint)


def read_explainer(folder: Path, fingerprint: str) -> Explainer | None:
    """The trees and the features; None if nothing could be learned, so that there are none.

    Args:
        folder: of the detector.
        fingerprint: of D_train.

    Raises:
        InputError: a file is damaged, or belongs to other tokens.
    """
    if not layout.trees_file(folder).is_file():
        return None
    nodes = read_table(layout.trees_file(folder), fingerprint)
    features = read_table(layout.features_file(folder), fingerprint)
    columns = {}
    for name in ("roots", *NODES):
        values, starts = list_column(nodes, name)
        columns[name] = np.split(values, starts[1:-1])
    edges, ends = list_column(features, "edges")
    folds = tuple(
        Trees(*(columns[name][row] for name in ("roots", *NODES))) for row in range(nodes.num_rows)
    )
    if not all(_is_whole(trees, features.num_rows) for trees in folds):
        raise InputError(f"{layout.trees_file(folder)} does not hold whole trees. {AGAIN}")
    return Explainer(
        tuple(features["name"].to_pylist()),
        tuple(np.split(edges, ends[1:-1])),
        features["median"].to_numpy(),
        folds,
    )


def _is_whole(trees: Trees, num_features: int) -> bool:
    """Whether every node leads to later nodes of the trees, and looks at a feature."""
    size = len(trees.value)
    if any(len(getattr(trees, name)) != size for name in NODES):
        return False
    inner = np.flatnonzero(trees.feature >= 0)
    children = np.r_[trees.left[inner], trees.right[inner]]
    return bool(
        (trees.feature < num_features).all()
        and ((trees.roots >= 0) & (trees.roots < size)).all()
        and ((children > np.r_[inner, inner]) & (children < size)).all()
    )
