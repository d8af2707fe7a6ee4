"""Labels are exactly the responses, over kinds of tokenizers and templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from forgetting.data.alignment import IGNORE_INDEX, Tokenization, Tokens, cut
from forgetting.data.records import Message, Record, Unusable
from forgetting.data.sources import Origin
from forgetting.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
MARKS = ["<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>"]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
)


def merging_tokenizer():
    """Byte-level with merges, among them of line breaks and of spaces with letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["<|user|>\nthe cat sat\n\n the dog\n<|assistant|>\n\n a cat </s> \n\n\n"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<pad>", *MARKS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=MARKS,
        **SPECIAL,
    )


def llama_tokenizer():
    """A space before any text, byte fallback, BOS before and EOS after."""
    symbols = ["<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    symbols += list("abcdefghijklmnopqrstuvwxyz<|>/.?!")
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def metaspace_tokenizer():
    """As newer Llama-style ones: the space before a text only where it begins, merges, BOS."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", "<pad>", *MARKS]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat <|user|>\n the dog\n\n a cat\n"] * 20, trainer)
    # The bytes are ordinary tokens, not special ones.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][: len(special)]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=MARKS, **SPECIAL
    )


def stripping_tokenizer():
    """Byte-level; a special token takes the white space after it along, as Phi-3's do."""
    tokenizer = merging_tokenizer()
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(mark, rstrip=True, special=True, normalized=False) for mark in MARKS
            ]
        }
    )
    return tokenizer


