"""Names the features that speak most for a token being bad.

Input: a run in which the detector has run. Output: a function of a sample and tokens in it, as the
inspector asks. It reads the trees that the detector left.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.errors import InputError
from forgetting.method.columns import columns_of
from forgetting.method.explainer import Explainer
from forgetting.rundir import layout
from forgetting.rundir.explainer_files import read_explainer
from forgetting.rundir.findings import AGAIN
from forgetting.rundir.scores import ScoredCorpus, ScoreShard
from forgetting.stages.corpus_detection import fitted_detector
from forgetting.stages.corpus_features import FeaturePart, features_of, segment_ends

NUM_FEATURES = 5


class TellingFeatures:
    """Names the features that speak most for tokens being bad. May be called by several threads.

    Args:
        recipe: of the run.
        run: the run directory.
    """

    def __init__(self, recipe: Recipe, run: Path) -> None:
        self._recipe = recipe
        self._run = run
        self._reading = threading.Lock()
        self._shard: tuple[int, ScoreShard] | None = None

    def __call__(self, row: int, tokens: Sequence[int]) -> list[list[tuple[str, float]]]:
        """The features of some tokens.

        Args:
            row: of the sample in D_train.
            tokens: places in its response.

        Returns:
            For each token at most five pairs (name, what the feature adds to the log-odds), largest
            first.

        Raises:
            InputError: scores or trees are missing or damaged, or belong to other tokens.
        """
        with self._reading:
            part = self._features(row)
            if self._explainer is None:
                return [[] for _ in tokens]
            features = self._seen_by(self._explainer, part)
            return self._explainer.telling_features(features[list(tokens)], NUM_FEATURES)

    @cached_property
    def _corpus(self) -> ScoredCorpus:
        return ScoredCorpus(self._run)

    @cached_property
    def _explainer(self) -> Explainer | None:
        fingerprint = self._corpus.fingerprint
        found = read_explainer(layout.detector_dir(self._run), fingerprint)
        # Runs from before the trees were kept fit the detector again, which takes seconds.
        if found is not None:
            return found
        return fitted_detector(self._recipe, self._run, fingerprint, self._ends).explainer

    @cached_property
    def _ends(self) -> NDArray[np.bool_]:
        return segment_ends(self._recipe.model)

    def _seen_by(self, explainer: Explainer, part: FeaturePart) -> NDArray[np.float32]:
        """The features that the trees were grown with, in their order. A run of an older version
        may lack some of today's.

        Raises:
            InputError: there is no such feature any more.
        """
        missing = [name for name in explainer.names if name not in part.names]
        if missing:
            file = layout.features_file(layout.detector_dir(self._run))
            raise InputError(
                f"{file} names the feature `{missing[0]}`, which this version of forgetting does "
                f"not compute. {AGAIN}"
            )
        return part.features[:, [part.names.index(name) for name in explainer.names]]

    def _features(self, row: int) -> FeaturePart:
        """Features of a sample's response tokens."""
        starts = np.r_[0, np.cumsum(self._corpus.shard_sizes)]
        index = int(np.searchsorted(starts, row, side="right")) - 1
        passes = self._recipe.detector_passes
        if self._shard is None or self._shard[0] != index:
            self._shard = index, self._corpus.shard(index, columns_of(passes), ["labels"])
        shard, place = self._shard[1], row - int(starts[index])
        stop = int(shard.lengths[: place + 1].sum())
        tokens = slice(stop - int(shard.lengths[place]), stop)
        sample = ScoreShard(
            shard.sample_ids[place : place + 1],
            shard.lengths[place : place + 1],
            {name: values[tokens] for name, values in shard.columns.items()},
            shard.samples.slice(place, 1),
        )
        (part,) = features_of(sample, passes, self._ends)
        return part
