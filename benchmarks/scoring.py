"""Speed and memory of scoring, beside other ways to get the same numbers. Prints one table.

    python benchmarks/scoring.py [--lengths alpaca_data.json] [--model 36m|1b] [--device cuda]

Base and reference are scored on samples of random tokens whose lengths are those of a file of
Alpaca records, or log-normal. One process, the ways by turns, the best of `--repeats` each:

    ours    `score_samples` on the base, then on the base with its LoRA adapter
    (a)     batches of 6 in corpus order, padded, full float32 logits, two models loaded apart
    (b)     lm-eval's loglikelihood, with the batch size that is fastest for it
    (c)     `model(**batch).logits`, sorted by length, with the batch size that is fastest for it

Tokens are those of the samples, prompts too, each scored under both models. The share is that of
the floating-point operations that no way can do without (no padding, the head on response tokens
only, no adapter) in the rate of a plain matrix product of the same type, measured between turns.
Memory is measured apart, each way in a process of its own: what it holds at its peak above what
the process held with the models loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging
from workload import (
    MAX_LENGTH,
    SHAPES,
    draw_lengths,
    forget_peak,
    held_bytes,
    matmul_rate,
    peak_bytes,
    timed,
    word_tokenizer,
)

from forgetting.config import LoraSettings, ModelSettings, load_recipe
from forgetting.models import loading
from forgetting.models.adapters import attach_adapter
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, lists, write_table
from forgetting.rundir.stats import DataSummary, SplitCounts
from forgetting.scoring import score_samples

BATCH_SIZES = {"cpu": (4, 8, 16), "accelerator": (16, 32, 64, 128)}
WAYS = ("ours", "(a)", "(b)", "(c)")


@dataclass(frozen=True)
class Pair:
    """Prompt and response of one sample, as token ids."""

    prompt: list[int]
    response: list[int]


def draw_pairs(lengths: NDArray[np.int64], vocab_size: int) -> list[Pair]:
    random = np.random.default_rng(1)
    ids = (random.integers(3, vocab_size, total).tolist() for total in lengths.sum(1))
    return [Pair(row[:cut], row[cut:]) for row, cut in zip(ids, lengths[:, 0], strict=True)]


def to_samples(pairs: list[Pair]) -> Samples:
    return Samples.from_lists(
        [p.prompt + p.response for p in pairs],
        [[-100] * len(p.prompt) + p.response for p in pairs],
    )


class Models:
    """A random base and a LoRA reference on disk: the adapter, and merged for the other ways."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.base, self.adapter, self.merged = (folder / n for n in ("base", "adapter", "merged"))
        self.dtype = dtype
        self.device = device

    def save(self, shape: str) -> None:
        from peft import get_peft_model

        torch.manual_seed(0)
        tied = LlamaConfig(
            **SHAPES[shape],
            tie_word_embeddings=True,
            max_position_embeddings=MAX_LENGTH,
            pad_token_id=0,
        )
        with self.device:
            model = LlamaForCausalLM(tied).to(self.dtype)
        model.save_pretrained(self.base)
        settings = loading.lora_config(LoraSettings(rank=64, alpha=16))
        settings.init_lora_weights = False
        adapted = get_peft_model(model, settings)
        adapted.save_pretrained(self.adapter)
        adapted.merge_and_unload().save_pretrained(self.merged)

    def load(self, folder: Path) -> Any:
        settings = ModelSettings(name_or_path=str(folder))
        return loading.load_base_model(settings, self.dtype).to(self.device)

    def load_ours(self) -> Iterator[Any]:
        """Base, then reference, which takes its weights over."""
        model = self.load(self.base)
        yield model
        yield attach_adapter(model, self.adapter)

    def load_apart(self) -> Iterator[Any]:
        yield self.load(self.base)
        yield self.load(self.merged)