def record(*contents, system=None, **more):
    messages = [] if system is None else [Message("system", system)]
    for index, content in enumerate(contents):
        messages.append(Message(("user", "assistant")[index % 2], content))
    return Record(tuple(messages), "s", Origin("s", 1), **more)


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
    """The text of each run of labelled tokens."""
    runs, run = [], []
    for label in [*tokens.labels, IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            run.append(label)
        elif run:
            runs.append(text_of(run, tokenizer))
            run = []
    return runs


TOKENIZERS = {
    "merging": merging_tokenizer(),
    "llama": llama_tokenizer(),
    "metaspace": metaspace_tokenizer(),
}
for name in ("stories260K", "TinyStories-Instruct-3M-chat"):
    if (SHARED / name).is_dir():
        TOKENIZERS[name] = AutoTokenizer.from_pretrained(SHARED / name)

pieces = st.sampled_from(
    [
        "the cat",
        " ",
        "\n",
        "\n\n",
        "</s>",
        "<|user|>",
        "<|im_end|>",
        "<s>",
        "é",
        "e\u0301",
        "猫",
        "🙂",
        "\u202e",
        "\x00",
        "a",
        "<script>",
        "\t",
        "{{7*7}}",
        "Ω≈ç√",
    ]
)
texts = st.lists(pieces, min_size=1, max_size=6).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(prompt=texts, response=texts)
def test_labels_decode_to_exactly_the_response_and_its_end(name, prompt, response):
    tokenizer = TOKENIZERS[name]
    tokens = Tokenization(tokenizer).encode(record(prompt, response))
    (text,) = responses(tokens, tokenizer)
    assert text == response + tokenizer.eos_token
    end = tokenizer.eos_token_id
    # Text of the data never becomes a special token.
    assert tokens.labels.count(end) == 1
    assert tokens.labels[-1] == end
    assert tokens.labels[0] == IGNORE_INDEX
    special = [i for i in tokens.input_ids if i in tokenizer.all_special_ids]
    assert special in ([end], [tokenizer.bos_token_id, end])


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(prompt=texts, response=texts)
def test_all_tokens_decode_to_the_rendered_conversation(name, prompt, response):
    tokenizer = TOKENIZERS[name]
    tokens = Tokenization(tokenizer).encode(record(prompt, response))
    ids = [i for i in tokens.input_ids if i not in tokenizer.all_special_ids]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert text.removeprefix(" ") == f"<|user|>\n{prompt}\n<|assistant|>\n{response}"


@pytest.mark.parametrize("template", [CHATML, LLAMA_3])
@settings(max_examples=40, deadline=None)
@given(prompt=texts, response=texts)
def test_chat_templates_label_the_turn_and_its_end_only(template, prompt, response):
    tokenizer = TOKENIZERS["merging"]
    if not prompt.strip() or not response.strip():
        return
    tokens = Tokenization(tokenizer, template).encode(record(prompt, response))
    (text,) = responses(tokens, tokenizer)
    expected = response.strip() + "<|eot|>" if template == LLAMA_3 else response + "<|im_end|>"
    assert text == expected


@pytest.mark.parametrize("template", [CHATML, LLAMA_3])
@settings(max_examples=40, deadline=None)
@given(prompt=texts, response=texts)
def test_a_beginning_of_text_is_not_marked_after_a_special_token(template, prompt, response):
    tokenizer = TOKENIZERS["metaspace"]
    if not prompt.strip() or not response.strip():
        return
    tokens = Tokenization(tokenizer, template).encode(record(prompt, response))
    (text,) = responses(tokens, tokenizer)
    expected = response.strip() + "<|eot|>" if template == LLAMA_3 else response + "<|im_end|>"
    assert text == expected


@pytest.mark.parametrize("template", [CHATML, LLAMA_3])
@pytest.mark.parametrize("make", [merging_tokenizer, metaspace_tokenizer, stripping_tokenizer])
def test_tokens_are_those_that_the_tokenizer_makes_of_the_conversation(make, template):
    tokenizer = make()
    # Capital letters merge with nothing before them.
    some = record("The cat", "A dog sat", "Dog?", "Yes the cat", system="Quiet cat")
    tokens = Tokenization(tokenizer, template).encode(some)
    turns = [{"role": m.role, "content": m.content} for m in some.messages]
    text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    assert tokens.input_ids == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_batch_gives_what_its_records_give_alone(name):
    tokenization = Tokenization(TOKENIZERS[name])
    records = [
        record("q", "r"),
        record("a", "one\n", "\n\nb", " two", system="be"),
        record("\n", "\n\n the cat", noise_spans=((1, 4),)),
        Record((Message("assistant", "a text"),), "s", Origin("s", 1)),
    ]
    assert tokenization.encode_batch(records) == [tokenization.encode(r) for r in records]
    assert tokenization.encode_batch([]) == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_side_of_padding_and_truncation_changes_nothing(name):
    tokenizer = TOKENIZERS[name]
    some = record("the cat", "the dog " * 30)
    before = Tokenization(tokenizer).encode(some)
    saved = tokenizer.padding_side, tokenizer.truncation_side
    try:
        tokenizer.padding_side = tokenizer.truncation_side = "left"
        assert Tokenization(tokenizer).encode_batch([some, record("a", "b")])[0] == before
    finally:
        tokenizer.padding_side, tokenizer.truncation_side = saved


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(text=texts)
def test_a_plain_text_is_labelled_whole(name, text):
    tokenizer = TOKENIZERS[name]
    some = Record((Message("assistant", text),), "s", Origin("s", 1))
    tokens = Tokenization(tokenizer, CHATML if name == "merging" else None).encode(some)
    num_before = len(Tokenization(tokenizer)._prefix)
    # The first token of all has nothing to be predicted from.
    num_unlabelled = max(num_before, 1)
    assert tokens.labels[num_unlabelled:] == tokens.input_ids[num_unlabelled:]
    assert set(tokens.labels[:num_unlabelled]) == {IGNORE_INDEX}
    assert text_of(tokens.input_ids[num_before:-1], tokenizer) in (text, f" {text}")
    assert tokens.input_ids[-1] == tokenizer.eos_token_id


def test_end_tokens_are_those_that_end_turns():
    tokenizer = TOKENIZERS["merging"]
    eos = tokenizer.eos_token_id

    def ends(template, *contents):
        tokenization = Tokenization(tokenizer, template)
        tokenization.encode(record(*contents))
        return tokenization.end_token_ids

    assert ends(None, "a", "b") == {eos}
    assert ends(CHATML, "a", "b") == {eos, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert ends(LLAMA_3, "a", "b") == {eos, tokenizer.convert_tokens_to_ids("<|eot|>")}
    # Turns before the last may end in another way.
    mixed = (
        "{% for m in messages %}{{ m.role }} {{ m.content }}"
        "{{ '</s>' if loop.last else '<|eot|>' }}{% endfor %}"
    )
    both = {eos, tokenizer.convert_tokens_to_ids("<|eot|>")}
    assert ends(mixed, "a", "b") == {eos}
    assert ends(mixed, "a", "b", "c", "d") == both


def test_special_tokens_in_text_become_tokens_only_where_asked():
    tokenizer = TOKENIZERS["merging"]
    some = record("a <|eot|> b", "c <|im_start|>d</s>")
    for template in (None, CHATML):
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


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("{{ m.content }}", "{{ m.content.split('#')[0] }}"), "changes the text"),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content }}{{ 1 // (m.content != '#') }}"),
            "fails",
        ),
        (CHATML + "{{ raise_exception('no') if messages[0].content == '#' }}", "fails: no"),
    ],
)
def test_a_record_that_the_template_cannot_render_is_told_apart(template, reason):
    tokenization = Tokenization(TOKENIZERS["merging"], template)
    good, bad, other = tokenization.encode_batch(
        [record("a", "b"), record("#", "b"), record("c", "d")]
    )
    assert isinstance(bad, Unusable)
    assert reason in str(bad)
    assert isinstance(good, Tokens)
    assert isinstance(other, Tokens)


