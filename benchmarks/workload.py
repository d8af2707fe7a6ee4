"""What the benchmarks have in common: shapes of models, lengths of samples, clocks and gauges."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

SHAPES: dict[str, dict[str, Any]] = {
    "36m": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
MAX_LENGTH = 1024
CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 8


def draw_lengths(number: int, records: Path | None, seed: int) -> NDArray[np.int64]:
    """Tokens of prompts and responses, shape (number, 2).

    Args:
        records: JSON list of Alpaca records, whose lengths are drawn from; None: log-normal.
    """
    random = np.random.default_rng(seed)
    if records is None:
        # Medians and spread of the Alpaca corpus by the same count of characters.
        prompts = random.lognormal(3.29, 0.36, number)
        responses = random.lognormal(3.64, 1.23, number)
    else:
        given = json.loads(records.read_text(encoding="utf-8"))
        chosen = [given[i] for i in random.choice(len(given), number, len(given) < number)]
        characters = [
            (len(r["instruction"] + r.get("input", "")), len(r["output"])) for r in chosen
        ]
        prompts, responses = (np.array(characters) / CHARACTERS_PER_TOKEN).T
        prompts, responses = prompts + TEMPLATE_TOKENS, responses + 1
    prompts = np.clip(np.ceil(prompts), 1, MAX_LENGTH // 2)
    responses = np.clip(np.ceil(responses), 1, MAX_LENGTH // 2)
    return np.stack([prompts, responses], 1).astype(np.int64)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """For what asks for a tokenizer and is given tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="</s>"
    )


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def timed(
    function: Callable[[], Any], device: torch.device, clock: Callable[[], float]
) -> tuple[float, Any]:
    """Seconds that a function took, and its result."""
    synchronize(device)
    start = clock()
    result = function()
    synchronize(device)
    return clock() - start, result


def matmul_rate(
    dtype: torch.dtype, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations a second of a plain square product, the best of a few."""
    size = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with torch.inference_mode():
        seconds = min(timed(lambda: left @ right.T, device, clock)[0] for _ in range(3))
    return 2 * size**3 / seconds


def forget_peak(device: torch.device) -> None:
    """Start to look for the peak: what came before, as the loading of a model, is not counted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most bytes held since `forget_peak`: of the accelerator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def held_bytes(device: torch.device) -> int:
    """Bytes held now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss
