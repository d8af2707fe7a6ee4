"""The classifiers of a detector: boosted trees over binned features, one for each fold of records.

Input: features of tokens, and what is bad. Output: fitted classifiers, what they say in the order
of the kinds, and two checks by further fits: whether lengths alone tell the noise, and how a kind
is found that was never seen. Knows nothing of shares or of a corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgetting.method.corruptions import CLEAN
from forgetting.method.detector_report import auroc_of
from forgetting.method.features import MODEL_FREE

NUM_FOLDS = 5
SMALLEST_AUROC = 0.7
"""A detector that tells planted noise less well finds nothing."""
SMALLEST_GAIN = 0.05
"""What the models must add to the AUROC of lengths and positions alone. Models with random weights
add -0.09 to 0.04, real ones 0.19 to 0.53."""

TREES = {
    "learning_rate": 0.07,
    "max_iter": 130,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 30,
    "l2_regularization": 5.0,
    "max_features": 0.1,
    # It would stop on tokens of samples that it has seen.
    "early_stopping": False,
}
_NUM_BINS = 254
# They take half the time: for the kinds, and for what is only reported.
_FAST_TREES = TREES | {"learning_rate": 0.15, "max_iter": 60, "max_features": 0.2}
KIND_TREES = _FAST_TREES | {"max_iter": 20, "min_samples_leaf": 20}


def bin_edges(features: NDArray) -> list[NDArray]:
    """Edges of at most 254 bins of each feature with about equally many tokens.

    The trees would bin the features themselves, again for each fit, and with weights that takes
    twenty times as long as the trees.
    """
    levels = np.linspace(0, 1, _NUM_BINS + 1)[1:-1]
    return [np.unique(np.quantile(column, levels)) for column in features.T]


def fit_folds(
    features: NDArray, bad: NDArray[np.bool_], weights: NDArray, folds: NDArray, seed: int
) -> list[Any]:
    """A classifier of bad tokens for each fold, fitted on the other folds."""
    return [
        fit_classifier(features[used], bad[used], TREES, seed + fold, weights[used])
        for fold in range(NUM_FOLDS)
        for used in [folds != fold]
    ]


def blindness(
    names: Sequence[str],
    features: NDArray,
    bad: NDArray[np.bool_],
    folds: NDArray,
    seed: int,
    auroc: float,
) -> str | None:
    """Why a detector that tells planted noise says nothing about tokens; None if it does.

    Noise changes the length of a response. If all responses have similar lengths, the length
    alone reveals the noise, and a detector would call every unusual length bad.

    Args:
        features: binned.
        auroc: of planted noise by all features.
    """
    is_free = np.isin(names, MODEL_FREE)
    if not is_free.any() or is_free.all() or auroc < SMALLEST_AUROC:
        return None
    own = features[:, is_free]
    log_odds = np.zeros(len(bad))
    for fold, model in enumerate(fit_folds(own, bad, np.ones(len(bad)), folds, seed)):
        log_odds[folds == fold] = model.decision_function(own[folds == fold])
    alone = auroc_of(bad, log_odds) or 0.5
    if auroc - alone >= SMALLEST_GAIN:
        return None
    return (
        f"Planted noise is told by the lengths of responses alone (AUROC {alone:.2f}); what these "
        f"models see in the tokens adds nothing (AUROC {auroc:.2f})."
    )


def draw_folds(records: NDArray, rng: np.random.Generator) -> dict[int, int]:
    """Fold of each record; all copies of one record are in one fold."""
    distinct = np.unique(records)
    order = rng.permutation(len(distinct))
    return {int(record): int(place) % NUM_FOLDS for record, place in zip(distinct, order)}  # noqa: B905


class _Constant:
    """Replaces a classifier if all tokens of a fold's training set are of one class."""

    _predictors: tuple[Any, ...] = ()
    _baseline_prediction = np.zeros(1)

    def __init__(self, name: Any) -> None:
        self.classes_ = np.array([name])

    def predict_proba(self, features: NDArray) -> NDArray:
        return np.ones((len(features), 1))

    def decision_function(self, features: NDArray) -> NDArray:
        return np.full(len(features), 0.0)


def fit_classifier(
    features: NDArray,
    target: NDArray,
    trees: dict[str, Any],
    seed: int,
    weights: NDArray | None = None,
) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    classes = np.unique(target)
    if len(classes) < 2:
        return _Constant(classes[0] if len(classes) else "")
    return HistGradientBoostingClassifier(random_state=seed, **trees).fit(
        features, target, sample_weight=weights
    )


def probs_in_order(model: Any, features: NDArray, kinds: tuple[str, ...]) -> NDArray:
    """Probabilities in the order of `kinds`; a kind that the model never saw has 0."""
    probs = np.zeros((len(features), len(kinds)))
    found = model.predict_proba(features)
    for column, name in enumerate(model.classes_):
        if name in kinds:
            probs[:, kinds.index(name)] = found[:, column]
    return probs


def codes_of(names: NDArray, kinds: tuple[str, ...]) -> NDArray[np.int64]:
    """Index into `kinds`, -1 for clean; shape of `names`."""
    place = {name: index for index, name in enumerate(kinds)}
    return np.array([place.get(name, -1) for name in names.tolist()], dtype=np.int64)


def left_out_aurocs(
    features: NDArray,
    names: NDArray,
    kinds: tuple[str, ...],
    weights: NDArray,
    folds: NDArray,
    seed: int,
) -> dict[str, float | None]:
    """AUROC of each kind against clean tokens by a classifier that never saw the kind: fitted on
    three of the five folds, measured on the other two."""
    found: dict[str, float | None] = {}
    fitted = folds < NUM_FOLDS - 2
    clean = names == CLEAN
    for kind in kinds:
        of_kind = names == kind
        used = fitted & ~of_kind
        measured = ~fitted & (clean | of_kind)
        model = fit_classifier(features[used], ~clean[used], _FAST_TREES, seed, weights[used])
        score = model.decision_function(features[measured])
        found[kind] = auroc_of(of_kind[measured], score, weights[measured])
    return found
