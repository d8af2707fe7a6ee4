"""Labels are exactly the responses, over kinds of tokenizers and templates."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from forgetting.data.records import Message, Record
from forgetting.data.sources import Origin
from forgetting.data.tokens import IGNORE_INDEX, Tokenization, cut
from forgetting.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
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
        special_tokens=[
            "<s>",
            "</s>",
            "<pad>",
            "<|im_start|>",
            "<|im_end|>",
            "<|head|>",
            "<|/head|>",
            "<|eot|>",
        ],
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[
            "<|im_start|>",
            "<|im_end|>",
            "<|head|>",
            "<|/head|>",
            "<|eot|>",
        ],
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


TOKENIZERS = {"merging": merging_tokenizer(), "llama": llama_tokenizer()}
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
