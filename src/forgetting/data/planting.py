"""Plants noise into copies of records.

Input: conversations as text and a random generator. Output: copies, each with at most one
corrupted response, the kind of corruption and the character spans that are bad. Knows nothing of
tokens, models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forgetting.method.corruptions import (
    CLEAN,
    CORRUPTIONS,
    Corpus,
    Corruption,
    Span,
    Turn,
    checked,
)

CLEAN_SHARE = 1 / 3
MAX_COPIES = 2000
MIN_COPIES = 200
SMALL_COPIES = 600
MAX_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Planted:
    """A copy of a record."""

    index: int
    """The record that it was copied from."""
    turns: tuple[Turn, ...]
    """The conversation. A corrupted response is the last turn: what came after it is cut off."""
    kind: str
    """A name in `CORRUPTIONS`, or "clean"."""
    spans: tuple[Span, ...]
    """Bad characters of the last turn; empty if it is clean."""


def default_num_copies(num_records: int) -> int:
    """40 % of the records, but in a small corpus twice the records and at most 600, since few
    replaced responses do not show whether it holds noise. At least 200, at most 2,000; 0 if there
    are no records."""
    if not num_records:
        return 0
    few = min(SMALL_COPIES, 2 * num_records)
    return min(MAX_COPIES, max(MIN_COPIES, few, round(MAX_SHARE * num_records)))


def plant(
    conversations: Sequence[Sequence[Turn]],
    rng: np.random.Generator,
    num_copies: int | None = None,
    corruptions: Mapping[str, Corruption] | None = None,
    clean_share: float = CLEAN_SHARE,
) -> list[Planted]:
    """Copy records and plant noise into the copies.

    Args:
        conversations: turns of each record. One without a response is not copied.
        rng: decides everything: equal seeds give equal copies.
        num_copies: how many; default `default_num_copies`. More than there are records: records
            are copied more than once.
        corruptions: the kinds to plant; default all of `CORRUPTIONS`.
        clean_share: share of the copies that stays clean. Copies that no kind applies to are
            clean, too.

    Returns:
        The copies, in random order.
    """
    usable = [
        index
        for index, turns in enumerate(conversations)
        if any(role == "assistant" and content.strip() for role, content in turns)
    ]
    if num_copies is None:
        num_copies = default_num_copies(len(usable))
    kinds = CORRUPTIONS if corruptions is None else corruptions
    if not usable or num_copies < 1:
        return []
    corpus = Corpus(conversations, rng)
    rounds = -(-num_copies // len(usable))
    chosen = np.concatenate([rng.permutation(usable) for _ in range(rounds)])[:num_copies]
    num_clean = round(clean_share * num_copies)
    wanted = _kinds_in_turn(kinds, num_copies - num_clean, rng)
    names = [*wanted, *[None] * (num_copies - len(wanted))]
    order = rng.permutation(num_copies)
    copies = []
    for index, place in zip(chosen, order, strict=True):
        name = names[place]
        turns = tuple((role, content) for role, content in conversations[index])
        copy = None if name is None else _corrupt(int(index), turns, name, kinds, corpus, rng)
        copies.append(copy or Planted(int(index), turns, CLEAN, ()))
    return copies


def _kinds_in_turn(
    kinds: Mapping[str, Corruption], count: int, rng: np.random.Generator
) -> list[str]:
    """Names of kinds in proportion to their weights, as even as can be."""
    if not kinds:
        return []
    weights = np.array([kind.weight for kind in kinds.values()], dtype=float)
    edges = (np.arange(count) + rng.random()) / max(count, 1)
    places = np.searchsorted(np.cumsum(weights) / weights.sum(), edges, side="right")
    names = list(kinds)
    return [names[min(place, len(names) - 1)] for place in places]


def _corrupt(
    index: int,
    turns: tuple[Turn, ...],
    name: str,
    kinds: Mapping[str, Corruption],
    corpus: Corpus,
    rng: np.random.Generator,
) -> Planted | None:
    """Corrupt one response of a record by the kind that is wanted, else by one that applies."""
    places = [i for i, (role, text) in enumerate(turns) if role == "assistant" and text.strip()]
    place = places[int(rng.integers(len(places)))]
    prompt = turns[place - 1][1] if place else ""
    others = [other for other in kinds if other != name]
    for kind in [name, *(others[i] for i in rng.permutation(len(others)))]:
        found = checked(kind, kinds[kind].function(turns[place][1], prompt, corpus, rng))
        if found is not None and found.text.strip() and found.text != turns[place][1]:
            return Planted(index, (*turns[:place], ("assistant", found.text)), kind, found.spans)
    return None
