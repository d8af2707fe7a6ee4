"""The tokenizer of a run renders the prompts that were trained on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from forgetting.config import load_recipe
from forgetting.data.records import Record
from forgetting.data.sources import Origin
from forgetting.formats import Message
from forgetting.models.prompting import prompting_tokenizer, set_end_tokens
from forgetting.models.tokenization import load_tokenization
from tests.conftest import byte_tokenizer, save_tiny_model

CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


@pytest.mark.parametrize("template", ["plain", "file", None])
@pytest.mark.parametrize("has_prefix", [False, True])
def test_the_prompt_is_that_of_the_samples(template, has_prefix, write_recipe, tmp_path):
    from tokenizers.processors import TemplateProcessing

    model = save_tiny_model(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML if template is None else None
    if has_prefix:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer.save_pretrained(model)
    (tmp_path / "chatml.jinja").write_text(CHATML)
    template = str(tmp_path / "chatml.jinja") if template == "file" else template
    changes = [f"model.name_or_path={model}", f"model.chat_template={template or 'null'}"]
    recipe = load_recipe(write_recipe(), changes)
    prompting_tokenizer(recipe).save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages = (
        Message("user", "Is it?"),
        Message("assistant", "It is."),
        Message("user", "Why?"),
        Message("assistant", "So."),
    )
    tokens = load_tokenization(recipe).encode(Record(messages, "", Origin("", 1)))
    end = len(tokens.labels)
    while tokens.labels[end - 1] == -100:
        end -= 1
    while tokens.labels[end - 1] != -100:
        end -= 1
    turns = [{"role": m.role, "content": m.content} for m in messages[:-1]]
    prompt = saved.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert prompt == tokens.input_ids[:end]


def test_plain_texts_leave_the_tokenizer_as_it_is(write_recipe, tmp_path):
    recipe = load_recipe(write_recipe())
    assert prompting_tokenizer(recipe).chat_template is not None
    source = {**recipe.data.sources[0].model_dump(exclude_unset=True), "format": "text"}
    data = {**recipe.data.model_dump(exclude_unset=True), "sources": [source]}
    assert prompting_tokenizer(load_recipe(write_recipe(data=data))).chat_template is None


@pytest.mark.parametrize(
    ("own", "added", "expected"),
    [(None, [1], 1), (2, [2], 2), (2, [513, 2], [2, 513]), ([2, 7], [5, 2], [2, 7, 5])],
)
def test_a_model_keeps_its_end_tokens_and_gets_those_of_the_samples(own, added, expected):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
    set_end_tokens(model, added)
    assert model.generation_config.eos_token_id == expected
