"""The features that speak for a token being bad are those of the detector that judged it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.method.columns import columns_of
from forgetting.rundir import layout
from forgetting.rundir.explainer_files import read_explainer, save_explainer
from forgetting.rundir.scores import ScoredCorpus
from forgetting.stages import telling as telling_module
from forgetting.stages.corpus_detection import fitted_detector
from forgetting.stages.corpus_features import features_of, segment_ends
from forgetting.stages.telling import NUM_FEATURES, TellingFeatures
from tests.conftest import count_decodings

pytestmark = pytest.mark.usefixtures("with_few_trees")


def test_they_are_those_of_the_whole_corpus_in_any_order(detected_run):
    recipe, run = load_recipe(detected_run[0]), detected_run[1]
    corpus = ScoredCorpus(run)
    assert len(corpus.shard_sizes) > 1
    ends, passes = segment_ends(recipe.model), recipe.detector_passes
    shards = list(corpus.scores(columns_of(passes), ["labels"]))
    parts = [part.features for shard in shards for part in features_of(shard, passes, ends)]
    features = np.concatenate(parts)
    starts = np.r_[0, np.cumsum(np.concatenate([shard.lengths for shard in shards]))]
    explainer = fitted_detector(recipe, run, corpus.fingerprint, ends).explainer
    assert explainer is not None
    telling = TellingFeatures(recipe, run)
    told = []
    for row in (59, 0, 25, 24):
        own = features[starts[row] : starts[row + 1]]
        found = telling(row, [2, 0])
        assert found == explainer.telling_features(own[[2, 0]], NUM_FEATURES)
        told += map(len, found)
    # Nothing may speak for a token.
    assert 0 < max(told) <= NUM_FEATURES


def test_the_detector_is_fitted_again_only_if_its_trees_are_gone(
    detected_run, tmp_path, monkeypatch
):
    recipe, run = load_recipe(detected_run[0]), tmp_path / "run"
    shutil.copytree(detected_run[1], run)
    expected = TellingFeatures(recipe, run)(3, [0, 1])
    layout.trees_file(layout.detector_dir(run)).unlink()
    decoded = count_decodings(monkeypatch, telling_module)
    assert TellingFeatures(recipe, run)(3, [0, 1]) == expected
    assert decoded == [recipe.model]
    shutil.rmtree(layout.probe_dir(run))
    with pytest.raises(InputError, match="probe"):
        TellingFeatures(recipe, run)(3, [0])


def test_trees_of_an_older_version_see_the_features_that_they_know(detected_run, tmp_path):
    recipe, run = load_recipe(detected_run[0]), tmp_path / "run"
    shutil.copytree(detected_run[1], run)
    expected = TellingFeatures(recipe, run)(3, [0, 1])
    assert any(expected)
    folder, fingerprint = layout.detector_dir(run), ScoredCorpus(run).fingerprint
    explainer = read_explainer(folder, fingerprint)
    assert explainer is not None
    used = np.unique(np.concatenate([trees.feature for trees in explainer.folds]))
    unused = min(set(range(len(explainer.names))) - set(used.tolist()))
    assert unused < used.max()

    def without(values):
        return (*values[:unused], *values[unused + 1 :])

    older = replace(
        explainer,
        names=without(explainer.names),
        edges=without(explainer.edges),
        medians=np.delete(explainer.medians, unused),
        folds=tuple(
            replace(trees, feature=trees.feature - (trees.feature > unused).astype(np.int16))
            for trees in explainer.folds
        ),
    )
    save_explainer(folder, older, fingerprint)
    assert TellingFeatures(recipe, run)(3, [0, 1]) == expected
    save_explainer(folder, replace(older, names=("gone", *older.names[1:])), fingerprint)
    with pytest.raises(InputError, match=r"the feature `gone`.*Detect again"):
        TellingFeatures(recipe, run)(3, [0])
