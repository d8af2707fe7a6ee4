"""Trees as arrays predict what their classifier does, and an explanation is what it loses."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from forgetting.method.explainer import Explainer, Trees, binned

NAMES = ("a", "b", "c", "d")


def classifier(seed: int = 0) -> tuple[HistGradientBoostingClassifier, np.ndarray]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(400, 4)).astype(np.float32)
    bad = features[:, 0] + 0.7 * features[:, 2] + random.normal(size=400) > 0.5
    trees = HistGradientBoostingClassifier(max_iter=9, max_leaf_nodes=5, random_state=seed)
    return trees.fit(features, bad), features


@pytest.mark.parametrize("seed", [0, 1])
def test_trees_predict_what_their_classifier_predicts(seed: int) -> None:
    fitted, features = classifier(seed)
    trees = Trees.of_classifier(fitted)
    assert len(trees.roots) == 1 + 9
    expected = fitted.decision_function(features)
    np.testing.assert_array_equal(trees.log_odds(features), expected)
    assert len(np.unique(expected)) > 20
    assert trees.log_odds(features[:0]).shape == (0,)


def test_a_feature_counts_what_the_log_odds_lose_with_its_median() -> None:
    edges = tuple(np.array([-0.5, 0.0, 0.5]) for _ in NAMES)
    random = np.random.default_rng(3)
    features = random.normal(size=(120, 4)).astype(np.float32)
    fitted = [
        HistGradientBoostingClassifier(max_iter=5, max_leaf_nodes=4, random_state=seed).fit(
            binned(features, edges), features[:, 1] - features[:, 3] > random.normal(size=120)
        )
        for seed in (0, 1)
    ]
    medians = np.median(features, axis=0)
    explainer = Explainer(NAMES, edges, medians, tuple(map(Trees.of_classifier, fitted)))
    told = explainer.telling_features(features, count=2)
    assert len(told) == 120
    for row, found in zip(features, told, strict=True):
        losses = []
        for place, name in enumerate(NAMES):
            other = row.copy()
            other[place] = medians[place]
            # The bin by hand: how many edges are at most the value.
            own, replaced = (
                np.array([[sum(edge <= x for edge in edges[0]) for x in each]])
                for each in (row, other)
            )
            loss = np.mean(
                [f.decision_function(own) - f.decision_function(replaced) for f in fitted]
            )
            losses.append((name, loss))
        best = sorted((each for each in losses if each[1] > 0), key=lambda each: -each[1])[:2]
        assert [name for name, _ in found] == [name for name, _ in best]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in best], rel=1e-12)
