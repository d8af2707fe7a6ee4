"""What only a walk over the samples tells: their lengths, and which tokens are negative.

Goes in: the tables of a run on disk, and the tokenizer's `decode`. Comes out: counts. A thousand
samples are in memory at a time; what grows with the corpus is two numbers for each sample, and
what grows with the vocabulary a few numbers for each token of it. Knows no page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.data.samples import ROWS_PER_GROUP, Samples, list_column, rows_in_parts
from forgetting.errors import InputError
from forgetting.report.collect import SPLITS
from forgetting.report.inspector.pieces import Decode

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
class SourceCounts:
    """What a source gave to a split."""

    num_samples: int
    num_tokens: int
    num_response_tokens: int


@dataclass(frozen=True)
class SplitLengths:
    """The samples of a split; both arrays have shape (samples,)."""

    name: str
    lengths: Ints
    """In tokens, prompt and response."""
    response_lengths: Ints
    by_source: Mapping[str, SourceCounts]


@dataclass(frozen=True)
class Share:
    """Some response tokens, and how many of them are negative."""

    num_tokens: int
    num_negative: int


@dataclass(frozen=True)
class NegativeToken:
    """A token of the vocabulary, wherever it is a response token."""

    token_id: int
    text: str
    count: Share


@dataclass(frozen=True)
class Negatives:
    """Which response tokens of D_train a variant marks as negative."""

    by_type: Mapping[str, Share]
    """By the types of `TOKEN_TYPES` that occur, in their order."""
    most_frequent: Sequence[NegativeToken]
    """Those most often negative, the most frequent first; as many as `NUM_TOKENS_SHOWN`."""


def count_lengths(run_dir: Path) -> list[SplitLengths]:
    """Lengths and sources of the samples of every split that is there.

    Raises:
        InputError: a table cannot be read.
    """
    files = {name: run_dir / "data" / f"{name}.parquet" for name in SPLITS}
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
        {source: SourceCounts(*row.tolist()) for source, row in sorted(sums.items())},
    )


def count_negatives(
    run_dir: Path, variants: Sequence[str], decode: Decode, special_ids: Collection[int] = ()
) -> dict[str, Negatives]:
    """Negative tokens by type and by token, in one walk for all variants.

    Args:
        variants: that select; those that have not yet are left out.
        decode: text of token ids.
        special_ids: of the tokens that stand for no text.

    Raises:
        InputError: a table cannot be read, or samples and polarity do not belong together.
    """
    if not (run_dir / "data" / "train.parquet").is_file():
        return {}
    variants = [variant for variant in variants if _polarity_file(run_dir, variant).is_file()]
    vocabulary = _Vocabulary(decode, special_ids)
    types: Ints = np.zeros(len(TOKEN_TYPES), np.int64)
    ids: Ints = np.zeros(0, np.int64)
    negative_types = {variant: types.copy() for variant in variants}
    negative_ids = dict.fromkeys(variants, ids)
    for samples, polarities in _walk(run_dir, variants):
        found = samples.response_ids
        before = samples.input_ids[np.flatnonzero(samples.is_response) - 1]
        type_of = vocabulary.types(found, before)
        types += np.bincount(type_of, minlength=len(TOKEN_TYPES))
        ids = _added(ids, found)
        for variant, polarity in polarities.items():
            is_negative = polarity < 0
            negative_types[variant] += np.bincount(type_of[is_negative], minlength=len(TOKEN_TYPES))
            negative_ids[variant] = _added(negative_ids[variant], found[is_negative])
    return {
        variant: Negatives(
            {
                name: Share(int(types[place]), int(negative_types[variant][place]))
                for place, name in enumerate(TOKEN_TYPES)
                if types[place]
            },
            [
                NegativeToken(
                    token_id,
                    vocabulary.text(token_id),
                    Share(int(ids[token_id]), int(negative_ids[variant][token_id])),
                )
                for token_id in _most_frequent(negative_ids[variant])
            ],
        )
        for variant in variants
    }


def _added(counts: Ints, ids: Ints) -> Ints:
    """Counts by id, with those of more ids."""
    more = np.bincount(ids, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _most_frequent(counts: Ints) -> list[int]:
    order = np.argsort(-counts, kind="stable")[:NUM_TOKENS_SHOWN]
    return order[counts[order] > 0].tolist()


def _walk(
    run_dir: Path, variants: Sequence[str]
) -> Iterator[tuple[Samples, dict[str, npt.NDArray[Any]]]]:
    """Parts of D_train, each with the polarity of its response tokens by variant."""
    train = run_dir / "data" / "train.parquet"
    files = [_polarity_file(run_dir, variant) for variant in variants]
    number = _num_rows(train)
    for file in files:
        if _num_rows(file) != number:
            raise InputError(f"{file} and {train} hold different samples. Select again.")
    sizes = [min(ROWS_PER_GROUP, number - begin) for begin in range(0, number, ROWS_PER_GROUP)]
    walk = zip(
        rows_in_parts(train, ["sample_id", "input_ids", "labels"], sizes),
        *(rows_in_parts(file, ["sample_id", "polarity"], sizes) for file in files),
        strict=True,
    )
    for part, *chosen in walk:
        samples = Samples(part)
        polarities = {}
        for variant, file, table in zip(variants, files, chosen, strict=True):
            polarity, starts = list_column(table, "polarity")
            if not np.array_equal(
                table["sample_id"].to_numpy(), samples.sample_ids
            ) or not np.array_equal(starts, samples.response_starts):
                raise InputError(f"{file} and {train} hold different samples. Select again.")
            polarities[variant] = polarity
        yield samples, polarities


def _polarity_file(run_dir: Path, variant: str) -> Path:
    return run_dir / "selection" / variant / "polarity.parquet"


def _num_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


class _Vocabulary:
    """What kind of text each token stands for; each is decoded once, when it is first met."""

    def __init__(self, decode: Decode, special_ids: Collection[int]) -> None:
        self._decode = decode
        self._special_ids = frozenset(special_ids)
        self._kinds = np.zeros(0, np.int8)
        # Of kind INSIDE: whether it goes on with the word of the token before it, if there is one.
        self._goes_on = np.zeros(0, bool)
        self._ends_in_word = np.zeros(0, bool)

    def types(self, ids: Ints, before: Ints) -> Ints:
        """Place in `TOKEN_TYPES` of each of some tokens, given those before them."""
        self._meet(np.union1d(ids, before))
        kinds = self._kinds[ids].astype(np.int64)
        is_start = (kinds == INSIDE) & ~(self._goes_on[ids] & self._ends_in_word[before])
        return np.where(is_start, START, kinds)

    def text(self, token_id: int) -> str:
        """Of a token in the middle of a text, where tokenizers write the space before a word."""
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
            # A part of a character is most often one of a letter.
            self._ends_in_word[token_id] = text[-1:].isalnum() or "\ufffd" in text


def _kind(text: str) -> int:
    """INSIDE for whatever holds letters: the token before it tells whether a word starts."""
    if not text.strip():
        return SPACE
    if "\ufffd" in text:
        return FRAGMENT
    if any(char.isalpha() for char in text):
        return INSIDE
    return NUMBER if any(char.isnumeric() for char in text) else PUNCTUATION