def score_batches(model: Any, pairs: list[Pair], order: NDArray, batch_size: int) -> NDArray:
    """Padded batches through the whole model; log-probabilities in the order of `pairs`."""
    device = next(model.parameters()).device
    found: list[Any] = [None] * len(pairs)
    with torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            rows = [pairs[i].prompt + pairs[i].response for i in chosen]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
            ids, mask = ids.to(device), mask.to(device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
            log_probs = -torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            ).view(len(rows), -1)
            values = log_probs.cpu().numpy()
            for row, index in enumerate(chosen):
                pair = pairs[index]
                first = len(pair.prompt) - 1
                found[index] = values[row, first : first + len(pair.response)]
    return np.concatenate(found)


def score_in_order(model: Any, pairs: list[Pair]) -> NDArray:
    return score_batches(model, pairs, np.arange(len(pairs)), 6)


def score_sorted(model: Any, pairs: list[Pair], batch_size: int) -> NDArray:
    order = np.argsort([-len(p.prompt) - len(p.response) for p in pairs], kind="stable")
    return score_batches(model, pairs, order, batch_size)


def score_lm_eval(model: Any, pairs: list[Pair], batch_size: int) -> NDArray:
    """One sum for each pair: lm-eval keeps no more."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = word_tokenizer()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    wrapped = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=MAX_LENGTH
    )
    requests = [(("", str(i)), p.prompt, p.response) for i, p in enumerate(pairs)]
    found = wrapped._loglikelihood_tokens(requests, disable_tqdm=True)
    return np.array([total for total, _ in found])


def score_ours(model: Any, samples: Samples, tokens_per_batch: int | None) -> NDArray:
    return score_samples(model, samples, tokens_per_batch=tokens_per_batch).log_probs


clock = time.perf_counter


def needed_operations(shape: dict[str, Any], lengths: NDArray[np.int64]) -> float:
    """Floating-point operations of one model's forward passes: no padding, the head on response
    tokens only, the causal half of attention."""
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    of_keys = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    in_layer = 2 * hidden * hidden + 2 * hidden * of_keys + 3 * hidden * shape["intermediate_size"]
    totals = lengths.sum(1).astype(np.float64)
    products = 2 * in_layer * layers * totals.sum()
    attention = 2 * hidden * layers * (totals**2).sum()
    return products + attention + 2 * hidden * shape["vocab_size"] * float(lengths[:, 1].sum())


def best_batch_size(
    score: Callable[[Any, list[Pair], int], Any], model: Any, pairs: list[Pair]
) -> int:
    device = next(model.parameters()).device
    sizes = BATCH_SIZES["cpu" if device.type == "cpu" else "accelerator"]
    by_length = sorted(pairs, key=lambda pair: -len(pair.prompt) - len(pair.response))
    # The longest are among them: a size that is chosen must be one whose logits fit into memory.
    some = [*by_length[: sizes[-1]], *pairs[: sizes[-1]]]

    def seconds(size: int) -> float:
        try:
            return timed(lambda: score(model, some, size), device, clock)[0]
        except torch.OutOfMemoryError:
            pass
        # Not above: until the exception is gone, its traceback holds the logits.
        torch.accelerator.empty_cache()
        return math.inf

    score(model, some[:1], 1)  # warms up
    return min(sizes, key=seconds)


def ways(
    samples: Samples, pairs: list[Pair], batch_sizes: dict[str, int], tokens_per_batch: int | None
) -> dict[str, Callable[[Any], Any]]:
    """Each way as a function of the model."""
    return {
        "ours": lambda model: score_ours(model, samples, tokens_per_batch),
        "(a)": lambda model: score_in_order(model, pairs),
        "(b)": lambda model: score_lm_eval(model, pairs, batch_sizes["(b)"]),
        "(c)": lambda model: score_sorted(model, pairs, batch_sizes["(c)"]),
    }


def in_own_process(*arguments: str) -> Any:
    """Run this file again for one measurement of memory; gives what it prints as JSON."""
    command = [sys.executable, __file__, *sys.argv[1:], *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_corpus(folder: Path, lengths: NDArray[np.int64], vocab_size: int) -> None:
    """A run directory with D_train, written in pieces."""
    (folder / "data").mkdir(parents=True)
    random = np.random.default_rng(2)
    totals = lengths.sum(1)
    starts = np.r_[0, np.cumsum(totals)]
    ids = random.integers(3, vocab_size, int(starts[-1]), dtype=np.int32)
    in_prompt = np.arange(ids.size) - np.repeat(starts[:-1], totals) < np.repeat(
        lengths[:, 0], totals
    )
    table = pa.table(
        {
            "sample_id": np.arange(len(lengths)),
            "source": pa.array([""] * len(lengths)),
            "input_ids": lists(ids, starts),
            "labels": lists(np.where(in_prompt, np.int32(-100), ids), starts),
            "noise": pa.nulls(len(lengths), pa.list_(pa.int8())),
            "noise_kind": pa.nulls(len(lengths), pa.string()),
            "weights": pa.nulls(len(lengths), pa.list_(pa.float32())),
            "is_negative": pa.nulls(len(lengths), pa.bool_()),
        }
    ).cast(SAMPLE_SCHEMA)
    write_table(table, layout.train_file(folder))
    splits = {"train": SplitCounts(len(lengths), int(lengths.sum()), int(lengths[:, 1].sum()))}
    summary = DataSummary(max_length=MAX_LENGTH, sources=[], splits=splits, end_token_ids=[])
    summary.save(layout.data_dir(folder))


def stage_peak(run: Path, model: Path) -> int:
    """Peak of the score stage as a whole, with a model so small that the corpus would show."""
    from forgetting.stages.score import SCORE

    recipe = load_recipe(
        "forgetting",
        [
            f"model.name_or_path={model}",
            f"reference.name_or_path={model}",
            "model.dtype=float32",
            "scoring.tokens_per_batch=8192",
        ],
    )
    work = Work(run / "work")
    work.output.mkdir(parents=True)
    with contextlib.redirect_stderr(io.StringIO()):
        SCORE.step(recipe).execute(run, work)
    return peak_bytes(torch.device("cpu"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(SHAPES), default="36m")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", type=Path, help="JSON list of Alpaca records")
    parser.add_argument("--device", default=loading.pick_device().type)
    parser.add_argument(
        "--dtype",
        choices=["auto", "bfloat16", "float32"],
        default="auto",
        help="auto: bfloat16 where the device computes in it, else float32",
    )
    parser.add_argument("--threads", type=int, help="of the CPU; default: all cores")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of the processor, not of the wall: on a machine that others use, one thread",
    )
    parser.add_argument("--tokens-per-batch", type=int, help="of ours; default: its own")
    parser.add_argument(
        "--corpus", type=int, default=8000, help="samples of the smaller corpus; 0: no such check"
    )
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave the ways' memory out"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--batch-sizes", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        fast = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def main() -> None:
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    if arguments.cpu_time:
        global clock
        clock = time.process_time
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    dtype = pick_dtype(arguments.dtype, device)
    if arguments.memory_of == "stage":
        run = arguments.folder
        print(json.dumps(stage_peak(run, run.parent / "small")))
        return
    shape = SHAPES[arguments.model]
    lengths = draw_lengths(arguments.samples, arguments.lengths, seed=0)
    pairs = draw_pairs(lengths, shape["vocab_size"])
    samples = to_samples(pairs)
    if arguments.memory_of:
        on_disk = Models(arguments.folder, dtype, device)
        # The published code of the method holds both models; the others one at a time.
        apart = arguments.memory_of == "(a)"
        loaded = list(on_disk.load_apart()) if apart else [on_disk.load(on_disk.base)]
        forget_peak(device)
        held = held_bytes(device)
        ways(samples, pairs, arguments.batch_sizes, arguments.tokens_per_batch)[
            arguments.memory_of
        ](loaded[0])
        print(json.dumps([held, peak_bytes(device)]))
        return
    with tempfile.TemporaryDirectory() as folder:
        on_disk = Models(Path(folder), dtype, device)
        on_disk.save(arguments.model)
        compare(arguments, on_disk, lengths, pairs, samples)
        if arguments.corpus:
            compare_corpora(arguments, Path(folder))


def compare(
    arguments: argparse.Namespace,
    on_disk: Models,
    lengths: NDArray[np.int64],
    pairs: list[Pair],
    samples: Samples,
) -> None:
    device, dtype = on_disk.device, on_disk.dtype
    base, merged = on_disk.load_apart()
    batch_sizes = {
        name: best_batch_size(score, base, pairs)
        for name, score in (("(b)", score_lm_eval), ("(c)", score_sorted))
        if name in arguments.ways
    }
    functions = ways(samples, pairs, batch_sizes, arguments.tokens_per_batch)
    seconds: dict[str, list[float]] = {name: [] for name in arguments.ways}
    rates = []
    results: dict[str, Any] = {}
    for _ in range(arguments.repeats):
        for name in arguments.ways:
            rates.append(matmul_rate(dtype, device, clock))
            given = on_disk.load_ours() if name == "ours" else iter((base, merged))
            parts = [
                timed(lambda m=model, n=name: functions[n](m), device, clock) for model in given
            ]
            seconds[name].append(sum(part[0] for part in parts))
            results[name] = parts[0][1]
    tokens = int(lengths.sum())
    needed = 2 * needed_operations(SHAPES[arguments.model], lengths)
    rate = max(rates)
    print(
        f"{arguments.model}, {_name(dtype)}, {device}, {torch.get_num_threads()} threads, "
        f"{len(pairs)} samples of {tokens} tokens ({int(lengths[:, 1].sum())} of responses), "
        f"best of {arguments.repeats}{', processor time' if arguments.cpu_time else ''}\n"
        f"matrix product: {rate / 1e9:.1f} GFLOP/s; median of {len(rates)}: "
        f"{np.median(rates) / 1e9:.1f}\n"
    )
    print(
        f"{'':6}{'batch':>8}{'tokens/s':>10}{'ours is':>9}{'by turn':>14}{'share':>8}"
        f"{'models MiB':>12}{'peak above':>12}{'differs by':>12}"
    )
    for name in arguments.ways:
        best = min(seconds[name])
        ratio = turns = differs = ""
        if "ours" in seconds and name != "ours":
            by_turn = np.array(seconds[name]) / np.array(seconds["ours"])
            ratio = f"{best / min(seconds['ours']):.2f}x"
            turns = f"{by_turn.min():.2f}-{by_turn.max():.2f}"
            differs = f"{_difference(results['ours'], results[name], samples):.1e}"
        memory = f"{'':24}"
        if arguments.memory:
            held, peak = in_own_process(
                "--folder", str(on_disk.base.parent), "--memory-of", name,
                "--batch-sizes", json.dumps(batch_sizes),
            )  # fmt: skip
            memory = f"{held / 2**20:>12.0f}{(peak - held) / 2**20:>12.0f}"
        size = {"(a)": 6, **batch_sizes}.get(name, "auto")
        print(
            f"{name:6}{size:>8}{tokens / best:>10.0f}{ratio:>9}{turns:>14}"
            f"{needed / best / rate:>8.0%}{memory}{differs:>12}",
            flush=True,
        )


def _difference(ours: NDArray, other: NDArray, samples: Samples) -> float:
    """Of log-probabilities; of their sums where a way gives no more."""
    if other.size != ours.size:
        ours = np.add.reduceat(ours.astype(np.float64), samples.response_starts[:-1])
    return float(np.abs(ours - other).max())


def compare_corpora(arguments: argparse.Namespace, folder: Path) -> None:
    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=MAX_LENGTH,
    )
    LlamaForCausalLM(small).save_pretrained(folder / "small")
    peaks = []
    print()
    for number in (arguments.corpus, 10 * arguments.corpus):
        lengths = draw_lengths(number, arguments.lengths, seed=1)
        run = folder / f"run-{number}"
        write_corpus(run, lengths, small.vocab_size)
        peaks.append(in_own_process("--folder", str(run), "--memory-of", "stage"))
        print(
            f"stage score, corpus of {number} samples, {int(lengths.sum())} tokens: "
            f"peak {peaks[-1] / 2**20:.0f} MiB"
        )
    print(f"10 times the corpus: {peaks[1] / peaks[0] - 1:+.1%}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
