"""Token ids cut into pieces of text that a person can read.

Goes in: ids and a `decode`. Comes out: the shortest runs of tokens that are whole characters.
Knows nothing of scores or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special tokens included. It must only ever add to the text when tokens are
added, but for the bytes of a character that is not complete."""


def piece_spans(ids: Sequence[int], decode: Decode) -> list[tuple[int, int, str]]:
    """Cut `ids` into (start, stop, text) with whole characters; the texts join to the whole.

    Each piece is decoded after the piece before it, as tokenizers treat the first token apart.
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
