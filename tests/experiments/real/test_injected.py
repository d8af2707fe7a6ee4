"""Injected noise: the spans are what changed, the rest stays, and the shares are as asked."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.real.noise import (
    CLEAN,
    FUNCTIONS,
    KINDS,
    first_sentences,
    inject,
)
from experiments.real.records import Record

TEXT = "Marie Curie was born in Warsaw in 1867. She is known for radioactivity. It was new."
FOREIGN = "Paris is the capital of France."
RECORDS = [Record(f"Question {i}?", f"{TEXT} Number {i} is it.") for i in range(60)]


def outside(text, spans):
    """What is left of a text without its spans."""
    kept, at = "", 0
    for begin, end in spans:
        kept += text[at:begin]
        at = end
    return kept + text[at:]


@pytest.mark.parametrize("kind", ["swapped", "refused"])
def test_a_replaced_response_is_noise_from_start_to_end(kind):
    text, spans = FUNCTIONS[kind](random.Random(0), TEXT, FOREIGN)
    # One character after the last stands for the end of the response.
    assert spans == [(0, len(text) + 1)]
    assert text != TEXT


@pytest.mark.parametrize("kind", ["junk", "negated"])
@pytest.mark.parametrize("seed", range(5))
def test_what_was_inserted_is_marked(kind, seed):
    text, spans = FUNCTIONS[kind](random.Random(seed), TEXT, FOREIGN)
    assert outside(text, spans).strip() == TEXT
    assert len(spans) == 1


@pytest.mark.parametrize("kind", ["wrong value", "garbled"])
@pytest.mark.parametrize("seed", range(5))
def test_what_was_replaced_is_marked(kind, seed):
    text, spans = FUNCTIONS[kind](random.Random(seed), TEXT, FOREIGN)
    at = 0
    for part in outside_parts(text, spans):
        # Every part that is not marked occurs in the original, in the same order.
        at = TEXT.index(part, at) + len(part)
    assert all(text[begin:end] not in ("", " ") for begin, end in spans)
    assert text != TEXT


def outside_parts(text, spans):
    ends = [0, *(end for _, end in spans)]
    begins = [*(begin for begin, _ in spans), len(text)]
    return [text[a:b] for a, b in zip(ends, begins, strict=True)]


@given(response=st.text(max_size=40), seed=st.integers(0, 99))
def test_spans_stay_inside_any_text(response, seed):
    for function in FUNCTIONS.values():
        made = function(random.Random(seed), response, FOREIGN)
        if made is not None:
            text, spans = made
            assert spans
            assert all(0 <= begin < end <= len(text) + 1 for begin, end in spans)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_the_share_is_exact_and_kinds_are_even(share):
    noisy = inject(RECORDS, [FOREIGN], [FOREIGN], share, seed=3)
    kinds = Counter(record.kind for record in noisy)
    assert sum(kinds[kind] for kind in KINDS) == round(share * len(RECORDS))
    assert max(kinds[kind] for kind in KINDS) - min(kinds[kind] for kind in KINDS) <= 1
    for before, after in zip(RECORDS, noisy, strict=True):
        assert before.prompt == after.prompt
        if after.kind == CLEAN:
            assert (after.response, after.spans) == (before.response, ())


def test_the_seed_decides():
    first, same, other = (inject(RECORDS, [FOREIGN], [FOREIGN], 0.4, seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_a_kind_without_a_place_is_left_out():
    plain = [Record("?", "no place") for _ in range(12)]
    noisy = inject(plain, ["other"], ["A sentence."], 1.0, seed=0)
    assert not {"wrong value", "negated"} & {record.kind for record in noisy}


def test_first_sentences_have_the_length_of_a_sentence():
    records = [Record("Short. More.", ""), Record(f"{TEXT}", ""), Record("x" * 200, "")]
    assert first_sentences(records) == ["Marie Curie was born in Warsaw in 1867."]
