"""Real records: one prompt and one response each.

In: a folder with Alpaca, Dolly, Open Assistant 2, FLAN's chains of thought, and HaluEval, as their
authors publish them. Out: `Record`s in an order that depends on nothing but the corpus.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.errors import InputError

CORPORA = ("alpaca", "dolly", "oasst", "flan")
MIXED = "mixed"
"""Two records of Alpaca for each one of Dolly."""
MARKED = "halueval"
"""Replies with spans that people marked as hallucinated."""
FILES = {
    "alpaca": ["train/alpaca_data.json"],
    "dolly": ["train/dolly_3k.json"],
    "oasst": ["train/oasst2_filtered.jsonl"],
    "flan": [
        f"train/flan_v2_cot/{name}_train.tsv" for name in ("creak", "gsm8k", "qasc", "strategyqa")
    ],
    MARKED: ["noise/halueval_general_spans.json"],
}
# Characters of a prompt and of a response. Longer ones are left out: a CPU has to read them.
MAX_CHARACTERS = 1500
Span = tuple[int, int]


@dataclass(frozen=True)
class Record:
    """A prompt and its response."""

    prompt: str
    response: str
    spans: tuple[Span, ...] = ()
    """Characters of the response that are known to be wrong."""


def load_records(data_dir: Path, corpus: str) -> list[Record]:
    """The usable records of a corpus, shuffled.

    Raises:
        InputError: a file is missing.
    """
    if corpus == MIXED:
        first, second = (load_records(data_dir, name) for name in ("alpaca", "dolly"))
        pairs = zip(first[::2], first[1::2], second, strict=False)
        return [record for group in pairs for record in group]
    found = []
    for name in FILES[corpus]:
        path = data_dir / name
        if not path.is_file():
            raise InputError(f"{path} is missing. Give the folder that holds {name}")
        found += READERS[corpus](path)
    usable = [
        record
        for record in dict.fromkeys(found)
        if record.prompt
        and record.response
        and max(len(record.prompt), len(record.response)) <= MAX_CHARACTERS
    ]
    random.Random(corpus).shuffle(usable)
    return usable


def _instructions(path: Path) -> Iterator[Record]:
    for row in json.loads(path.read_text(encoding="utf-8")):
        yield Record(f"{row['instruction']}\n\n{row['input']}".strip(), row["output"].strip())


def _trees(path: Path) -> Iterator[Record]:
    """The opening question of each conversation with each of its answers, in any language."""
    for line in path.read_text(encoding="utf-8").splitlines():
        opening: dict[str, Any] = json.loads(line)["prompt"]
        # Characters of some scripts take several tokens, and a prompt must leave room.
        if len(opening["text"].encode()) > MAX_CHARACTERS:
            continue
        for reply in opening["replies"]:
            if reply["role"] == "assistant":
                yield Record(opening["text"].strip(), reply["text"].strip())


def _chains(path: Path) -> Iterator[Record]:
    """Questions whose response is a chain of thought and then the answer."""
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = line.replace("\\n", "\n").split("\t")
        if len(fields) == 3:
            question, answer, thought = (field.strip() for field in fields)
            yield Record(question, f"{thought} The answer is {answer}.")


def _marked(path: Path) -> Iterator[Record]:
    for row in json.loads(path.read_text(encoding="utf-8")):
        if row["char_spans"]:
            spans = tuple((begin, end) for begin, end in row["char_spans"])
            yield Record(row["prompt"], row["response"], spans)


READERS = {
    "alpaca": _instructions,
    "dolly": _instructions,
    "oasst": _trees,
    "flan": _chains,
    MARKED: _marked,
}
