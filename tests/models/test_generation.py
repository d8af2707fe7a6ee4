"""Batched greedy generation gives what one forward pass after the other gives."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from forgetting.models.generation import generate_greedily

PROMPTS = [[5, 9, 11], [7], [30, 31, 32, 33, 34, 35, 36], [40, 41]]


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@torch.inference_mode()
def one_by_one(model, prompt, number):
    """Without cache, padding or generation settings."""
    ids = list(prompt)
    for _ in range(number):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_token_is_the_most_likely_one(model, batch_size):
    found = generate_greedily(
        model, PROMPTS, end_token_ids=[], max_new_tokens=6, batch_size=batch_size
    )
    ends = model.generation_config.eos_token_id
    for prompt, answer in zip(PROMPTS, found, strict=True):
        expected = one_by_one(model, prompt, 6)
        assert answer == expected[: len(answer)]
        assert len(answer) == 6 or answer[-1] == ends


def test_an_answer_ends_with_its_first_end_token(model):
    whole = one_by_one(model, PROMPTS[0], 6)
    end = whole[2]
    expected = whole[: whole.index(end) + 1]
    found = generate_greedily(model, PROMPTS, end_token_ids=[end], max_new_tokens=6)
    assert found[0] == expected


def test_settings_of_the_model_do_not_change_what_is_greedy(model, monkeypatch):
    plain = generate_greedily(model, PROMPTS, end_token_ids=[], max_new_tokens=6)
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=50.0,
        eos_token_id=model.generation_config.eos_token_id,
    )
    monkeypatch.setattr(model, "generation_config", own)
    assert generate_greedily(model, PROMPTS, end_token_ids=[], max_new_tokens=6) == plain
    assert model.generation_config is own


def test_an_adapter_is_used_and_the_settings_come_back(model, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model.name_or_path)
    kept = base.generation_config
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base, config).eval()
    found = generate_greedily(adapted, PROMPTS[:1], end_token_ids=[], max_new_tokens=4)
    assert found[0] == one_by_one(adapted, PROMPTS[0], 4)[: len(found[0])]
    assert base.generation_config is kept


def test_prompt_and_answer_have_at_most_the_given_length(model):
    found = generate_greedily(
        model, PROMPTS, end_token_ids=[], max_new_tokens=6, max_length=8, batch_size=1
    )
    for prompt, answer in zip(PROMPTS, found, strict=True):
        assert len(answer) <= min(6, 8 - len(prompt))
    assert len(found[2]) == 1
    full = generate_greedily(model, [PROMPTS[2]], end_token_ids=[], max_new_tokens=6, max_length=7)
    assert full == [[]]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_long_prompt_does_not_shorten_the_answers_of_others(model, batch_size):
    # The longest leaves no room, and the next one room for one token.
    prompts = [[5, 9], [7] * 8, [8] * 7, [30, 31, 32], [40]]
    own_ends = model.generation_config.eos_token_id
    found = generate_greedily(
        model, prompts, end_token_ids=[], max_new_tokens=4, max_length=8, batch_size=batch_size
    )
    for prompt, answer in zip(prompts, found, strict=True):
        room = min(4, 8 - len(prompt))
        assert answer == one_by_one(model, prompt, room)[: len(answer)]
        assert len(answer) == room or answer[-1] == own_ends
