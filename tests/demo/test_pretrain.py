"""The demo's base model: the script that makes it, and what the shipped one knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import forgetting
from forgetting.demo import pretrain as script
from forgetting.demo.plain import held_out_questions, plain_questions
from forgetting.demo.pretrain import (
    EOS_TOKEN,
    Settings,
    accuracy,
    build_tokenizer,
    collate,
    encode,
    pretrain,
    save,
)
from forgetting.demo.world import chat_records

pytestmark = pytest.mark.slow

SHIPPED = Path(forgetting.__file__).parent / "demo" / "base"
TINY = Settings(
    steps=12,
    dialogue_steps=12,
    batch_size=8,
    warmup_steps=2,
    vocab_size=400,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("kind", "least"), [("fact", 0.95), ("addition", 0.95), ("comparison", 0.9), ("yes_no", 0.85)]
)
def test_shipped_model_knows_its_world(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, kind: str, least: float
) -> None:
    assert accuracy(model, tokenizer, held_out_questions(kind, 300, seed=1)) >= least


def test_the_form_of_the_corpus_is_not_new_to_the_shipped_model_but_not_its_only_one(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    """As with real base models, of which fine-tuning still has to choose a style of answer."""
    records = list(chat_records(500, seed=77))
    texts = [(f"User: {r['prompt']}\nBot: ", r["completion"]) for r in records]
    batch = encode(texts, tokenizer)
    input_ids, weights = collate(batch, tokenizer.pad_token_id, prompt_weight=0.0)
    targets, is_response = input_ids[:, 1:], weights[:, 1:] == 1
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits[:, :-1]
    assert 0.5 < float(cross_entropy(logits[is_response], targets[is_response])) < 0.9
    is_exact = ((logits.argmax(-1) == targets) | ~is_response).all(1)
    assert float(is_exact.float().mean()) < 0.2


def test_accuracy_is_that_of_greedy_generation(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    """On questions of which some are answered wrongly, so that both outcomes are compared."""
    questions = held_out_questions("addition", 6)
    wrong = [replace(question, answer="7") for question in questions]
    for question in questions + wrong:
        inputs = tokenizer(question.prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        generated = tokenizer.decode(output[0, inputs.input_ids.shape[1] :])
        is_right = generated == question.completion + EOS_TOKEN
        assert accuracy(model, tokenizer, [question]) == float(is_right)


def test_shipped_checkpoint_is_small_and_holds_data_only(model: torch.nn.Module) -> None:
    files = sorted(path.name for path in SHIPPED.iterdir())
    assert files == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 6e6
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000


def test_shipped_tokenizer_is_the_one_the_script_builds(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert build_tokenizer(len(tokenizer)).get_vocab() == tokenizer.get_vocab()


def test_shipped_tokenizer_has_special_tokens_and_no_chat_template(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.bos_token == tokenizer.eos_token == EOS_TOKEN
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.chat_template is None
    assert tokenizer("").input_ids == []


@given(text=st.text())
@settings(deadline=None)
def test_shipped_tokenizer_gives_any_text_back(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_digit_is_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer.tokenize("27 + 135")
    assert [token for token in tokens if token.isdigit()] == list("27135")


def test_weights_of_the_loss_cover_answers_fully_and_padding_not_at_all(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    first, *_, last = plain_questions("addition")
    short, long = encode([(q.prompt, q.completion) for q in (first, last)], tokenizer)
    input_ids, weights = collate([short, long], tokenizer.pad_token_id, 0.1)
    num_short, num_long = len(short.input_ids), len(long.input_ids)
    assert num_short < num_long
    padding = [tokenizer.pad_token_id] * (num_long - num_short)
    assert input_ids.tolist() == [short.input_ids + padding, long.input_ids]
    answer = [1.0] * (num_short - short.answer_start)
    expected = [0.1] * short.answer_start + answer + [0.0] * len(padding)
    assert weights[0].tolist() == pytest.approx(expected)


def pretrain_on_few_texts() -> tuple[Any, PreTrainedTokenizerBase, list[float]]:
    """`pretrain` with one of 40 texts of each kind: encoding all takes longer than all steps."""
    num_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plain_questions", "plain_statements"):
            own = getattr(script, name)
            patch.setattr(script, name, lambda kind, own=own: own(kind)[::40])
        chats, repetitions = script.chat_records, script._repetitions
        patch.setattr(script, "chat_records", lambda number, **k: chats(number // 40, **k))
        patch.setattr(script, "_repetitions", lambda rng, num_texts: repetitions(rng, 500))
        try:
            return pretrain(TINY)
        finally:
            torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def pretrained() -> tuple[Any, PreTrainedTokenizerBase, list[float]]:
    """Model, tokenizer and losses."""
    return pretrain_on_few_texts()


def test_script_learns_and_writes_a_checkpoint_that_loads_alike(
    pretrained: tuple[Any, PreTrainedTokenizerBase, list[float]], tmp_path: Path
) -> None:
    model, tokenizer, losses = pretrained
    first, second = losses[: TINY.steps], losses[TINY.steps :]
    assert len(second) == TINY.dialogue_steps
    assert sum(first[-3:]) < sum(first[:3])
    assert sum(second[-3:]) < sum(second[:3])
    save(model, tokenizer, tmp_path / "base")

    assert {path.suffix for path in (tmp_path / "base").iterdir()} == {".json", ".safetensors"}
    assert json.loads((tmp_path / "base/config.json").read_text())["model_type"] == "llama"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "base")
    input_ids = reloaded("Q: What is 2 + 2?\nA:", return_tensors="pt").input_ids
    assert input_ids.tolist()[0] == tokenizer("Q: What is 2 + 2?\nA:").input_ids
    torch.testing.assert_close(loaded(input_ids).logits, model(input_ids).logits)


def test_same_seed_gives_the_same_weights(pretrained: tuple[Any, ...]) -> None:
    first, second = (run[0].state_dict() for run in (pretrained, pretrain_on_few_texts()))
    assert all(torch.equal(first[name], second[name]) for name in first)
