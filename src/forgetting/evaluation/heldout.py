"""How well a model predicts held-out responses: loss, perplexity, greedy matches.

Input: a model in memory and samples. Output: one `TaskResult`, and what the model makes of every
response token. Of several processes, each scores its share of the samples, and all have the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from numpy.typing import NDArray

from forgetting.rundir.results import HELDOUT, Group, Metric, TaskResult
from forgetting.rundir.samples import Samples
from forgetting.scoring import score_samples


@dataclass(frozen=True)
class HeldoutMeasurement:
    """What a model makes of held-out samples."""

    result: TaskResult
    log_probs: NDArray[np.float64]
    """Log-probability of each response token, shape (response tokens,)."""
    is_greedy: NDArray[np.bool_]
    """Whether it is the most likely one, same shape."""


def evaluate_heldout(
    model: Any,
    samples: Samples,
    *,
    tokens_per_batch: int | None = None,
    process_index: int = 0,
    num_processes: int = 1,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> HeldoutMeasurement:
    """Measure how well a model predicts held-out responses.

    `loss` is the mean cross-entropy of the response tokens in nats, its standard error that of
    a ratio over samples, since tokens of one response are not independent. `perplexity` is its
    exponential. `exact_match` is the share of responses that greedy decoding would produce token
    for token, including the end. Every token is then the most likely one after those before it,
    so one forward pass is enough. `token_accuracy` is the share of such tokens.

    Args:
        samples: at least one.
        process_index: which of `num_processes`, met in torch.distributed, this one is.
    """
    counts = samples.num_response_tokens
    # Samples of other processes stay zero here, and are added.
    log_probs, is_greedy = np.zeros((2, int(counts.sum())))
    own = np.arange(process_index, len(samples), num_processes)
    if len(own):
        scores = score_samples(
            model, samples, own, tokens_per_batch=tokens_per_batch, advance=advance
        )
        is_own = np.zeros(len(samples), dtype=bool)
        is_own[own] = True
        places = samples.per_response_token(is_own)
        log_probs[places], is_greedy[places] = scores.log_probs, scores.is_greedy
    if num_processes > 1:
        log_probs, is_greedy = (_sum_over_processes(values) for values in (log_probs, is_greedy))
    starts = samples.response_starts[:-1]
    losses, hits = (np.add.reduceat(values, starts) for values in (-log_probs, is_greedy))
    sources = np.asarray(samples.table["source"].to_pylist(), dtype=object)
    groups = {
        str(name): _response_metrics(
            losses[sources == name], counts[sources == name], hits[sources == name]
        )
        for name in sorted(set(sources))
    }
    whole = _response_metrics(losses, counts, hits)
    result = TaskResult(task=HELDOUT, local=True, groups=groups, **whole.model_dump())
    return HeldoutMeasurement(result, log_probs, is_greedy.astype(bool))


def _sum_over_processes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    tensor = torch.from_numpy(values).to(PartialState().device)
    return reduce(tensor, reduction="sum").cpu().numpy()


def _response_metrics(
    losses: NDArray[np.float64], counts: NDArray[np.int64], hits: NDArray[np.float64]
) -> Group:
    """Metrics from sums over the tokens of each response; all of shape (samples,)."""
    num_items = len(losses)
    loss, stderr = _token_mean(losses, counts)
    accuracy = float((hits == counts).mean())
    spread = math.sqrt(accuracy * (1 - accuracy) / (num_items - 1)) if num_items > 1 else None
    right, right_stderr = _token_mean(hits, counts)
    # exp(709) is the largest that a float holds.
    perplexity = math.exp(min(loss, 709.0))
    perplexity_stderr = None if stderr is None else perplexity * stderr
    return Group(
        num_items=num_items,
        metrics={
            "exact_match": Metric(value=accuracy, stderr=spread, higher_is_better=True),
            "token_accuracy": Metric(value=right, stderr=right_stderr, higher_is_better=True),
            "loss": Metric(value=loss, stderr=stderr, higher_is_better=False),
            "perplexity": Metric(
                value=perplexity, stderr=perplexity_stderr, higher_is_better=False
            ),
        },
    )


def _token_mean(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[float, float | None]:
    """Mean over all tokens, and its standard error as that of a ratio over samples."""
    num_items, num_tokens = len(sums), int(counts.sum())
    mean = float(sums.sum() / num_tokens)
    if num_items == 1:
        return mean, None
    residuals = sums - mean * counts
    variance = num_items / (num_items - 1) * float((residuals**2).sum())
    return mean, math.sqrt(variance) / num_tokens
