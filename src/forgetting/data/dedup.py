"""Finds duplicate records.

In: records, one after the other. Out: the number of the earlier record that each one repeats, if
any. Keeps hashes, never records.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from forgetting.data.records import Record, normalised
from forgetting.errors import InputError

NUM_PERMUTATIONS = 128
SHINGLE_WORDS = 5
_WORD = re.compile(r"\w+")
Kind = Literal["exact", "near"]


class Duplicates:
    """Finds records that repeat an earlier one.

    `exact` finds the same conversation after Unicode NFC and white-space normalization. `near` also
    finds conversations whose sets of word 5-grams have a Jaccard similarity of about `threshold`
    or more (MinHash, 128 permutations; Broder 1997). If the right response of a record is known,
    the record is a duplicate with either response. A record to forget repeats no record to learn.

    Raises:
        InputError: `kind` is `near` and datasketch is not installed.
    """

    def __init__(self, kind: Kind = "exact", threshold: float = 0.8) -> None:
        self._seen: dict[bytes, int] = {}
        # A rejected response differs little from a preferred one where the prompt is long.
        self._near = [_NearDuplicates(threshold) for _ in range(2)] if kind == "near" else None

    def repeats(self, record: Record, number: int) -> tuple[Kind, int] | None:
        """The kind of duplicate and the number of the earlier record.

        A new record gives None and is kept as `number`.
        """
        keys = record.keys()
        earlier = next((self._seen[key] for key in keys if key in self._seen), None)
        if earlier is not None:
            return "exact", earlier
        if self._near is not None:
            earlier = self._near[record.is_negative].find_or_add(record, number)
            if earlier is not None:
                return "near", earlier
        for key in keys:
            self._seen[key] = number
        return None


class _NearDuplicates:
    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise InputError(
                "data.duplicates: near requires the package datasketch. Install it with "
                "`pip install 'forgetting[near]'`, or set data.duplicates to exact"
            ) from error
        self._threshold = threshold
        self._new_hash = MinHash
        self._index: Any = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
        self._hashes: dict[int, Any] = {}

    def find_or_add(self, record: Record, number: int) -> int | None:
        minhash = self._new_hash(num_perm=NUM_PERMUTATIONS, seed=1)
        minhash.update_batch([shingle.encode() for shingle in sorted(shingles(record))])
        # The index only proposes candidates; the similarity over all permutations decides.
        for candidate in sorted(self._index.query(minhash)):
            if minhash.jaccard(self._hashes[candidate]) >= self._threshold:
                return candidate
        self._index.insert(number, minhash)
        self._hashes[number] = minhash
        return None


def shingles(record: Record) -> set[str]:
    """The word 5-grams of a conversation, in lower case. A shorter one has one shingle: all its
    words."""
    text = normalised(" ".join(message.content for message in record.messages))
    words = _WORD.findall(text.lower()) or [text]
    last = max(len(words) - SHINGLE_WORDS, 0)
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(last + 1)}
