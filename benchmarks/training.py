"""Time and memory of an optimizer step, beside other ways to take it. Prints one table.

    python benchmarks/training.py [--vocab 128256] [--full] [--model 1b --device cuda]

A model with random weights learns and unlearns random tokens, 24 samples a step in micro-batches
of 2, as in the paper's runs; lengths are log-normal as those of the Alpaca corpus, or `--length`
for all. One process, the ways by turns, the median step of `--repeats` turns:

    ours     `ForgettingTrainer`, gradient ascent on three tenths of the response tokens
    sft      `trl.SFTTrainer` on the same samples, all tokens learned
    plain    full float32 logits; the mask of each micro-batch made by walking over the positions
             of all tokens of a corpus of `--corpus-tokens`, and means over the micro-batch, as the
             published code of the paper does

Memory is measured apart, each way in a process of its own: what a run holds at its peak above
what the process held with the model loaded. On an accelerator the use of its arithmetic is given
too: the floating-point operations of the model (twice its weights for each token forward, as many
backward, and as many again where the weights are trained) in the rate of a plain matrix product.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer
from workload import (
    MAX_LENGTH,
    SHAPES,
    draw_lengths,
    forget_peak,
    held_bytes,
    matmul_rate,
    peak_bytes,
    synchronize,
    word_tokenizer,
)

from forgetting import ForgettingConfig, ForgettingTrainer
from forgetting.config import LoraSettings
from forgetting.models.loading import lora_config

WAYS = ("ours", "sft", "plain")
BATCH_SIZE, MICRO_BATCH_SIZE = 24, 2
LAMBDA = 0.1
WARM_UP_STEPS = 1


def draw_samples(number: int, length: int | None, vocab_size: int) -> list[dict[str, list[int]]]:
    """Random tokens; three tenths of the response tokens are negative."""
    random = np.random.default_rng(0)
    lengths = draw_lengths(number, None, 0)
    if length is not None:
        lengths = np.tile([length // 3, length - length // 3], (number, 1))
    rows = []
    for prompt, response in lengths.tolist():
        ids = random.integers(3, vocab_size, prompt + response).tolist()
        signs = np.where(random.random(response) < 0.3, -1, 1).tolist()
        rows.append(
            {
                "input_ids": ids,
                "labels": [-100] * prompt + ids[prompt:],
                "polarity": [0] * prompt + signs,
            }
        )
    return rows


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step, from its first micro-batch on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - self.start)


def train_with(trainer_class: Any, model: Any, rows: list[Any], options: Any) -> list[float]:
    """Seconds of each step."""
    common: dict[str, Any] = {
        "output_dir": options.folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": MICRO_BATCH_SIZE,
        "gradient_accumulation_steps": BATCH_SIZE // MICRO_BATCH_SIZE,
        "max_length": None,
        "learning_rate": 1e-4,
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "bf16": options.device.type != "cpu",
        "use_cpu": options.device.type == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
    }
    times = StepTimes(options.device)
    if trainer_class is ForgettingTrainer:
        args = ForgettingConfig(
            **common,
            schedule="constant",
            t_max=LAMBDA,
            divergence_ratio=None,
            # As the stage `train` does.
            sort_by_length=True,
        )
    else:
        args = SFTConfig(**common)
        rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(),
        callbacks=[times],
        peft_config=None if options.full else lora_config(LoraSettings()),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return times.seconds


def train_plainly(model: Any, rows: list[Any], options: Any) -> list[float]:
    """Seconds of each step, with full logits and masks made position by position."""
    if not options.full:
        model = get_peft_model(model, lora_config(LoraSettings()))
    model.train()
    device = options.device
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    positions = corpus_positions(rows, options.corpus_tokens)
    seconds = []
    for step in range(options.steps):
        start = time.perf_counter()
        for micro in range(BATCH_SIZE // MICRO_BATCH_SIZE):
            first = (step * BATCH_SIZE + micro * MICRO_BATCH_SIZE) % len(rows)
            indices = [(first + i) % len(rows) for i in range(MICRO_BATCH_SIZE)]
            width = max(len(rows[i]["input_ids"]) for i in indices)
            ids = torch.zeros(len(indices), width, dtype=torch.long)
            attention = torch.zeros_like(ids)
            for place, i in enumerate(indices):
                ids[place, : len(rows[i]["input_ids"])] = torch.tensor(rows[i]["input_ids"])
                attention[place, : len(rows[i]["input_ids"])] = 1
            masks = {sign: torch.zeros(ids.shape, dtype=torch.bool) for sign in (1, -1)}
            for sign, mask in masks.items():
                for sample, position in positions[sign]:
                    if sample in indices:
                        mask[indices.index(sample), position] = True
            ids, attention = ids.to(device), attention.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
                logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none"
            )
            positive, negative = (masks[sign][:, 1:].to(device) for sign in (1, -1))
            loss = (losses * positive).sum() / (positive.sum() + 1e-10)
            loss = loss - LAMBDA * (losses * negative).sum() / (negative.sum() + 1e-10)
            (loss / (BATCH_SIZE // MICRO_BATCH_SIZE)).backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def corpus_positions(rows: list[Any], num_tokens: int) -> dict[int, list[tuple[int, int]]]:
    """(sample, position) of the samples' response tokens, and of others up to `num_tokens`."""
    found: dict[int, list[tuple[int, int]]] = {1: [], -1: []}
    for index, row in enumerate(rows):
        for position, sign in enumerate(row["polarity"]):
            if sign:
                found[sign].append((index, position))
    present = sum(map(len, found.values()))
    for number in range(max(num_tokens - present, 0)):
        found[-1 if number % 10 < 3 else 1].append((len(rows) + number // 64, number % 64))
    return found


def way_of(name: str, options: Any) -> Callable[[Any, list[Any]], list[float]]:
    if name == "plain":
        return lambda model, rows: train_plainly(model, rows, options)
    trainer_class = ForgettingTrainer if name == "ours" else SFTTrainer
    return lambda model, rows: train_with(trainer_class, model, rows, options)


def make_model(options: Any) -> Any:
    torch.manual_seed(0)
    shape = {**SHAPES[options.model], "vocab_size": options.vocab}
    config = LlamaConfig(
        **shape, tie_word_embeddings=True, max_position_embeddings=MAX_LENGTH * 2, pad_token_id=0
    )
    frozen_in_bf16 = options.device.type != "cpu" and not options.full
    dtype = torch.bfloat16 if frozen_in_bf16 else torch.float32
    with options.device:
        return LlamaForCausalLM(config).to(dtype)


def measure_memory(name: str, options: Any) -> int:
    """Peak bytes of one way, in a process of its own."""
    arguments = [*sys.argv[1:], "--memory-of", name, "--steps", str(WARM_UP_STEPS + 1)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    return int(done.stdout.strip().splitlines()[-1])


def measure_times(options: Any) -> dict[str, list[float]]:
    rows = draw_samples(options.steps * BATCH_SIZE, options.length, options.vocab)
    original = make_model(options)
    seconds: dict[str, list[float]] = {name: [] for name in options.ways}
    for turn in range(options.repeats):
        names = options.ways if turn % 2 == 0 else options.ways[::-1]
        for name in names:
            taken = way_of(name, options)(copy.deepcopy(original), rows)
            seconds[name] += taken[WARM_UP_STEPS:]
            gc.collect()
    return seconds


def print_table(options: Any, seconds: dict[str, list[float]], peaks: dict[str, int]) -> None:
    rows = draw_samples(options.steps * BATCH_SIZE, options.length, options.vocab)
    tokens = sum(len(r["input_ids"]) for r in rows[WARM_UP_STEPS * BATCH_SIZE :])
    tokens_per_step = tokens / (options.steps - WARM_UP_STEPS)
    print(
        f"{options.model} Llama, vocabulary {options.vocab:,}, "
        f"{'all weights' if options.full else 'LoRA rank 64'}, {options.device}, "
        f"{BATCH_SIZE} samples in micro-batches of {MICRO_BATCH_SIZE}, "
        f"{tokens_per_step:,.0f} tokens a step"
    )
    titles = ["way", "s/step", "of sft", "tokens/s", "peak MB", "of sft"]
    rate = None
    if options.device.type != "cpu":
        rate = matmul_rate(torch.bfloat16, options.device)
        titles.append("of matmul")
    print("  ".join(f"{title:>10}" for title in titles))
    weights = sum(p.numel() for p in make_model(options).parameters())
    per_token = (6 if options.full else 4) * weights
    for name in options.ways:
        median = statistics.median(seconds[name])
        cells = [name, f"{median:.3f}", f"{median / statistics.median(seconds['sft']):.2f}"]
        cells.append(f"{tokens_per_step / median:,.0f}")
        cells += [f"{peaks[name] / 1e6:,.0f}", f"{peaks[name] / peaks['sft']:.2f}"]
        if rate is not None:
            cells.append(f"{per_token * tokens_per_step / median / rate:.1%}")
        print("  ".join(f"{cell:>10}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="36m")
    parser.add_argument("--vocab", type=int, help="default: that of the shape")
    parser.add_argument("--length", type=int, help="of all samples; default: as Alpaca's")
    parser.add_argument("--full", action="store_true", help="train all weights, not an adapter")
    parser.add_argument(
        "--steps", type=int, default=4, help="of a turn, at least 2: one is not counted"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--corpus-tokens", type=int, default=3_300_000)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps <= WARM_UP_STEPS:
        parser.error(f"--steps must be above {WARM_UP_STEPS}: the first ones are not measured")
    options.vocab = options.vocab or SHAPES[options.model]["vocab_size"]
    if "sft" not in options.ways:
        parser.error("--ways needs sft: the others are measured by it")
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        if options.memory_of:
            rows = draw_samples(options.steps * BATCH_SIZE, options.length, options.vocab)
            model = make_model(options)
            forget_peak(options.device)
            held = held_bytes(options.device)
            way_of(options.memory_of, options)(model, rows)
            print(peak_bytes(options.device) - held)
            return
        seconds = measure_times(options)
        peaks = {name: measure_memory(name, options) for name in options.ways}
        print_table(options, seconds, peaks)


if __name__ == "__main__":
    main()
