"""One small script with both trainers: models of two layers, ten rows of data, three steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
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

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "trainer.md"

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


def documented(first: str) -> list[list[str]]:
    """The rows of the table of the page on the trainer whose first column has this heading."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rest = lines[begin + 2 :]
    table = rest[: rest.index("")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in table]


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
    """Configuration arguments for both trainers. `MODEL` stands for the model's folder."""
    form: str = "prompt"
    """Form of the data, a key of `FORMS`."""
    change: Callable[[Dataset], Any] = lambda data: data
    """Changes the data before training."""
    adapter: Callable[[], Any] | None = None
    """Makes the `peft_config`."""
    model: str = "llama"
    others: Callable[[Any, Path], dict[str, Any]] = lambda model, folder: {}
    """More arguments of the trainer, from the model and a folder."""
    then: Callable[[Any], Any] = lambda trainer: trainer.train()
    """What the script does with the trainer."""
    figures: tuple[str, ...] = ()
    """Figures that the log must hold, among others."""
    is_positional: bool = False
    """Whether the arguments of `FIRST` are passed by their place."""
    tolerance: float = 1e-6
    """Tolerance for weights and logged figures."""

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
    # Matrices of whole blocks, for quantization.
    wide = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    found["wide"] = save_tiny_model(root / "wide", **wide)
    for folder in found.values():
        tokenizer.save_pretrained(folder)
        (folder / "other.jinja").write_text(TEMPLATE.replace("[", "("), encoding="utf-8")
    return found


FIRST = ("model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class")


def make_trainer(case: Case, is_ours: bool, models: dict[str, Path], folder: Path) -> Any:
    """The trainer of a case; `folder` is that of its output, in a folder of its class."""
    trainer_class, config_class = (
        (ForgettingTrainer, ForgettingConfig) if is_ours else (SFTTrainer, SFTConfig)
    )
    model = AutoModelForCausalLM.from_pretrained(models[case.model])
    others = case.others(model, models[case.model])
    args = {
        name: value.replace("MODEL", str(models[case.model])) if isinstance(value, str) else value
        for name, value in copy.deepcopy(case.args).items()
    }
    arguments = {
        "model": model,
        "args": config_class(
            output_dir=str(folder / trainer_class.__name__), **{**OPTIONS, **args}
        ),
        "train_dataset": case.change(rows(case.form)),
        "processing_class": AutoTokenizer.from_pretrained(models[case.model]),
        "peft_config": None if case.adapter is None else case.adapter(),
        **others,
    }
    first = FIRST if case.is_positional else ()
    return trainer_class(*[arguments.pop(name) for name in first], **arguments)


def finish(trainer: Any) -> Run:
    """What a trainer has ended with."""
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


def assert_equal_runs(
    ours: Run, theirs: Run, tolerance: float = 1e-6, ignored: Collection[str] = ()
) -> None:
    """That weights agree, and all figures that SFTTrainer logs, apart from some."""
    assert ours.weights.keys() == theirs.weights.keys()
    for name, value in theirs.weights.items():
        assert (ours.weights[name] - value).abs().max().item() <= tolerance, name
    assert len(ours.log) == len(theirs.log)
    for got, wanted in zip(ours.log, theirs.log, strict=True):
        assert wanted.keys() <= got.keys()
        for name, value in wanted.items():
            if not name.endswith(MEASURED) and name not in ignored:
                near = pytest.approx(value, rel=10 * tolerance, abs=tolerance)
                assert got[name] == near, name