def test_every_assistant_turn_is_labelled():
    tokenizer = TOKENIZERS["merging"]
    tokens = Tokenization(tokenizer).encode(record("a", "one", "b", "two", system="be"))
    assert responses(tokens, tokenizer) == ["one</s>", "two</s>"]
    assert tokenizer.decode(tokens.input_ids) == (
        "<|system|>\nbe\n<|user|>\na\n<|assistant|>\none</s>\n<|user|>\nb\n<|assistant|>\ntwo</s>"
    )


def test_bos_comes_where_the_tokenizer_puts_it_and_eos_once():
    llama = Tokenization(TOKENIZERS["llama"]).encode(record("a", "b"))
    assert llama.input_ids[0] == 0
    assert llama.input_ids.count(1) == 1
    plain = Tokenization(TOKENIZERS["merging"]).encode(record("a", "b"))
    assert plain.input_ids[0] != TOKENIZERS["merging"].bos_token_id
    chat = Tokenization(TOKENIZERS["merging"], LLAMA_3).encode(record("a", "b"))
    assert chat.input_ids.count(TOKENIZERS["merging"].bos_token_id) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "without a special token"),
        ("{{ messages[0].content }}</s>", "leaves out or repeats"),
        ("{{ messages[0].content | upper }}{{ messages[1].content }}</s>", "changes the text"),
        ("{{ raise_exception('no') }}", "fails"),
        ("{% for %}", "fails"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, message):
    with pytest.raises(InputError, match=message):
        Tokenization(TOKENIZERS["merging"], template).encode(record("a", "b"))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(before=texts, noise=texts, after=texts)
def test_noise_flags_cover_the_characters_of_their_span(name, before, noise, after):
    tokenizer = TOKENIZERS[name]
    response = before + noise + after
    span = (len(before), len(before) + len(noise))
    tokens = Tokenization(tokenizer).encode(record("q", response, noise_spans=(span,)))
    labels = [label for label in tokens.labels if label != IGNORE_INDEX]
    assert len(tokens.noise) == len(labels)
    assert tokens.noise[-1] == 0
    flagged = [label for label, flag in zip(labels, tokens.noise, strict=True) if flag]
    # A token on the edge is noise as a whole, so the flagged text holds the span.
    assert noise in text_of(flagged, tokenizer)
    first = tokens.noise.index(1)
    assert tokens.noise[first : first + len(flagged)] == [1] * len(flagged)


@pytest.mark.parametrize("template", [None, CHATML, LLAMA_3])
@pytest.mark.parametrize("messages", ["chat", "text"])
def test_a_span_beyond_the_last_character_marks_what_ends_the_response(template, messages):
    tokenizer = merging_tokenizer()
    tokenization = Tokenization(tokenizer, template)
    for text, spans, marked in (
        ("a cat", ((5, 6),), [""]),
        ("a cat ", ((6, 7),), [""]),
        ("the cat", ((4, 8),), ["cat"]),
        ("the cat", ((0, 3),), None),
    ):
        some = record("q", text, noise_spans=spans)
        if messages == "text":
            some = Record((Message("assistant", text),), "", Origin("", 1), spans)
        tokens = tokenization.encode(some)
        labels = [label for label in tokens.labels if label != IGNORE_INDEX]
        ends = [label in tokenization.end_token_ids for label in labels]
        assert sum(ends) == 1
        flagged_ends = [flag for flag, end in zip(tokens.noise, ends, strict=True) if end]
        assert flagged_ends == [int(marked is not None)]
        if marked is not None:
            inside = [
                label
                for label, flag, end in zip(labels, tokens.noise, ends, strict=True)
                if flag and not end
            ]
            assert text_of(inside, tokenizer).strip() == marked[0]


def test_noise_moves_with_a_template_that_strips():
    tokenizer = TOKENIZERS["merging"]
    some = record("q", "  a cat", noise_spans=((4, 7),))
    tokens = Tokenization(tokenizer, LLAMA_3).encode(some)
    labels = [label for label in tokens.labels if label != IGNORE_INDEX]
    flagged = [label for label, flag in zip(labels, tokens.noise, strict=True) if flag]
    assert tokenizer.decode(flagged).strip() == "cat"


def test_nothing_known_is_not_clean():
    tokenization = Tokenization(TOKENIZERS["merging"])
    assert tokenization.encode(record("q", "r")).noise is None
    assert set(tokenization.encode(record("q", "r", noise_spans=())).noise) == {0}


@given(length=st.integers(1, 40))
def test_cutting_keeps_labels_and_flags_with_their_tokens(length):
    some = record("q", "the cat sat on it", noise_spans=((4, 7),))
    whole = Tokenization(TOKENIZERS["merging"]).encode(some)
    part = cut(whole, length)
    assert part.input_ids == whole.input_ids[:length]
    assert part.labels == whole.labels[:length]
    number = sum(label != IGNORE_INDEX for label in part.labels)
    assert part.noise == whole.noise[:number]
