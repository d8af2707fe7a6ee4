"""Each feature of SFTTrainer that the documentation claims, with both trainers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import BitsAndBytesConfig, TrainerCallback

from tests.contract.conftest import (
    FORMS,
    Case,
    assert_equal_runs,
    documented,
    finish,
    make_trainer,
    rows,
)
from tests.training.conftest import StopAt


def lora(**changes):
    return lambda: LoraConfig(
        **{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    )


def plain_collator(examples):
    width = max(len(e["input_ids"]) for e in examples)

    def filled(values, fill):
        return torch.tensor([list(v) + [fill] * (width - len(v)) for v in values])

    ids = [e["input_ids"] for e in examples]
    return {
        "input_ids": filled(ids, 2),
        "labels": filled([e["labels"] for e in examples], -100),
        "attention_mask": filled([[1] * len(row) for row in ids], 0),
    }


class LogsOften(TrainerCallback):
    """Logs a figure of its own in each step, as scripts do."""

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.log({"own": float(state.global_step)})


def with_own_log(trainer):
    callback = LogsOften()
    callback.trainer = trainer
    trainer.add_callback(callback)
    trainer.train()


def set_late(trainer):
    trainer.args.learning_rate = 0.05
    trainer.args.max_steps = 2
    trainer.train()


def own_optimizer(model, folder):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return {"optimizers": (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))}


def accuracy(prediction):
    logits, labels = prediction.predictions, prediction.label_ids
    return {"hits": float((logits[:, :-1] == labels[:, 1:]).sum())}


def metrics(model, folder):
    return {
        "compute_metrics": accuracy,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        "eval_dataset": rows("prompt").select(range(4)),
    }


def hiding(data):
    """Rows of tensors without the polarity, which SFTTrainer does not need."""
    return data.with_format("torch", columns=["input_ids", "labels"])


def transformed(data):
    columns = {"input_ids": [], "labels": [], "polarity": []}

    def read(batch):
        found = {name: [] for name in columns}
        for prompt, answer in zip(batch["prompt"], batch["completion"], strict=True):
            for name, value in {**FORMS["tokens"](prompt, answer), "polarity": 1}.items():
                found[name].append(value)
        return found

    return data.remove_columns("polarity").with_transform(read)


def evaluate(trainer):
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(rows("messages").select(range(3)), metric_key_prefix="test")


def saved(trainer):
    trainer.train()
    trainer.save_model()
    best = Path(trainer.state.best_model_checkpoint)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "trainer_state.json"):
        assert (best / name).is_file()
    loaded = type(trainer.model).from_pretrained(trainer.args.output_dir)
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, loaded.get_parameter(name))


SKIP = {"dataset_kwargs": {"skip_prepare_dataset": True}}
ACCUMULATION = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
EVAL = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2}


def eval_set(model, folder):
    return {"eval_dataset": rows("prompt").select(range(4))}


CASES = [
    # data
    Case("text", form="text"),
    Case("text", {"dataset_text_field": "story"}, "story"),
    Case("prompt and completion"),
    Case("prompt and completion", {"completion_only_loss": False}),
    Case("prompt and completion", form="turns"),
    Case("messages", form="messages"),
    Case("messages", {"assistant_only_loss": True}, "messages"),
    Case("messages", form="sharegpt"),
    Case("tokens", form="tokens"),
    Case("tokens", form="masked"),
    Case(
        "formatting function",
        form="raw",
        others=lambda model, folder: {"formatting_func": lambda r: r["question"] + r["answer"]},
    ),
    Case("streams", change=lambda data: data.to_iterable_dataset()),
    Case(
        "formats",
        EVAL,
        form="tokens",
        change=lambda data: data.with_format("torch"),
        others=lambda model, folder: {"eval_dataset": hiding(rows("tokens"))},
    ),
    Case("formats", form="tokens", change=hiding),
    Case("formats", form="tokens", change=lambda d: d.to_iterable_dataset().with_format("torch")),
    Case("skipped preparation", SKIP, "tokens"),
    Case("skipped preparation", SKIP, "tokens", lambda data: data.with_format("torch")),
    Case("skipped preparation", SKIP, "tokens", hiding),
    Case("transforms", {**SKIP, "remove_unused_columns": False}, change=transformed),
    Case("special tokens", {"eos_token": "!", "pad_token": "#"}),
    Case("chat template", {"chat_template_path": "MODEL/other.jinja"}, "messages"),
    # batches
    Case("max_length", {"max_length": 20}, "text"),
    Case("packing", {"packing": True, "max_length": 40}, "text"),
    Case(
        "packing",
        {"packing": True, "packing_strategy": "bfd_split", "max_length": 18},
        "text",
    ),
    Case(
        "packing",
        {"packing": True, "packing_strategy": "wrapped", "max_length": 18, "shuffle_dataset": True},
        "text",
    ),
    Case("padding_free", {"padding_free": True}),
    Case("pad_to_multiple_of", {"pad_to_multiple_of": 8}),
    Case("data_collator", others=lambda model, folder: {"data_collator": plain_collator}),
    Case("accumulation", ACCUMULATION),
    Case("accumulation", {**ACCUMULATION, "num_train_epochs": 1.4, "max_steps": -1}),
    Case("sampling", {"train_sampling_strategy": "group_by_length", "shuffle_dataset": True}),
    Case("sampling", {"per_device_train_batch_size": 4, "dataloader_drop_last": True}),
    # training
    Case("optimizers", {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1}),
    Case("optimizers", {"optim": "adafactor", "learning_rate": 1e-3}),
    Case("optimizers", others=own_optimizer),
    Case(
        "optimizers",
        others=lambda model, folder: {
            "optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 1e-4})
        },
    ),
    Case("schedules", {"lr_scheduler_type": "cosine", "warmup_steps": 1, "max_grad_norm": 0.1}),
    Case("gradient checkpointing", {"gradient_checkpointing": True}),
    Case("NEFTune", {"neftune_noise_alpha": 5.0, **ACCUMULATION}),
    Case("arguments", then=set_late),
    # The products of the head are rounded in another order.
    Case("bfloat16", {"bf16": True}, tolerance=5e-4),
    Case(
        "arguments",
        EVAL,
        form="tokens",
        others=lambda model, folder: {**eval_set(model, folder), "data_collator": plain_collator},
        is_positional=True,
    ),
    # models
    Case("names", others=lambda model, folder: {"model": str(folder)}),
    Case("architectures", model="gpt_neo"),
    Case(
        "mixtures of experts",
        {"gradient_accumulation_steps": 2, "router_aux_loss_coef": 1.0},
        model="mixtral",
        figures=("aux_loss",),
    ),
    Case("mixtures of experts", {"router_aux_loss_coef": 0.0}, model="mixtral"),
    # adapters
    Case("LoRA", adapter=lora()),
    Case("LoRA", adapter=lora(modules_to_save=["lm_head"])),
    Case("LoRA", {**ACCUMULATION}, adapter=lora(lora_dropout=0.3)),
    Case("LoRA", {"gradient_checkpointing": True}, adapter=lora(use_rslora=True)),
    Case("LoRA", others=lambda model, folder: {"model": get_peft_model(model, lora()())}),
    Case("DoRA", adapter=lora(use_dora=True)),
    Case("IA3", adapter=lambda: IA3Config(task_type="CAUSAL_LM")),
    Case(
        "prompt tuning",
        adapter=lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ),
    Case(
        "p-tuning",
        adapter=lambda: PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
        ),
    ),
    Case(
        "prefix tuning",
        adapter=lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ),
    Case(
        "quantization",
        model="wide",
        adapter=lora(),
        others=lambda model, folder: {
            "model": str(folder),
            "quantization_config": BitsAndBytesConfig(load_in_4bit=True),
        },
        tolerance=5e-4,
    ),
    # runs
    Case(
        "evaluation",
        EVAL,
        others=eval_set,
        then=evaluate,
        figures=("num_tokens", "eval_num_tokens", "test_loss"),
    ),
    Case("evaluation", {**EVAL, "eval_on_start": True}, others=metrics),
    Case(
        "evaluation",
        {**EVAL, "packing": True, "max_length": 40, "eval_packing": False},
        others=lambda model, folder: {"eval_dataset": {"a": rows("text"), "b": rows("tokens")}},
    ),
    Case("logs", {"logging_steps": 2}),
    Case("logs", {"logging_steps": 10}, figures=("entropy", "mean_token_accuracy")),
    Case("callbacks", then=with_own_log),
    Case("callbacks", others=lambda model, folder: {"callbacks": [StopAt(2)]}),
    Case(
        "checkpoints",
        {
            **EVAL,
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 1,
            "load_best_model_at_end": True,
        },
        others=eval_set,
        then=saved,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_trainers_do_the_same(case, run):
    ours, theirs = run(case, True), run(case, False)
    assert_equal_runs(ours, theirs, case.tolerance)
    logged = {name for entry in theirs.log for name in entry}
    assert logged >= {"train_loss", *case.figures}


RESUMED = Case(
    "resume",
    {
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 7,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        **ACCUMULATION,
    },
    adapter=lora(lora_dropout=0.3),
)


@pytest.mark.parametrize("resume", [True, "checkpoint-2"])
def test_both_trainers_resume_to_the_same(resume, run, models, tmp_path):
    """Ours goes on counting tokens, as if it had not been interrupted; SFTTrainer begins anew."""
    straight = run(RESUMED, False)
    resumed = {}
    for is_ours in (True, False):
        folder = tmp_path / "again"
        trainer = make_trainer(RESUMED, is_ours, models, folder)
        trainer.add_callback(StopAt(5))
        trainer.train()
        trainer = make_trainer(RESUMED, is_ours, models, folder)
        output = Path(trainer.args.output_dir)
        trainer.train(resume_from_checkpoint=resume if resume is True else str(output / resume))
        resumed[is_ours] = finish(trainer)
    # The mean over the steps of the last call.
    assert_equal_runs(resumed[True], straight, ignored=["train_loss"])
    assert_equal_runs(resumed[True], resumed[False], ignored=["num_tokens"])


def test_the_documentation_lists_the_features():
    claimed = [name for row in documented("area") for name in row[1].replace("`", "").split(", ")]
    tested = {case.feature for case in CASES} | {"resume", "Hub"}
    assert sorted(claimed) == sorted(tested)
