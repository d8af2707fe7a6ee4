"""What the model expected in place of a token, where the run holds it.

Input: the alternatives of bad tokens that a run with `align` stores. Output: the most likely other
tokens of a sample's tokens, as text. In memory is one shard.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forgetting.escaping import visible
from forgetting.inspector.pieces import Decode
from forgetting.rundir import layout
from forgetting.rundir.samples import SampleFile, Samples
from forgetting.rundir.token_alternatives import TokenAlternatives, read_alternatives

NUM_SHOWN = 3
Expected = dict[int, list[tuple[str, float]]]
"""By place in a response: the most likely other tokens with their probabilities, the token that is
there taken out."""


class ExpectedTokens:
    """Expected tokens by sample. May be called by several threads.

    Args:
        run: the run directory.
        shard_sizes: samples of each shard of the scores.
        decode: text of token ids.
    """

    def __init__(
        self, run: Path, fingerprint: str, shard_sizes: Sequence[int], decode: Decode
    ) -> None:
        self._files = layout.alternatives_files(layout.alternatives_dir(run))
        self._data = SampleFile(layout.train_file(run))
        self._fingerprint = fingerprint
        self._starts = np.r_[0, np.cumsum(shard_sizes)]
        self._decode = decode
        self._reading = threading.Lock()
        self._shard: tuple[int, Samples, TokenAlternatives] | None = None

    def __call__(self, row: int) -> Expected:
        """What was expected in a sample.

        Raises:
            InputError: the alternatives are damaged, or belong to other tokens.
        """
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        if index >= len(self._files):
            return {}
        with self._reading:
            if self._shard is None or self._shard[0] != index:
                begin, end = int(self._starts[index]), int(self._starts[index + 1])
                samples = self._data.read(begin, end)
                found = read_alternatives(self._files[index], samples, self._fingerprint)
                self._shard = index, samples, found
            _, samples, found = self._shard
        place = row - int(self._starts[index])
        first, last = samples.response_starts[place : place + 2]
        rows = range(*np.searchsorted(found.tokens, [first, last]).tolist())
        return {int(found.tokens[i] - first): self._likely(found, i) for i in rows}

    def _likely(self, found: TokenAlternatives, i: int) -> list[tuple[str, float]]:
        return [
            (visible(self._decode([int(token)])), round(float(np.exp(log_prob)), 4))
            for token, log_prob in zip(
                found.ids[i, :NUM_SHOWN], found.log_probs[i, :NUM_SHOWN], strict=True
            )
        ]
