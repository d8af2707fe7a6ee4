"""Small equivalents of real families' chat templates, and tokenizers of every kind, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

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

from forgetting.data.alignment import Tokenization
from forgetting.data.records import Record
from forgetting.data.sources import Origin
from forgetting.formats import Message

SHARED = Path(__file__).resolve().parents[3] / "shared"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Family:
    """A chat template, and what a model generates under it."""

    template: str | None
    marks: tuple[str, ...]
    """Its special tokens, apart from the beginning and the end of sequence."""
    generated: Callable[[str], str]
    """The text of the last response, from the end of the generation prompt to the end mark; `</s>`
    stands for the end of sequence."""
    earlier: Callable[[str], str] | None
    """The same for earlier responses; None: they are context."""
    appended: str = ""
    """The end mark that the template does not write after the last response."""
    system_role: str = "keep"


def turns(user: str, assistant: str, start: str = "", end: str = "") -> str:
    """A template: `start`, each turn, and `end`, which begins the next response."""
    turn = f"{{%- if m.role == 'assistant' -%}}{assistant}{{%- else -%}}{user}{{%- endif -%}}"
    prompt = f"{{%- if add_generation_prompt -%}}{end}{{%- endif -%}}"
    return f"{start}{{%- for m in messages -%}}{turn}{{%- endfor -%}}{prompt}"


def out(expression: str) -> str:
    """A Jinja expression, written without white space around it."""
    return f"{{{{- {expression} -}}}}"


IM = ("<|im_start|>", "<|im_end|>")
HEADS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
COHERE = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
chatml_turn = out(r"'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'")
llama3_turn = out(
    r"'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>'"
)
FAMILIES = {
    "chatml": Family(
        turns(chatml_turn, chatml_turn, end=out(r"'<|im_start|>assistant\n'")),
        IM,
        lambda text: f"{text}<|im_end|>",
        lambda text: f"{text}<|im_end|>",
    ),
    "zephyr": Family(
        turns(
            out(r"'<|' + m.role + '|>\n' + m.content + eos_token + '\n'"),
            out(r"'<|assistant|>\n' + m.content + eos_token + '\n'"),
            end=out(r"'<|assistant|>\n'"),
        ),
        (),
        lambda text: f"{text}</s>",
        lambda text: f"{text}</s>",
    ),
    "llama-2": Family(
        turns(
            out("bos_token + '[INST] ' + m.content.strip() + ' [/INST]'"),
            out("' ' + m.content.strip() + ' ' + eos_token"),
        ),
        (),
        lambda text: f" {text.strip()} </s>",
        lambda text: f" {text.strip()} </s>",
        system_role="fold",
    ),
    "llama-3": Family(
        turns(
            llama3_turn,
            llama3_turn,
            start=out(r"bos_token + 'Today Date: ' + strftime_now('%d %b %Y') + '\n\n'"),
            end=out(r"'<|start_header_id|>assistant<|end_header_id|>\n\n'"),
        ),
        HEADS,
        lambda text: f"{text.strip()}<|eot_id|>",
        lambda text: f"{text.strip()}<|eot_id|>",
    ),
    "mistral": Family(
        turns(
            out("'[INST] ' + m.content + '[/INST]'"),
            out("' ' + m.content | trim + eos_token"),
            start=out("bos_token"),
        ),
        (),
        lambda text: f" {text.strip()}</s>",
        lambda text: f" {text.strip()}</s>",
        system_role="fold",
    ),
    "gemma": Family(
        turns(
            "{%- if m.role == 'system' -%}{{- raise_exception('System role not supported') -}}"
            "{%- endif -%}"
            + out(r"'<start_of_turn>user\n' + m.content | trim + '<end_of_turn>\n'"),
            out(r"'<start_of_turn>model\n' + m.content | trim + '<end_of_turn>\n'"),
            start=out("bos_token"),
            end=out(r"'<start_of_turn>model\n'"),
        ),
        ("<start_of_turn>", "<end_of_turn>"),
        lambda text: f"{text.strip()}<end_of_turn>",
        lambda text: f"{text.strip()}<end_of_turn>",
        system_role="fold",
    ),
    "qwen-3": Family(
        turns(
            chatml_turn,
            "{%- set answer = m.content.split('</think>')[-1].lstrip('\\n') -%}"
            "{%- set why = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') "
            "if '</think>' in m.content else '' -%}"
            + out(r"'<|im_start|>assistant\n'")
            + "{%- if loop.last -%}"
            + out(r"'<think>\n' + why + '\n</think>\n\n'")
            + "{%- endif -%}"
            + out(r"answer + '<|im_end|>\n'"),
            end=out(r"'<|im_start|>assistant\n'"),
        ),
        IM,
        lambda text: "<think>\n\n</think>\n\n" + text.lstrip("\n") + "<|im_end|>",
        None,
    ),
    "glm": Family(
        turns(
            out(r"'<|' + m.role + '|>\n' + m.content"),
            out(r"'<|assistant|>\n' + m.content"),
            start=out("'[gMASK]<sop>'"),
            end=out(r"'<|assistant|>\n'"),
        ),
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        lambda text: f"{text}<|user|>",
        lambda text: f"{text}<|user|>",
        appended="<|user|>",
    ),
    "phi-3": Family(
        turns(
            out(r"'<|' + m.role + '|>\n' + m.content + '<|end|>\n'"),
            out(r"'<|assistant|>\n' + m.content + '<|end|>\n'"),
            end=out(r"'<|assistant|>\n'") + "{%- else -%}" + out("eos_token"),
        ),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        lambda text: f"{text}<|end|>",
        lambda text: f"{text}<|end|>",
    ),
    "deepseek": Family(
        turns(
            out(r"m.role | capitalize + ': ' + m.content + '\n\n'"),
            out("'Assistant: ' + m.content + eos_token"),
            start=out("bos_token"),
            end=out("'Assistant:'"),
        ),
        (),
        lambda text: f" {text}</s>",
        lambda text: f" {text}</s>",
    ),
    # The generation prompt holds more than the rendering of a response without reasoning.
    "deepseek-r1": Family(
        turns(
            out("'<|User|>' + m.content"),
            out("'<|Assistant|>' + m.content + eos_token"),
            start=out("bos_token"),
            end=out(r"'<|Assistant|><think>\n'"),
        ),
        ("<|User|>", "<|Assistant|>"),
        lambda text: f"{text}</s>",
        None,
    ),
    "command-r": Family(
        turns(
            out(
                "'<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content | trim "
                "+ '<|END_OF_TURN_TOKEN|>'"
            ),
            out(
                "'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + m.content | trim "
                "+ '<|END_OF_TURN_TOKEN|>'"
            ),
            start=out("bos_token"),
            end=out("'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'"),
        ),
        COHERE,
        lambda text: f"{text.strip()}<|END_OF_TURN_TOKEN|>",
        lambda text: f"{text.strip()}<|END_OF_TURN_TOKEN|>",
    ),
    # History ends turns with <|end|>; a model ends its answer with <|return|>.
    "harmony": Family(
        turns(
            out("'<|start|>' + m.role + '<|message|>' + m.content + '<|end|>'"),
            out("'<|start|>assistant<|channel|>final<|message|>' + m.content")
            + "{%- if loop.last -%}<|return|>{%- else -%}<|end|>{%- endif -%}",
            end=out("'<|start|>assistant'"),
        ),
        HARMONY,
        lambda text: f"<|channel|>final<|message|>{text}<|return|>",
        lambda text: f"<|channel|>final<|message|>{text}",
    ),
    # Nothing in it ends a turn.
    "alpaca": Family(
        turns(
            out(r"'### Instruction:\n' + m.content + '\n\n'"),
            out(r"'### Response:\n' + m.content")
            + "{%- if not loop.last -%}"
            + out(r"'\n\n'")
            + "{%- endif -%}",
            end=out(r"'### Response:\n'"),
        ),
        (),
        lambda text: f"{text}</s>",
        lambda text: text,
        appended="</s>",
    ),
    # Without a generation prompt, a model writes the name of its role itself.
    "no prompt": Family(
        turns(
            out(r"m.role + ': ' + m.content + '\n'"),
            out(r"'assistant: ' + m.content + eos_token + '\n'"),
        ),
        (),
        lambda text: f"assistant: {text}</s>",
        lambda text: f"assistant: {text}</s>",
    ),
    "plain": Family(None, (), lambda text: f"{text}</s>", lambda text: f"{text}</s>"),
}


def merging_tokenizer():
    """Byte-level with merges, among them of line breaks and of spaces with letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["<|user|>\nthe cat sat\n\n the dog\n<|assistant|>\n\n a cat </s> \n\n\n"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<pad>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def trimming_tokenizer():
    """The same, with offsets that leave out the space a token begins with."""
    tokenizer = merging_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


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
    special = ["<unk>", "<s>", "</s>", "<pad>"]
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def shared_tokenizer(name: str):
    """The tokenizer of a model next to the project."""
    return AutoTokenizer.from_pretrained(SHARED / "models" / name)


TOKENIZERS = {
    "merging": merging_tokenizer,
    # Marks absorb the white space after them, as Phi-3's do.
    "stripping": merging_tokenizer,
    "trimming": trimming_tokenizer,
    "llama": llama_tokenizer,
    "metaspace": metaspace_tokenizer,
}
for folder in ("stories260K", "TinyStories-Instruct-3M-chat"):
    if (SHARED / "models" / folder).is_dir():
        TOKENIZERS[folder] = partial(shared_tokenizer, folder)


@cache
def tokenizer_of(name: str, *marks: str):
    """A tokenizer with these special tokens besides its own."""
    tokenizer = TOKENIZERS[name]()
    added = [
        AddedToken(mark, special=True, normalized=False, rstrip=name == "stripping")
        for mark in marks
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    return tokenizer


@cache
def tokenization(name: str, family: str = "plain", **options) -> Tokenization:
    """The tokenization of a family with one of the tokenizers; there is one of each."""
    given = FAMILIES[family]
    tokenizer = tokenizer_of(name, *given.marks)
    return Tokenization(tokenizer, given.template, system_role=given.system_role, **options)


def record(*contents: str, system: str | None = None, **more) -> Record:
    """A conversation that begins with a user turn."""
    messages = [] if system is None else [Message("system", system)]
    for index, content in enumerate(contents):
        messages.append(Message(("user", "assistant")[index % 2], content))
    return Record(tuple(messages), "s", Origin("s", 1), **more)


def text_record(text: str, **more) -> Record:
    """A plain text."""
    return Record((Message("assistant", text),), "s", Origin("s", 1), **more)
