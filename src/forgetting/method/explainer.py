"""Names the features that speak most for a token being bad, from the trees of a detector.

Input: trees as plain arrays, and features of tokens. Output: for each token the features whose
values raise its log-odds most. The trees predict what the classifiers did that they were taken
from. Knows nothing of files, and scikit-learn is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOKENS_AT_ONCE = 50


@dataclass(frozen=True)
class Trees:
    """Boosted trees for two classes. The first tree is a leaf with the log-odds of the classes."""

    roots: NDArray[np.int64]
    """Node that each tree starts with, shape (trees,)."""
    feature: NDArray[np.int16]
    """Feature that a node looks at, -1 in a leaf; shape (nodes,), as all that follow."""
    threshold: NDArray[np.float64]
    """A node passes tokens on to the left if the feature is at most this."""
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    """What a leaf adds to the log-odds."""

    @classmethod
    def of_classifier(cls, classifier: Any) -> Trees:
        """The trees of a fitted HistGradientBoostingClassifier for two classes without categories.

        scikit-learn has no public access to them; a test compares what both predict.
        """
        tables = [each[0].nodes for each in classifier._predictors]
        sizes = [1, *map(len, tables)]
        roots = np.r_[0, np.cumsum(sizes)[:-1]].astype(np.int64)
        places = list(zip(roots[1:].tolist(), tables, strict=True))
        is_leaf = np.concatenate([[True], *(nodes["is_leaf"].astype(bool) for nodes in tables)])
        baseline = classifier._baseline_prediction.ravel()

        def joined(name: str, first: Any = 0) -> NDArray:
            return np.concatenate([[first], *(nodes[name] for nodes in tables)])

        def children(name: str) -> NDArray[np.int32]:
            return np.concatenate(
                [[0], *(root + nodes[name].astype(np.int64) for root, nodes in places)]
            ).astype(np.int32)

        return cls(
            roots,
            np.where(is_leaf, -1, joined("feature_idx")).astype(np.int16),
            joined("num_threshold", 0.0),
            children("left"),
            children("right"),
            joined("value", baseline[0]),
        )

    def log_odds(self, features: NDArray) -> NDArray[np.float64]:
        """Log-odds of tokens, shape (tokens,).

        Args:
            features: shape (tokens, features), finite.
        """
        tokens = np.arange(len(features))[:, None]
        nodes = np.repeat(self.roots[None], len(features), axis=0)
        while True:
            feature = self.feature[nodes]
            is_leaf = feature < 0
            if is_leaf.all():
                break
            goes_left = features[tokens, np.maximum(feature, 0)] <= self.threshold[nodes]
            children = np.where(goes_left, self.left[nodes], self.right[nodes])
            nodes = np.where(is_leaf, nodes, children)
        # One tree after the other, as the classifier adds them.
        return np.cumsum(self.value[nodes], axis=1)[:, -1]


@dataclass(frozen=True)
class Explainer:
    """What a detector's classifiers see in a token."""

    names: tuple[str, ...]
    """Names of the features."""
    edges: tuple[NDArray[np.float64], ...]
    """Edges of the bins of each feature. The trees look at the number of the bin."""
    medians: NDArray[np.float32]
    """Median of each feature over clean tokens, shape (features,)."""
    folds: tuple[Trees, ...]
    """Trees of each classifier. An explanation is their mean."""

    def telling_features(
        self, features: NDArray[np.float32], count: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The features that speak most for a token being bad.

        Each feature is replaced by its median over clean tokens in turn; what the log-odds lose is
        its part. Costs as much as `features.shape[1]` predictions a token, so pass the tokens that
        someone looks at, not the corpus.

        Args:
            features: of those tokens, shape (tokens, features).
            count: how many features to name.

        Returns:
            For each token, (name, loss of log-odds), largest first; only losses above 0.
        """
        features = np.asarray(features, dtype=np.float32)
        begins = range(0, len(features), _TOKENS_AT_ONCE)
        answer = []
        for losses in (self._losses(features[i : i + _TOKENS_AT_ONCE]) for i in begins):
            for row in losses:
                best = np.argsort(-row, kind="stable")[:count]
                answer.append([(self.names[i], float(row[i])) for i in best if row[i] > 0])
        return answer

    def _losses(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """What the log-odds of tokens lose without each feature; the shape of `features`."""
        own = binned(features, self.edges)
        clean = binned(self.medians[None], self.edges)[0]
        size = features.shape[1]
        rows = np.repeat(own[:, None], size + 1, axis=1)
        rows[:, np.arange(1, size + 1), np.arange(size)] = clean
        flat = rows.reshape(-1, size)
        log_odds = np.mean([trees.log_odds(flat) for trees in self.folds], axis=0)
        log_odds = log_odds.reshape(len(features), size + 1)
        return log_odds[:, :1] - log_odds[:, 1:]


def binned(features: NDArray, edges: Sequence[NDArray]) -> NDArray[np.float32]:
    """The bin of each feature of each token; shape of `features`."""
    columns = [
        np.searchsorted(edge, column, side="right")
        for column, edge in zip(features.T, edges, strict=True)
    ]
    return np.stack(columns, axis=1).astype(np.float32)
