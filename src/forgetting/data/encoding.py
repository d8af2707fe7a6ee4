"""Text to token ids with character offsets.

In: text, and the ranges of it in which special tokens are ordinary text. Out: the token ids
and the character range of each. Without such ranges the ids are those of
`tokenizer(text, add_special_tokens=False)`. Knows nothing about conversations or labels.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

Range = tuple[int, int]
"""Characters [start, end) of a text."""
# A text is continued after one of these. At least one of them does not merge with what follows.
_LEADS = ("\n", "a", ".")


class EncodedText(NamedTuple):
    """The tokens of a text."""

    ids: list[int]
    offsets: list[Range]
    """The characters of each token, in ascending order. Tokens that share a character (the bytes
    of an emoji) have the same range."""


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Checksum of the text of every token id: what ids mean, whatever else changes."""
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


class SpecialTokens:
    """The special tokens of a tokenizer: where they are in a text, and what their ids are."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        self.ids = {str(token): id_ for id_, token in added.items() if token.special} | dict(named)
        self.added_ids = {str(token): id_ for id_, token in added.items()} | self.ids
        """Ids of all added tokens: special ones, and others that are never split."""
        self.pattern = _any_of(self.ids)
        self.added_pattern = _any_of(self.added_ids)
        # Some tokens absorb the white space next to them.
        self.strips_before = {str(token) for token in added.values() if token.lstrip}
        self.strips_after = {str(token) for token in added.values() if token.rstrip}


class _Run(NamedTuple):
    """A stretch of text that is encoded in one go: a special token, or the text between two."""

    start: int
    end: int
    special_id: int | None


class TextEncoder:
    """Encodes texts with the fast tokenizer behind `tokenizer`, which is left unchanged."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> None:
        self._special = special
        # A copy without what would cut, pad, or trim the offsets of a token that begins with a
        # space.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.post_processor = None
        self._marks_beginning = self._find_marks_beginning(str(tokenizer.eos_token))

    def _find_marks_beginning(self, token: str) -> bool:
        """Whether a text begins with another token than the same text after a special token."""
        text = "a b"
        return self.encode(f"{token}{text}").ids[1:] != self.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encode texts in parallel, every special token in them as a token."""
        self._backend.encode_special_tokens = False
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [EncodedText(encoding.ids, encoding.offsets) for encoding in encodings]

    def encode(
        self, text: str, literals: Sequence[Range] = (), boundaries: Sequence[int] = ()
    ) -> EncodedText:
        """Encode one text.

        Args:
            literals: ranges in which special tokens are ordinary text.
            boundaries: positions at which a token must begin. What follows is encoded apart from
                what comes before, as it continues a prompt in generation.
        """
        if not literals and not boundaries:
            return self.encode_batch([text])[0]
        whole = EncodedText([], [])
        for start, end in pairwise((0, *boundaries, len(text))):
            inside = [(a - start, b - start) for a, b in literals if start <= a and b <= end]
            part = self._encode_part(text[start:end], inside, is_first=not start)
            whole.ids.extend(part.ids)
            whole.offsets.extend((a + start, b + start) for a, b in part.offsets)
        return whole

    def _encode_part(self, text: str, literals: Sequence[Range], *, is_first: bool) -> EncodedText:
        if not literals:
            return self._encode_text(text, as_text=False, is_continued=not is_first)
        part = EncodedText([], [])
        for run in self._runs(text, literals):
            if run.special_id is not None:
                part.ids.append(run.special_id)
                part.offsets.append((run.start, run.end))
                continue
            is_continued = self._marks_beginning if run.start else not is_first
            content = text[run.start : run.end]
            ids, offsets = self._encode_text(content, as_text=True, is_continued=is_continued)
            part.ids.extend(ids)
            part.offsets.extend((a + run.start, b + run.start) for a, b in offsets)
        return part

    def _runs(self, text: str, literals: Sequence[Range]) -> Iterator[_Run]:
        special, begin = self._special, 0
        for match in special.pattern.finditer(text):
            start, end = match.span()
            if start < begin or any(start < stop and end > first for first, stop in literals):
                continue
            if match[0] in special.strips_before:
                start = begin + len(text[begin:start].rstrip())
            if match[0] in special.strips_after:
                end += len(text) - end - len(text[end:].lstrip())
            if begin < start:
                yield _Run(begin, start, None)
            yield _Run(start, end, special.ids[match[0]])
            begin = end
        if begin < len(text):
            yield _Run(begin, len(text), None)

    def _encode_text(self, text: str, *, as_text: bool, is_continued: bool) -> EncodedText:
        """Encode text; a continued one is not marked as the beginning of a text.

        Some tokenizers put a token or a space before every text. A continued text is therefore
        encoded after a lead, whose tokens are removed again.
        """
        self._backend.encode_special_tokens = as_text
        if is_continued:
            for lead in _LEADS:
                alone = self._backend.encode(lead, add_special_tokens=False)
                joined = self._backend.encode(lead + text, add_special_tokens=False)
                size = len(alone.ids)
                if joined.ids[:size] == alone.ids and joined.offsets[size - 1][1] <= len(lead):
                    offsets = joined.offsets[size:]
                    shifted = [(max(a - len(lead), 0), b - len(lead)) for a, b in offsets]
                    return EncodedText(joined.ids[size:], shifted)
        encoding = self._backend.encode(text, add_special_tokens=False)
        return EncodedText(encoding.ids, encoding.offsets)


def first_from(encoded: EncodedText, position: int) -> int:
    """Index of the first token that begins at or after a character."""
    return bisect_left(encoded.offsets, (position,))


def is_boundary(encoded: EncodedText, position: int) -> bool:
    """Whether no token spans a position."""
    index = first_from(encoded, position)
    return index == 0 or encoded.offsets[index - 1][1] <= position


def _any_of(tokens: dict[str, int]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
