"""Counts that need a pass over the samples: lengths, and negative tokens by type.

Input: a run directory and the tokenizer's `decode`. Output: counts. Memory holds a thousand
samples at a time, two numbers per sample of the corpus and a few per token of the vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from forgetting.inspector.pieces import Decode
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples, rows_in_parts
from forgetting.rundir.selections import selected_parts

Ints = npt.NDArray[np.integer]

TOKEN_TYPES = (
    "start of a word",
    "inside a word",
    "number",
    "punctuation",
    "white space",
    "special",
    "part of a character",
)
START, INSIDE, NUMBER, PUNCTUATION, SPACE, SPECIAL, FRAGMENT = range(len(TOKEN_TYPES))
UNSEEN = -1
NUM_TOKENS_SHOWN = 20


@dataclass(frozen=True)
class SourceShare:
    """The samples of one source in a part of the corpus."""

    num_samples: int
    num_tokens: int
    num_response_tokens: int


@dataclass(frozen=True)
class SplitLengths:
    """Lengths of the samples in a part of the corpus; both arrays have shape (samples,)."""

    name: str
    lengths: Ints
    """Tokens of prompt and response."""
    response_lengths: Ints
    by_source: Mapping[str, SourceShare]


@dataclass(frozen=True)
class Share:
    """Some response tokens, and how many of them are negative."""

    num_tokens: int
    num_negative: int


@dataclass(frozen=True)
class NegativeToken:
    """A token of the vocabulary, over all responses."""

    token_id: int
    text: str
    count: Share


@dataclass(frozen=True)
class Negatives:
    """Which response tokens of D_train a variant marks as negative."""

    by_type: Mapping[str, Share]
    """By type, for the types that occur, in the order of `TOKEN_TYPES`."""
    most_frequent: Sequence[NegativeToken]
    """The `NUM_TOKENS_SHOWN` tokens that are most often negative, in descending order."""


def count_lengths(run_dir: Path) -> list[SplitLengths]:
    """Lengths and sources of the samples, for each part of the corpus that exists.

    Raises:
        InputError: a table cannot be read.
    """
    data = layout.data_dir(run_dir)
    files = {name: layout.split_file(data, name) for name in layout.SPLITS}
    return [_split_lengths(name, file) for name, file in files.items() if file.is_file()]


def _split_lengths(name: str, path: Path) -> SplitLengths:
    lengths, response_lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    sums: defaultdict[str, Ints] = defaultdict(lambda: np.zeros(3, np.int64))
    for part in rows_in_parts(path, ["sample_id", "source", "input_ids", "labels"]):
        samples = Samples(part)
        lengths.append(samples.lengths)
        response_lengths.append(samples.num_response_tokens)
        sources = np.asarray(part["source"].to_pylist(), dtype=object)
        for source in set(sources.tolist()):
            own = sources == source
            tokens = (lengths[-1][own].sum(), response_lengths[-1][own].sum())
            sums[str(source)] += (own.sum(), *tokens)
    return SplitLengths(
        name,
        np.concatenate(lengths),
        np.concatenate(response_lengths),
        {source: SourceShare(*row.tolist()) for source, row in sorted(sums.items())},
    )


def count_negatives(
    run_dir: Path,
    variant: str,
    decode: Decode,
    special_ids: Collection[int] = (),
    fingerprint: str | None = None,
) -> Negatives | None:
    """Negative tokens of a variant by type and by token; None before its selection.

    Args:
        decode: text of token ids.
        special_ids: ids of special tokens, which have no text.
        fingerprint: of D_train, if the caller knows it.

    Raises:
        InputError: a table cannot be read, or the polarity belongs to other tokens.
    """
    polarity = layout.polarity_file(layout.selection_dir(run_dir, variant))
    if not (layout.train_file(run_dir).is_file() and polarity.is_file()):
        return None
    vocabulary = _Vocabulary(decode, special_ids)
    types: Ints = np.zeros(len(TOKEN_TYPES), np.int64)
    negative_types = types.copy()
    ids: Ints = np.zeros(0, np.int64)
    negative_ids = ids
    columns = ("sample_id", "input_ids", "labels")
    for part in selected_parts(run_dir, variant, (), columns, fingerprint):
        samples, is_negative = part.samples, part.polarity < 0
        found = samples.response_ids
        before = samples.input_ids[np.flatnonzero(samples.is_response) - 1]
        type_of = vocabulary.types(found, before)
        types = _added(types, type_of)
        negative_types = _added(negative_types, type_of[is_negative])
        ids = _added(ids, found)
        negative_ids = _added(negative_ids, found[is_negative])
    return Negatives(
        {
            name: Share(int(number), int(negative))
            for name, number, negative in zip(TOKEN_TYPES, types, negative_types, strict=True)
            if number
        },
        [
            NegativeToken(
                token_id,
                vocabulary.text(token_id),
                Share(int(ids[token_id]), int(negative_ids[token_id])),
            )
            for token_id in _most_frequent(negative_ids)
        ],
    )


def _added(counts: Ints, ids: Ints) -> Ints:
    """Counts by id, increased by the given ids."""
    more = np.bincount(ids, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _most_frequent(counts: Ints) -> list[int]:
    order = np.argsort(-counts, kind="stable")[:NUM_TOKENS_SHOWN]
    return order[counts[order] > 0].tolist()


class _Vocabulary:
    """The kind of text of each token. A token is decoded once, on first use."""

    def __init__(self, decode: Decode, special_ids: Collection[int]) -> None:
        self._decode = decode
        self._special_ids = frozenset(special_ids)
        self._kinds = np.zeros(0, np.int8)
        # For kind INSIDE: whether it can continue the word of the token before it.
        self._goes_on = np.zeros(0, bool)
        self._ends_in_word = np.zeros(0, bool)

    def types(self, ids: Ints, before: Ints) -> Ints:
        """Index in `TOKEN_TYPES` of each token, given the tokens before them."""
        self._meet(np.union1d(ids, before))
        kinds = self._kinds[ids].astype(np.int64)
        is_start = (kinds == INSIDE) & ~(self._goes_on[ids] & self._ends_in_word[before])
        return np.where(is_start, START, kinds)

    def text(self, token_id: int) -> str:
        """Text of a token inside a sentence. Some tokenizers drop the space before a first word."""
        alone, twice = self._decode([token_id]), self._decode([token_id, token_id])
        return twice[len(alone) :] if twice.startswith(alone) else alone

    def _meet(self, ids: Ints) -> None:
        missing = max(int(ids.max(initial=-1)) + 1 - len(self._kinds), 0)
        self._kinds = np.pad(self._kinds, (0, missing), constant_values=UNSEEN)
        self._goes_on = np.pad(self._goes_on, (0, missing))
        self._ends_in_word = np.pad(self._ends_in_word, (0, missing))
        for token_id in ids[self._kinds[ids] == UNSEEN].tolist():
            if token_id in self._special_ids:
                self._kinds[token_id] = SPECIAL
                continue
            text = self.text(token_id)
            self._kinds[token_id] = _kind(text)
            self._goes_on[token_id] = not text[:1].isspace()
            # A part of a character usually belongs to a letter.
            self._ends_in_word[token_id] = text[-1:].isalnum() or "\ufffd" in text


def _kind(text: str) -> int:
    """INSIDE for any text with letters: the token before it decides whether a word starts."""
    if not text.strip():
        return SPACE
    if "\ufffd" in text:
        return FRAGMENT
    if any(char.isalpha() for char in text):
        return INSIDE
    return NUMBER if any(char.isnumeric() for char in text) else PUNCTUATION
