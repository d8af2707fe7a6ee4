"""The text of every sample, for searching.

Texts are decoded in the background from the first search on. Until that is done, a search knows
only the first of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

PATIENCE = 0.3
"""Seconds that a search waits for the decoding: a small corpus is searched whole at once."""


class TextIndex:
    """Texts by row.

    Args:
        num_rows: number of samples.
        text_of: decodes a sample. Called in a thread of its own.
    """

    def __init__(self, num_rows: int, text_of: Callable[[int], str]) -> None:
        self._num_rows = num_rows
        self._text_of = text_of
        self._texts: list[str] = []
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def search(self, text: str) -> tuple[npt.NDArray[np.bool_], int]:
        """Which samples contain a text, ignoring case, and how many samples were searched.

        Returns:
            A mask of shape (samples,), False for samples that are not decoded yet; and the number
            of decoded samples, which are the first ones.
        """
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._decode_all, daemon=True)
                self._thread.start()
        self._thread.join(timeout=PATIENCE)
        num_searched = len(self._texts)
        wanted = text.casefold()
        matches = np.zeros(self._num_rows, dtype=bool)
        matches[:num_searched] = [wanted in known for known in self._texts[:num_searched]]
        return matches, num_searched

    def _decode_all(self) -> None:
        for row in range(self._num_rows):
            self._texts.append(self._text_of(row).casefold())
