"""Cuts token ids into readable pieces of text.

Input: ids and a `decode`. Output: the shortest runs of tokens that form whole characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special tokens included. Appending tokens may only append text, except for the
bytes of an incomplete character."""


def piece_spans(ids: Sequence[int], decode: Decode) -> list[tuple[int, int, str]]:
    """Cut `ids` into (start, stop, text) at character boundaries. The texts join to the whole text.

    Each piece is decoded together with the one before it, because tokenizers treat a first token
    differently.
    """
    spans: list[tuple[int, int, str]] = []
    before, start = 0, 0
    for stop in range(1, len(ids) + 1):
        known, text = decode(ids[before:start]), decode(ids[before:stop])
        is_last = stop == len(ids)
        if is_last or (text.startswith(known) and not text.endswith("\ufffd")):
            spans.append((start, stop, text[len(known) :]))
            before, start = start, stop
    return spans
