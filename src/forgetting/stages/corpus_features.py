"""Features of the response tokens of a scored shard, some samples at a time.

Input: shards of scores, and which tokens of the vocabulary end a sentence. Output: features for the
detector, in bounded memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.config import ModelSettings
from forgetting.method.columns import STATISTICS
from forgetting.method.features import PassStatistics, compute_features
from forgetting.models.loading import load_tokenizer
from forgetting.rundir.samples import list_column, response_mask
from forgetting.rundir.scores import ScoreShard

TOKENS_AT_ONCE = 50_000
"""Response tokens whose features are in memory, if no sample has more."""
# A sentence or a line ends within or at the end of the token.
_ENDS = re.compile(r"""[.!?。！？:;]["'”’)\]*]*\s*$|\n""")


def segment_ends(model: ModelSettings) -> NDArray[np.bool_]:
    """Whether each token of a vocabulary ends a sentence or a line, shape (vocabulary,)."""
    tokenizer = load_tokenizer(model)
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return np.array([bool(_ENDS.search(text)) for text in texts])


@dataclass(frozen=True)
class FeaturePart:
    """Features of consecutive samples of a shard."""

    samples: slice
    features: NDArray[np.float32]
    names: tuple[str, ...]


def features_of(
    shard: ScoreShard, passes: Sequence[str], ends: NDArray[np.bool_]
) -> Iterator[FeaturePart]:
    """Features of the response tokens of a shard, some samples at a time.

    Args:
        shard: with the statistics of the passes, and the samples' `labels`.
        ends: see `segment_ends`.
    """
    labels, token_starts = list_column(shard.samples, "labels")
    ids = labels[response_mask(labels, token_starts)]
    # A model may have more tokens than its tokenizer.
    ends_segment = ends[np.minimum(ids, len(ends) - 1)]
    starts = np.r_[0, np.cumsum(shard.lengths)]
    begin = 0
    while begin < len(shard.lengths):
        end = int(np.searchsorted(starts, starts[begin] + TOKENS_AT_ONCE, side="right")) - 1
        end = min(max(end, begin + 1), len(shard.lengths))
        tokens = slice(starts[begin], starts[end])
        of_passes = {
            name: PassStatistics(
                **{key: shard.columns[f"{name}_{key}"][tokens] for key in STATISTICS}
            )
            for name in passes
        }
        found, names = compute_features(of_passes, shard.lengths[begin:end], ends_segment[tokens])
        yield FeaturePart(slice(begin, end), found, names)
        begin = end
