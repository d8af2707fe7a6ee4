"""One small script with both trainers: models of two layers, ten rows of data, three steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from forgetting import ForgettingConfig, ForgettingTrainer
from tests.conftest import byte_tokenizer, save_tiny_model, small_model

# With the marks that `assistant_only_loss` needs.
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message.role + ']' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
# Completions are equally long: SFTTrainer averages some figures over micro-batches, and
# ForgettingTrainer over tokens.
WORDS = ["green", "brown", "white", "black", "amber", "ivory", "coral", "beige", "khaki", "olive"]
ANSWERS = [f"It is {word}." for word in WORDS]
QUESTIONS = ["Why? " * (index % 4 + 1) for index in range(10)]
BOTH = list(zip(QUESTIONS, ANSWERS, strict=True))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def tokens(prompt: str, answer: str) -> dict[str, list[int]]:
    ids = byte_tokenizer()(prompt + answer)["input_ids"]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}


FORMS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "text": lambda q, a: {"text": q + a},
    "story": lambda q, a: {"story": q + a},
    "prompt": lambda q, a: {"prompt": q, "completion": a},
    "messages": lambda q, a: {"messages": [turn("user", q), turn("assistant", a)]},
    "turns": lambda q, a: {"prompt": [turn("user", q)], "completion": [turn("assistant", a)]},
    "sharegpt": lambda q, a: {
        "conversations": [{"from": "user", "value": q}, {"from": "assistant", "value": a}]
    },
    "tokens": tokens,
    "masked": lambda q, a: {
        "input_ids": tokens(q, a)["input_ids"],
        "completion_mask": [0] * len(q) + [1] * len(a),
    },
    "raw": lambda q, a: {"question": q, "answer": a},
}


def rows(form: str) -> Dataset:
    """Ten samples in a form, every one of them to be learned."""
    return Dataset.from_list([{**FORMS[form](*both), "polarity": 1} for both in BOTH])


@dataclass(frozen=True)
class Case:
    """A script that must do the same with both trainers."""

    feature: str
    """As in the table of the documentation."""
    args: dict[str, Any] = field(default_factory=dict)
    """Of the configuration, which both share."""
    form: str = "prompt"
    """Of the data, a key of `FORMS`."""
    change: Callable[[Dataset], Any] = lambda data: data
    """Of the data."""
    adapter: Callable[[], Any] | None = None
    """Makes the `peft_config`."""
    model: str = "llama"
    others: Callable[[Any, Path], dict[str, Any]] = lambda model, folder: {}
    """More arguments of the trainer, from the model and a folder."""
    then: Callable[[Any], Any] = lambda trainer: trainer.train()
    """What the script does with the trainer."""

    def __str__(self) -> str:
        parts = {**self.args, "form": self.form if self.form != "prompt" else None}
        return f"{self.feature} {({k: v for k, v in parts.items() if v is not None}) or ''}"


@dataclass(frozen=True)
class Run:
    """What a script ended with."""

    trainer: Any
    weights: dict[str, torch.Tensor]
    log: list[dict[str, float]]


OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_steps": 3,
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_length": None,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders of the models by kind, each with a tokenizer that has a chat template."""
    root = tmp_path_factory.mktemp("contract")
    found = {"llama": save_tiny_model(root / "llama")}
    tokenizer = byte_tokenizer()
    for kind in ("mixtral", "gpt_neo"):
        model = small_model(kind, len(tokenizer))
        model.config.output_router_logits = kind == "mixtral"
        model.save_pretrained(root / kind)
        found[kind] = root / kind
    tokenizer.chat_template = TEMPLATE
    for folder in found.values():
        tokenizer.save_pretrained(folder)
    return found


def make_trainer(case: Case, is_ours: bool, models: dict[str, Path], folder: Path) -> Any:
    trainer_class, config_class = (
        (ForgettingTrainer, ForgettingConfig) if is_ours else (SFTTrainer, SFTConfig)
    )
    model = AutoModelForCausalLM.from_pretrained(models[case.model])
    others = case.others(model, models[case.model])
    return trainer_class(
        **{
            "model": model,
            "args": config_class(
                output_dir=str(folder / trainer_class.__name__),
                **{**OPTIONS, **copy.deepcopy(case.args)},
            ),
            "train_dataset": case.change(rows(case.form)),
            "processing_class": AutoTokenizer.from_pretrained(models[case.model]),
            "peft_config": None if case.adapter is None else case.adapter(),
            **others,
        }
    )


def finish(trainer: Any) -> Run:
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return Run(trainer, weights, trainer.state.log_history)


@pytest.fixture
def run(models, tmp_path) -> Callable[[Case, bool], Run]:
    """Runs a case with one of the trainers."""

    def run(case: Case, is_ours: bool) -> Run:
        trainer = make_trainer(case, is_ours, models, tmp_path)
        case.then(trainer)
        return finish(trainer)

    return run


MEASURED = ("runtime", "per_second", "preparation_time")
"""Ends of the names of figures that depend on the clock."""


def assert_equal_runs(ours: Run, theirs: Run) -> None:
    """That weights agree to 1e-6, and all figures that SFTTrainer logs."""
    assert ours.weights.keys() == theirs.weights.keys()
    for name, value in theirs.weights.items():
        assert (ours.weights[name] - value).abs().max().item() <= 1e-6, name
    assert len(ours.log) == len(theirs.log)
    for got, wanted in zip(ours.log, theirs.log, strict=True):
        assert wanted.keys() <= got.keys()
        for name, value in wanted.items():
            if not name.endswith(MEASURED):
                assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
