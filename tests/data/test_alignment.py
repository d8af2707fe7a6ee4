"""Labels are exactly what a model generates, over tokenizers and templates of every kind."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.data.alignment import IGNORE_INDEX, Tokenization, Tokens, _flags, cut
from forgetting.data.encoding import EncodedText
from forgetting.errors import InputError
from forgetting.formats import Unusable
from tests.conftest import byte_tokenizer
from tests.data.families import (
    FAMILIES,
    SHARED,
    TOKENIZERS,
    record,
    text_record,
    tokenization,
    tokenizer_of,
)

ORDINARY = ["the cat", " ", "\n", "\n\n", "é", "e\u0301", "猫", "🙂", "\u202e", "\x00", "a", "\t"]
MARKUP = ["<script>", "{{7*7}}", "Ω≈ç√", "\ue0000\ue001", "[INST]", "\u2028", "a\r\n"]
SPECIAL = ["</s>", "<s>", "<|user|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<end_of_turn>"]


def texts_of(pieces):
    """Texts that say something."""
    return st.lists(st.sampled_from(pieces), min_size=1, max_size=6).map("".join)


# White space at the ends, and in between, is what templates and tokenizers disagree about.
ordinary = texts_of(ORDINARY + MARKUP).filter(str.strip)
texts = texts_of(ORDINARY + MARKUP + SPECIAL).filter(str.strip)
pairs = pytest.mark.parametrize(
    ("name", "family"), [(name, family) for name in TOKENIZERS for family in FAMILIES]
)


def text_of(token_ids, tokenizer):
    """Decoded after another token, as some decoders drop a space where the text begins."""
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    before, whole = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        for ids in (anchor, anchor + token_ids)
    )
    assert whole.startswith(before)
    return whole.removeprefix(before)


def responses(tokens, tokenizer):
    """The text of each run of labeled tokens."""
    runs, run = [], []
    for label in [*tokens.labels, IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            run.append(label)
        elif run:
            runs.append(text_of(run, tokenizer))
            run = []
    return runs


def spells(name, text, expected):
    """Whether decoded text is what is expected, apart from what the tokenizer does to white space:
    those of the first Llama put a space after every special token, and marks may absorb some."""
    if name == "stripping":
        return "".join(text.split()) == "".join(expected.split())
    if name in ("llama", "stories260K"):
        return text.replace(" ", "") == expected.replace(" ", "")
    return text == expected


def rendered(tokenizer, family, some):
    """The conversation as transformers renders it, with its end mark."""
    turns = [{"role": m.role, "content": m.content} for m in some.messages]
    if family.system_role == "fold" and turns[0]["role"] == "system":
        system, first = turns.pop(0), turns[0]
        first["content"] = f"{system['content']}\n\n{first['content']}"
    text = tokenizer.apply_chat_template(turns, chat_template=family.template, tokenize=False)
    return text + family.appended.replace("</s>", tokenizer.eos_token)


@pairs
@settings(max_examples=12)
@given(contents=st.lists(ordinary, min_size=2, max_size=4), system=st.none() | ordinary)
def test_labels_are_what_a_model_generates(name, family, contents, system):
    contents = contents[: len(contents) // 2 * 2]
    given_family, tokenizer = FAMILIES[family], tokenizer_of(name, *FAMILIES[family].marks)
    tokens = tokenization(name, family).encode(record(*contents, system=system))
    eos_token = tokenizer.eos_token
    *earlier, last = responses(tokens, tokenizer)
    assert spells(name, last, given_family.generated(contents[-1]).replace("</s>", eos_token))
    expected = map(given_family.earlier, contents[1:-1:2]) if given_family.earlier else ()
    for text, generated in zip(earlier, expected, strict=True):
        whole = generated.replace("</s>", eos_token)
        # The last token of a turn without an end mark may merge with what follows.
        assert spells(name, text, whole) or (family == "alpaca" and whole.startswith(text))
    assert tokens.num_context_turns == len(contents) // 2 - 1 - len(earlier)
    assert tokens.labels[-1] in (IGNORE_INDEX, *tokenization(name, family).end_token_ids)


@pairs
@settings(max_examples=12)
@given(contents=st.lists(ordinary, min_size=2, max_size=4), system=st.none() | ordinary)
def test_ids_are_those_of_the_rendered_conversation(name, family, contents, system):
    given_family = FAMILIES[family]
    if given_family.template is None:
        return
    tokenizer = tokenizer_of(name, *given_family.marks)
    some = record(*contents[: len(contents) // 2 * 2], system=system)
    tokens = tokenization(name, family).encode(some)
    text = rendered(tokenizer, given_family, some)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not tokens.num_split_tokens:
        assert tokens.input_ids == ids
        return
    # A token of the whole text spans a prompt and its response: no token of ours does.
    assert tokens.input_ids != ids
    assert tokenizer.decode(tokens.input_ids) == tokenizer.decode(ids) or name == "stripping"


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40)
@given(prompt=texts, response=texts)
def test_the_plain_format_is_tokenized_as_one_text(name, prompt, response):
    tokenizer = tokenizer_of(name)
    tokens = tokenization(name).encode(record(prompt, response))
    (text,) = responses(tokens, tokenizer)
    assert text == response + tokenizer.eos_token
    ids = [i for i in tokens.input_ids if i not in tokenizer.all_special_ids]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert text.removeprefix(" ") == f"<|user|>\n{prompt}\n<|assistant|>\n{response}"


@pairs
@settings(max_examples=12)
@given(prompt=texts, response=texts)
def test_text_of_the_data_never_becomes_a_special_token(name, family, prompt, response):
    tokenizer = tokenizer_of(name, *FAMILIES[family].marks)
    tokens = tokenization(name, family).encode(record(prompt, response))
    known = tokenization(name, family).encode(record("a", "b"))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)

    def found(ids):
        return [i for i in ids if i in special and i != tokenizer.unk_token_id]

    assert found(tokens.input_ids) == found(known.input_ids)
    assert found(tokens.labels) == found(known.labels)
    expected = FAMILIES[family].generated(response)[: -len("</s>")]
    if FAMILIES[family].generated("").endswith("</s>"):
        text = "".join(responses(tokens, tokenizer)).removesuffix(tokenizer.eos_token)
        assert spells(name, text, expected)


def test_turns_that_join_into_a_special_token_are_refused():
    template = "{%- for m in messages -%}{{- m.content -}}{%- endfor -%}{{- eos_token -}}"
    tokens = Tokenization(tokenizer_of("merging", "<|eot|>"), template)
    joined, ordinary = tokens.encode_batch(
        [record("|> b", "c", system="a <|eot"), record("b", "c", system="a <|eot")]
    )
    assert isinstance(joined, Unusable)
    assert "joins turns into a special token" in str(joined)
    assert isinstance(ordinary, Tokens)


def test_a_token_that_would_span_prompt_and_response_is_split():
    tokenizer = tokenizer_of("merging")
    tokens = tokenization("merging").encode(record("q", "\n\n the dog"))
    # The tokenizer merges the line break before the response with those in it.
    whole = tokenizer("<|user|>\nq\n<|assistant|>\n\n\n the dog</s>", add_special_tokens=False)
    assert tokens.num_split_tokens == 1
    assert tokens.input_ids != whole.input_ids
    prompt = tokenizer("<|user|>\nq\n<|assistant|>\n", add_special_tokens=False).input_ids
    assert tokens.input_ids[: len(prompt)] == prompt
    assert tokens.labels[: len(prompt)] == [IGNORE_INDEX] * len(prompt)
    assert responses(tokens, tokenizer) == ["\n\n the dog</s>"]


def test_a_mark_absorbs_white_space_of_the_template_only():
    tokenizer = tokenizer_of("stripping", *FAMILIES["phi-3"].marks)
    tokens = tokenization("stripping", "phi-3").encode(record("q", "\n\n the dog"))
    assert responses(tokens, tokenizer) == ["\n\n the dog<|end|>"]
    assert tokens.num_split_tokens == 1
    assert tokenization("stripping", "phi-3").encode(record("q", "dog")).num_split_tokens == 0


@pairs
def test_a_batch_gives_what_its_records_give_alone(name, family):
    records = [
        record("q", "r"),
        record("a", "one\n", "\n\nb", " two", system="be"),
        record("\n the </s>", "\n\n the cat</s>", noise_spans=((1, 4),)),
        text_record("a text</s> "),
    ]
    tokens = tokenization(name, family)
    assert tokens.encode_batch(records) == [tokens.encode(some) for some in records]
    assert tokens.encode_batch([]) == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_side_of_padding_and_truncation_changes_nothing(name):
    tokenizer = tokenizer_of(name)
    some = record("the cat", "the dog " * 30)
    before = Tokenization(tokenizer).encode(some)
    saved = tokenizer.padding_side, tokenizer.truncation_side
    try:
        tokenizer.padding_side = tokenizer.truncation_side = "left"
        tokenizer("a b c", truncation=True, max_length=1, padding="max_length")
        assert Tokenization(tokenizer).encode_batch([some, record("a", "b")])[0] == before
    finally:
        tokenizer.padding_side, tokenizer.truncation_side = saved


@pytest.mark.parametrize("family", ["plain", "chatml"])
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=20)
@given(text=texts)
def test_a_plain_text_is_labeled_whole(name, family, text):
    tokenizer = tokenizer_of(name, *FAMILIES[family].marks)
    tokens = tokenization(name, family).encode(text_record(text))
    num_before = tokens.input_ids[0] == tokenizer.bos_token_id != tokenizer.eos_token_id
    # The first token of all has nothing to be predicted from.
    assert tokens.labels[1:] == tokens.input_ids[1:]
    assert tokens.labels[0] == IGNORE_INDEX
    assert text_of(tokens.input_ids[num_before:-1], tokenizer) in (text, f" {text}")
    assert tokens.input_ids[-1] == tokenizer.eos_token_id


def test_end_tokens_are_those_that_end_labeled_turns():
    def ends(family, *contents):
        tokenizer = tokenizer_of("merging", *FAMILIES[family].marks)
        tokens = Tokenization(tokenizer, FAMILIES[family].template)
        tokens.encode(record(*contents))
        return {tokenizer.convert_ids_to_tokens(i) for i in tokens.end_token_ids}

    four = "a", "b", "c", "d"
    assert ends("plain", *four) == {"</s>"}
    assert ends("chatml", *four) == {"</s>", "<|im_end|>"}
    assert ends("glm", *four) == {"</s>", "<|user|>"}
    assert ends("phi-3", *four) == {"</s>", "<|end|>"}
    # What ends turns in the history is not what a model ends its answer with.
    assert ends("harmony", *four) == {"</s>", "<|return|>"}
    assert ends("alpaca", *four) == {"</s>"}


def test_special_tokens_in_text_become_tokens_only_if_asked():
    tokenizer = tokenizer_of("merging", "<|im_start|>", "<|im_end|>", "<|eot|>")
    some = record("a <|eot|> b", "c <|im_start|>d</s>")
    for template in (None, FAMILIES["chatml"].template):
        text = Tokenization(tokenizer, template).encode(some)
        tokens = Tokenization(tokenizer, template, special_tokens_in_text=True).encode(some)
        asked = [tokenizer.convert_tokens_to_ids(t) for t in ("<|eot|>", "<|im_start|>", "</s>")]
        for token in asked:
            assert tokens.input_ids.count(token) == text.input_ids.count(token) + 1
        assert tokenizer.decode(tokens.input_ids) == tokenizer.decode(text.input_ids)
        assert responses(tokens, tokenizer) == responses(text, tokenizer)
        # Written out in the data it ends nothing.
        end = tokenizer.convert_tokens_to_ids("<|im_start|>")
        assert end not in Tokenization(tokenizer, template).end_token_ids


def test_bos_comes_where_the_tokenizer_puts_it_and_eos_once():
    llama = tokenization("llama").encode(record("a", "b"))
    assert llama.input_ids[0] == 0
    assert llama.input_ids.count(1) == 1
    tokenizer = tokenizer_of("merging")
    plain = tokenization("merging").encode(record("a", "b"))
    assert plain.input_ids[0] != tokenizer.bos_token_id
    chat = tokenization("merging", "mistral").encode(record("a", "b"))
    assert chat.input_ids.count(tokenizer.bos_token_id) == 1


@pairs
def test_a_response_has_the_same_ids_after_an_empty_prompt(name, family):
    tokens, tokenizer = tokenization(name, family), tokenizer_of(name, *FAMILIES[family].marks)
    for some in (
        record("the cat?", "the dog", "why?", " \n\n a cat", noise_spans=((3, 5),)),
        record("the </s> cat?", "a dog </s>", noise_spans=((0, 5), (11, 12))),
    ):
        whole = tokens.encode(some)
        empty = tokens.encode_after_prompt(whole)
        prompt = tokens.empty_prompt_ids
        assert empty.input_ids[: len(prompt)] == prompt
        response = empty.input_ids[len(prompt) :]
        assert empty.labels == [IGNORE_INDEX] * len(prompt) + response
        end = len(whole.input_ids) - whole.labels[::-1].index(response[-1])
        assert whole.input_ids[end - len(response) : end] == response
        assert empty.noise == whole.noise[-len(response) :]
        assert sum(empty.noise) > 0
        # Only what the user says differs.
        other = tokens.encode(record("\u00e9", some.messages[-1].content))
        asked = other.input_ids[: other.labels.index(response[0])]
        assert prompt[0] == asked[0]
        ends = {tokenizer.decode(ids)[-1] for ids in (prompt, asked)}
        assert len(ends) == 1 or whole.has_other_prompt


def test_a_text_has_no_prompt_to_empty():
    for name in TOKENIZERS:
        tokens = tokenization(name, "chatml").encode(text_record("a text"))
        assert tokenization(name, "chatml").encode_after_prompt(tokens) is tokens


def test_the_date_is_fixed_once(monkeypatch):
    import transformers.utils.chat_template_utils as clock

    def encoded(now=None):
        tokenizer = tokenizer_of("merging", *FAMILIES["llama-3"].marks)
        return Tokenization(tokenizer, FAMILIES["llama-3"].template, now=now)

    class Midnight(clock.datetime):
        at = clock.datetime(2026, 1, 31, 23, 59)

        @classmethod
        def now(cls, tz=None):
            return cls.at

    monkeypatch.setattr(clock, "datetime", Midnight)
    tokens, given = encoded(), encoded(date(2020, 2, 29))
    before = tokens.encode(record("a", "b"))
    Midnight.at = clock.datetime(2026, 2, 1, 0, 1)
    assert tokens.encode(record("a", "b")) == before
    text = tokens.tokenizer.decode(given.encode(record("a", "b")).input_ids)
    assert "Today Date: 29 Feb 2020" in text
    assert given.now == date(2020, 2, 29)
    assert tokens.now == date.today()
    assert tokens.reads_clock
    assert not tokenization("merging", "chatml").reads_clock


def test_one_of_several_named_templates_is_used():
    tokenizer = tokenizer_of("merging", "<|named|>")
    template = "{%- for m in messages -%}{{- m.role + m.content + eos_token -}}{%- endfor -%}"
    tokenizer.chat_template = {"default": f"d{template}", "rag": f"r{template}"}
    for name, first in ((None, "d"), ("default", "d"), ("rag", "r")):
        tokens = Tokenization(tokenizer, template_name=name)
        assert tokens.chat_template == first + template
    with pytest.raises(InputError, match=r"no chat template named x\. .* one of default, rag"):
        Tokenization(tokenizer, template_name="x")
    tokenizer.chat_template = {"rag": template}
    with pytest.raises(InputError, match=r"no chat template named default\. .* one of rag"):
        Tokenization(tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=r"Remove model\.template_name"):
        Tokenization(tokenizer, template_name="rag")


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40)
@given(before=texts, noise=texts, after=texts)
def test_noise_flags_cover_the_characters_of_their_span(name, before, noise, after):
    tokenizer = tokenizer_of(name)
    response = before + noise + after
    span = (len(before), len(before) + len(noise))
    tokens = tokenization(name).encode(record("q", response, noise_spans=(span,)))
    labels = [label for label in tokens.labels if label != IGNORE_INDEX]
    assert len(tokens.noise) == len(labels)
    assert tokens.noise[-1] == 0
    flagged = [label for label, flag in zip(labels, tokens.noise, strict=True) if flag]
    # A token on the edge is noise as a whole, so the flagged text holds the span.
    assert noise in text_of(flagged, tokenizer)
    first = tokens.noise.index(1)
    assert tokens.noise[first : first + len(flagged)] == [1] * len(flagged)


ranges = st.tuples(st.integers(0, 30), st.integers(1, 6)).map(lambda each: (each[0], sum(each)))


@given(
    offsets=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3))),
    noise=st.lists(ranges, max_size=8),
)
def test_a_token_is_noise_exactly_if_it_shares_a_character_with_a_span(offsets, noise):
    places = sorted((begin, begin + size) for begin, size in offsets)
    encoded = EncodedText([0] * len(places), places)
    expected = [int(any(s < b and e > a for a, b in noise)) for s, e in places]
    assert _flags(encoded, 0, len(places), noise) == expected


def test_a_record_with_thousands_of_spans_is_aligned():
    # One comparison of every token with every span, or of every character, would take hours.
    response = "word " * 40_000
    spans = ((0, 2), *((5 * n, 5 * n + 3) for n in range(20_000)), *[(150_000, 200_000)] * 20_000)
    tokens = Tokenization(byte_tokenizer()).encode(record("q", response, noise_spans=spans))
    assert tokens.noise[:7] == [1, 1, 1, 0, 0, 1, 1]
    assert sum(tokens.noise) == 60_000 + 50_000


@pairs
@settings(max_examples=8)
@given(before=ordinary, after=ordinary)
def test_noise_is_found_under_every_template(name, family, before, after):
    tokenizer = tokenizer_of(name, *FAMILIES[family].marks)
    response = f"{before}CAT{after}"
    span = (len(before), len(before) + 3)
    some = record("q", "CAT", "CAT", response, noise_spans=(span,))
    tokens = tokenization(name, family).encode(some)
    labels = [label for label in tokens.labels if label != IGNORE_INDEX]
    assert len(tokens.noise) == len(labels)
    flagged = [label for label, flag in zip(labels, tokens.noise, strict=True) if flag]
    text = text_of(flagged, tokenizer)
    # Of merged tokens, at most the neighbors come along.
    assert "CAT" in text
    assert len(text) <= 3 + 2 * 17
    assert not tokens.noise[-1]


@pairs
def test_a_span_beyond_the_last_character_marks_what_ends_the_response(name, family):
    tokens, tokenizer = tokenization(name, family), tokenizer_of(name, *FAMILIES[family].marks)
    for make in (lambda text, spans: record("q", text, noise_spans=spans), text_noise):
        for text, spans, marked in (
            ("a cat", ((5, 6),), ""),
            ("a cat ", ((6, 7),), ""),
            ("the cat", ((4, 8),), "cat"),
            ("the cat", ((0, 3),), None),
        ):
            encoded = tokens.encode(make(text, spans))
            labels = [label for label in encoded.labels if label != IGNORE_INDEX]
            ends = [label in tokens.end_token_ids for label in labels]
            assert sum(ends) == 1
            assert [f for f, end in zip(encoded.noise, ends, strict=True) if end] == [
                int(marked is not None)
            ]
            if marked is not None:
                inside = [
                    label
                    for label, flag, end in zip(labels, encoded.noise, ends, strict=True)
                    if flag and not end
                ]
                assert text_of(inside, tokenizer).strip() == marked


def text_noise(text, spans):
    """A plain text with noise."""
    return text_record(text, noise_spans=spans)


def test_nothing_known_is_not_clean():
    tokens = tokenization("merging")
    assert tokens.encode(record("q", "r")).noise is None
    assert set(tokens.encode(record("q", "r", noise_spans=())).noise) == {0}


@given(length=st.integers(1, 40))
def test_cutting_keeps_labels_and_flags_with_their_tokens(length):
    some = record("q", "the cat sat on it", noise_spans=((4, 7),))
    whole = tokenization("merging").encode(some)
    part = cut(whole, length)
    assert part.input_ids == whole.input_ids[:length]
    assert part.labels == whole.labels[:length]
    number = sum(label != IGNORE_INDEX for label in part.labels)
    assert part.noise == whole.noise[:number]


CASES = SHARED / "cases"
MARKS_OF_CASES = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "glm4": ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
    "llama2": (),
    "llama3": ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "mixtral": (),
    "qwen3ish": ("<|im_start|>", "<|im_end|>"),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("case", MARKS_OF_CASES)
@settings(max_examples=12)
@given(contents=st.lists(ordinary, min_size=2, max_size=4), system=st.none() | ordinary)
def test_shared_templates_are_labeled_from_the_generation_prompt_on(case, name, contents, system):
    template = (CASES / f"{case}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_of(name, *MARKS_OF_CASES[case])
    some = record(*contents[: len(contents) // 2 * 2], system=system)
    tokens = Tokenization(tokenizer, template, now=date.today()).encode(some)
    turns = [{"role": m.role, "content": m.content} for m in some.messages]
    whole, prompt = (
        tokenizer.apply_chat_template(
            part, chat_template=template, tokenize=False, add_generation_prompt=is_prompt
        )
        for part, is_prompt in ((turns, False), (turns[:-1], True))
    )
    assert whole.startswith(prompt)
    whole += "<|user|>" if case == "glm4" else ""
    if not tokens.num_split_tokens:
        assert tokens.input_ids == tokenizer(whole, add_special_tokens=False).input_ids
    # Response and end mark; after these, white space at most.
    text = "".join(responses(tokens, tokenizer))
    last = whole[len(prompt) :].rstrip("\n")
    if name in ("llama", "stories260K"):
        text, last = text.replace(" ", ""), last.replace(" ", "")
    assert text.endswith(last)


@pairs
@settings(max_examples=12)
@given(contents=st.lists(texts, min_size=2, max_size=4), data=st.data())
def test_places_of_tokens_agree_with_the_flags_of_noise(name, family, contents, data):
    contents = contents[: len(contents) // 2 * 2]
    length = len(contents[-1])
    start = data.draw(st.integers(0, length))
    span = start, data.draw(st.integers(start + 1, length + 1))
    some = record(*contents, noise_spans=[span])
    encoder = tokenization(name, family)
    try:
        tokens = encoder.encode(some)
    except Unusable:
        return
    places = encoder.token_places(some)
    assert len(places) == sum(label != IGNORE_INDEX for label in tokens.labels)
    assert [place[:2] for place in places] == sorted(place[:2] for place in places)
    assert {place.message for place in places} <= set(range(1, len(contents), 2))
    of_last = [place for place in places if place.message == len(contents) - 1]
    found = [int(max(p.start, span[0]) < min(p.end, span[1])) for p in of_last]
    assert found == tokens.noise[len(places) - len(of_last) :]
    covered = {i for place in of_last for i in range(place.start, place.end)}
    visible = {i for i, char in enumerate(contents[-1]) if not char.isspace()}
    assert covered >= visible | {length} or family == "alpaca"


def test_places_of_a_folded_conversation_and_a_text_are_those_of_its_messages():
    encoder = Tokenization(tokenizer_of("merging"), system_role="fold")
    places = encoder.token_places(record("ask", "say", system="be brief"))
    assert {place.message for place in places} == {2}
    assert (places[0].start, places[-1]) == (0, (2, 3, 4))
    places = encoder.token_places(text_record("abc"))
    assert places[-1] == (0, 3, 4)
