"""Real records, and noise injected into them that shares no code with the planted corruptions.

Kinds: `swapped` (the answer to a question from outside the corpus), `wrong value` (a number or a
name replaced by an invented one), `junk` (a fluent sentence from elsewhere), `garbled` (words with
letters moved or replaced). A quarter of the records gets one kind each, in equal parts.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("swapped", "wrong value", "junk", "garbled")
Span = tuple[int, int]

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
    """A record with what was done to it."""

    source: str
    prompt: str
    response: str
    kind: str = "clean"
    spans: tuple[Span, ...] = ()
    clean_response: str = ""


def load_records(data_dir: Path) -> dict[str, list[tuple[str, str]]]:
    """(prompt, response) of Alpaca and Dolly, in an order that does not depend on the run."""
    found = {}
    for source, name in (("alpaca", "alpaca_data.json"), ("dolly", "dolly_3k.json")):
        rows = json.loads((data_dir / "train" / name).read_text())
        pairs = [(f"{r['instruction']}\n\n{r['input']}".strip(), r["output"].strip()) for r in rows]
        pairs = [(p, r) for p, r in pairs if r and len(p) < 2500 and len(r) < 2500]
        random.Random(source).shuffle(pairs)
        found[source] = pairs
    return found


def load_sentences(data_dir: Path) -> list[str]:
    """Fluent sentences from another data set: explanations of sums in words."""
    lines = (data_dir / "train/flan_v2_cot/gsm8k_train.tsv").read_text().splitlines()
    sentences = []
    for line in lines:
        fields = line.split("\t")
        if len(fields) == 3:
            first = re.split(r"(?<=[.?!])\s", fields[0])[0]
            if 30 < len(first) < 120:
                sentences.append(first)
    return sentences


def swap(rng: random.Random, response: str, foreign: str) -> tuple[str, list[Span]] | None:
    return foreign, [(0, len(foreign) + 1)]


def wrong_value(rng: random.Random, response: str, foreign: str) -> tuple[str, list[Span]] | None:
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


def junk(rng: random.Random, response: str, foreign: str) -> tuple[str, list[Span]] | None:
    places = [0, len(response)]
    places += [m.end() for m in re.finditer(r"[.?!](?=\s)", response)]
    place = rng.choice(places)
    if place == 0:
        return f"{foreign} {response}", [(0, len(foreign))]
    inserted = f" {foreign}"
    return response[:place] + inserted + response[place:], [(place, place + len(inserted))]


def garble(rng: random.Random, response: str, foreign: str) -> tuple[str, list[Span]] | None:
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


FUNCTIONS: dict[str, Callable[[random.Random, str, str], tuple[str, list[Span]] | None]] = {
    "swapped": swap,
    "wrong value": wrong_value,
    "junk": junk,
    "garbled": garble,
}


def inject(
    records: Sequence[tuple[str, str, str]],
    outside: Sequence[str],
    sentences: Sequence[str],
    share: float,
    seed: int,
    kinds: Sequence[str] = KINDS,
) -> list[Noisy]:
    """Put noise into a share of the records.

    Args:
        records: (source, prompt, response) of each.
        outside: responses of records that are not among them.
        sentences: fluent sentences from elsewhere.
        share: share of the records that gets noise.
        seed: of the random choices.
        kinds: which kinds, in equal parts.
    """
    rng = random.Random(seed)
    chosen = rng.sample(range(len(records)), round(share * len(records)))
    result = [Noisy(s, p, r, clean_response=r) for s, p, r in records]
    for number, index in enumerate(chosen):
        source, prompt, response = records[index]
        for attempt in range(len(kinds)):
            kind = kinds[(number + attempt) % len(kinds)]
            foreign = rng.choice(outside)
            if kind == "junk":
                foreign = rng.choice(rng.choice([BOILERPLATE, sentences]))
            made = FUNCTIONS[kind](rng, response, foreign)
            if made is not None:
                text, spans = made
                result[index] = Noisy(source, prompt, text, kind, tuple(spans), response)
                break
    if "wrong value" in kinds:
        _top_up_values(result, len(chosen) // len(kinds), random.Random(f"values {seed}"))
    return result


def _top_up_values(result: list[Noisy], wanted: int, rng: random.Random) -> None:
    """Many responses hold no value: find clean ones that do until the kind has its part."""
    missing = wanted - sum(record.kind == "wrong value" for record in result)
    for index in rng.sample(range(len(result)), len(result)):
        record = result[index]
        made = wrong_value(rng, record.response, "") if record.kind == "clean" else None
        if made is not None and missing > 0:
            text, spans = made
            clean = record.response
            result[index] = Noisy(
                record.source, record.prompt, text, "wrong value", tuple(spans), clean
            )
            missing -= 1


def make_world(
    data_dir: Path, name: str, num_alpaca: int, num_dolly: int, share: float, seed: int
) -> list[Noisy]:
    """Records of a world, with noise. The worlds have no record in common.

    Settings were chosen on `dev`. `test` has been looked at since; `final` is measured once.
    """
    records = load_records(data_dir)
    begin = {"test": 0, "dev": 1000, "final": 2000}[name]
    begin_dolly = {"test": 0, "dev": 500, "final": 1000}[name]
    chosen = [("alpaca", *r) for r in records["alpaca"][begin : begin + num_alpaca]]
    chosen += [("dolly", *r) for r in records["dolly"][begin_dolly : begin_dolly + num_dolly]]
    outside = [r for _, r in records["alpaca"][5000:6000] + records["dolly"][1500:2000]]
    return inject(chosen, outside, load_sentences(data_dir), share, seed)
