"""Token ids are those of the tokenizer, and offsets say which characters they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.data.encoding import (
    EncodedText,
    SpecialTokens,
    TextEncoder,
    first_from,
    is_boundary,
)
from tests.data.families import TOKENIZERS, tokenizer_of

MARKS = ("<|a|>", "<|b|>")
pieces = st.sampled_from(["the cat", " ", "\n", "</s>", *MARKS, "é", "🙂", "a", "\n\n dog"])
texts = st.lists(pieces, min_size=1, max_size=8).map("".join)


def encoder_of(name):
    tokenizer = tokenizer_of(name, *MARKS)
    return tokenizer, TextEncoder(tokenizer, SpecialTokens(tokenizer))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30)
@given(given_texts=st.lists(texts, max_size=3))
def test_ids_are_those_of_the_tokenizer(name, given_texts):
    tokenizer, encoder = encoder_of(name)
    encoded = encoder.encode_batch(given_texts)
    for text, found in zip(given_texts, encoded, strict=True):
        assert found.ids == tokenizer(text, add_special_tokens=False).input_ids
        starts = [start for start, _ in found.offsets]
        assert starts == sorted(starts)
        assert found.offsets[-1][1] == len(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30)
@given(parts=st.lists(texts, min_size=1, max_size=4), literal=st.sampled_from(MARKS))
def test_a_literal_is_text_and_all_else_stays_as_it_is(name, parts, literal):
    tokenizer, encoder = encoder_of(name)
    before, after = "".join(parts[::2]), "".join(parts[1::2])
    text = before + literal + after
    place = (len(before), len(before) + len(literal))
    found = encoder.encode(text, [place])
    asked = tokenizer(text, add_special_tokens=False).input_ids
    id_ = tokenizer.convert_tokens_to_ids(literal)
    assert found.ids.count(id_) == asked.count(id_) - 1
    inside = [i for i, (a, b) in zip(*found, strict=True) if a < place[1] and b > place[0]]
    assert literal in tokenizer.decode(inside)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30)
@given(before=texts, after=texts)
def test_a_token_begins_at_a_boundary_that_is_asked_for(name, before, after):
    tokenizer, encoder = encoder_of(name)
    found = encoder.encode(before + after, boundaries=[len(before)])
    assert is_boundary(found, len(before))
    prompt = tokenizer(before, add_special_tokens=False).input_ids
    assert found.ids[: len(prompt)] == prompt
    assert first_from(found, len(before)) == len(prompt)
    # No space is put before what continues a text.
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    text = tokenizer.decode([*anchor, *found.ids[len(prompt) :]])
    if name != "stripping" and not any(mark in after for mark in ("</s>", *MARKS)):
        assert text.removeprefix(" ") == "a" + after


def test_positions_within_and_between_tokens():
    encoded = EncodedText([5, 6, 7, 8], [(0, 3), (3, 4), (3, 4), (6, 8)])
    assert [first_from(encoded, at) for at in (0, 1, 3, 4, 6, 7)] == [0, 1, 1, 3, 3, 4]
    assert [is_boundary(encoded, at) for at in (0, 1, 3, 4, 5, 6, 7)] == [
        True, False, True, True, True, True, False,
    ]  # fmt: skip
