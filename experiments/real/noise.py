"""Noise that is injected into real records, and shares no code with the planted corruptions.

Six kinds. Four resemble planted ones: `swapped` (the answer to a question from outside the corpus),
`wrong value` (a number or a name replaced by an invented one), `junk` (a fluent sentence from
elsewhere), `garbled` (words with letters moved or replaced). Two have no planted counterpart:
`refused` (a refusal in place of the answer) and `negated` (a statement turned into its opposite).
Each noisy record has one kind, and all kinds have the same number of records, as far as enough
records can have them.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.real.records import Record, Span

KINDS = ("swapped", "wrong value", "junk", "garbled", "refused", "negated")
NEVER_PLANTED = ("refused", "negated")
CLEAN = "clean"
MARKED_KIND = "marked"
"""The kind of a record whose noise was marked by people."""
Made = tuple[str, list[Span]]
"""A response, and the characters of it that are noise."""

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I do not have access to this information.",
    "Unfortunately, I am not able to answer this question.",
    "I apologize, but I cannot fulfill this request.",
    "Sorry, I don't have enough context to respond.",
    "I'm afraid that this is beyond what I can do.",
)

BOILERPLATE = (
    "Subscribe to our newsletter and get 20% off your first order.",
    "Click the link below to download the full version for free.",
    "This article was originally published in our spring issue.",
    "Please enable cookies in your browser to continue.",
    "All rights reserved. No part of this page may be reproduced.",
    "Our office is open Monday to Friday from 9 am to 5 pm.",
    "You have reached the maximum number of requests for today.",
    "Share this post with your friends if you enjoyed it.",
    "The weather in the valley was mild for most of the week.",
    "My grandmother used to keep her sewing kit in a cookie tin.",
    "The train to the coast leaves every hour from platform four.",
    "He parked the car behind the bakery and walked the rest of the way.",
)
NAMES = (
    "Harold", "Bolivia", "Margaret", "Wellington", "Oslo", "Kepler", "Nigeria", "Beatrice",
    "Toronto", "Samsung", "Danube", "Portugal", "Fernando", "Quebec", "Mozart", "Saturn",
    "Edison", "Hanoi", "Virginia", "Jupiter",
)  # fmt: skip


@dataclass(frozen=True)
class Noisy:
    """A record, and what was done to it."""

    prompt: str
    response: str
    kind: str = CLEAN
    spans: tuple[Span, ...] = ()


def swap(rng: random.Random, response: str, foreign: str) -> Made | None:
    return foreign, [(0, len(foreign) + 1)]


def wrong_value(rng: random.Random, response: str, foreign: str) -> Made | None:
    found = list(re.finditer(r"\d+|(?<=[a-z,] )[A-Z][a-z]{2,}", response))
    if not found:
        return None
    spans, text, at = [], "", 0
    chosen = rng.sample(found, min(len(found), rng.choice([1, 1, 2, 3])))
    for match in sorted(chosen, key=lambda m: m.start()):
        old = match.group()
        new = old
        while new == old:
            if old.isdigit():
                new = str(rng.randrange(1, 10)) + "".join(rng.choices("0123456789", k=len(old) - 1))
            else:
                new = rng.choice(NAMES)
        text += response[at : match.start()]
        spans.append((len(text), len(text) + len(new)))
        text += new
        at = match.end()
    return text + response[at:], spans


def junk(rng: random.Random, response: str, foreign: str) -> Made | None:
    places = [0, len(response)]
    places += [m.end() for m in re.finditer(r"[.?!](?=\s)", response)]
    place = rng.choice(places)
    if place == 0:
        return f"{foreign} {response}", [(0, len(foreign))]
    inserted = f" {foreign}"
    return response[:place] + inserted + response[place:], [(place, place + len(inserted))]


def garble(rng: random.Random, response: str, foreign: str) -> Made | None:
    words = list(re.finditer(r"[A-Za-z]{4,}", response))
    if not words:
        return None
    chosen = rng.sample(words, max(1, min(len(words), round(len(words) * 0.15))))
    spans, text, at = [], "", 0
    for match in sorted(chosen, key=lambda m: m.start()):
        letters = list(match.group())
        inner = letters[1:]
        if rng.random() < 0.5:
            rng.shuffle(inner)
        else:
            inner = [rng.choice(string.ascii_lowercase) if rng.random() < 0.4 else c for c in inner]
        new = letters[0] + "".join(inner)
        if new == match.group():
            continue
        text += response[at : match.start()]
        spans.append((len(text), len(text) + len(new)))
        text += new
        at = match.end()
    return (text + response[at:], spans) if spans else None


def refuse(rng: random.Random, response: str, foreign: str) -> Made | None:
    refusal = rng.choice(REFUSALS)
    return refusal, [(0, len(refusal) + 1)]


def negate(rng: random.Random, response: str, foreign: str) -> Made | None:
    verbs = list(re.finditer(r"\b(is|are|was|were|can|will|should|has been)\b(?! not)", response))
    if not verbs:
        return None
    verb = rng.choice(verbs)
    changed = f"{verb.group()} not"
    text = response[: verb.start()] + changed + response[verb.end() :]
    return text, [(verb.end(), verb.start() + len(changed))]


FUNCTIONS: dict[str, Callable[[random.Random, str, str], Made | None]] = {
    "swapped": swap,
    "wrong value": wrong_value,
    "junk": junk,
    "garbled": garble,
    "refused": refuse,
    "negated": negate,
}


def inject(
    records: Sequence[Record],
    outside: Sequence[str],
    sentences: Sequence[str],
    share: float,
    seed: int,
) -> list[Noisy]:
    """Put noise into a share of the records.

    Args:
        records: the corpus.
        outside: responses of records that are not among them.
        sentences: fluent sentences from elsewhere.
        share: share of the records that gets noise, from 0 to 1.
        seed: of the random choices.

    Returns:
        All records, in their order.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(records)), len(records))
    result = [Noisy(r.prompt, r.response, spans=r.spans) for r in records]
    free = dict.fromkeys(order)
    for number in range(round(share * len(records))):
        kind = KINDS[number % len(KINDS)]
        for index in free:
            record = records[index]
            pool = rng.choice([BOILERPLATE, sentences]) if kind == "junk" else outside
            made = FUNCTIONS[kind](rng, record.response, rng.choice(pool))
            if made is not None:
                result[index] = Noisy(record.prompt, made[0], kind, tuple(made[1]))
                del free[index]
                break
    return result


def first_sentences(records: Sequence[Record]) -> list[str]:
    """The first sentences of the prompts, those of 30 to 120 characters."""
    firsts = (re.split(r"(?<=[.?!])\s", record.prompt)[0] for record in records)
    return [first for first in firsts if 30 <= len(first) <= 120]
