"""Log-probability of every response token under a model.

Goes in: samples and a model. Comes out: one float32 per response token, in the one order of
tokens, whatever the batches were. The head sees only the positions that predict a response
token, a tile at a time, so full logits never exist; the log-sum-exp is float32. Knows nothing of
what the scores are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from forgetting.data.samples import Samples
from forgetting.errors import ForgettingError
from forgetting.head import Head, predict, split_head

TOKENS_PER_BATCH = 8192
# More only makes a CPU wait for fresh pages of memory.
TOKENS_PER_BATCH_CPU = 1024


@dataclass(frozen=True)
class Scores:
    """What one pass over the samples yields, for each response token."""

    log_probs: NDArray[np.float32]
    """Natural logarithm, shape (response tokens,)."""
    is_greedy: NDArray[np.bool_]
    """Whether the model finds no token more likely; same shape."""


def score_samples(
    model: Any,
    samples: Samples,
    indices: Sequence[int] | NDArray | None = None,
    *,
    tokens_per_batch: int | None = None,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> Scores:
    """Score the response tokens of samples.

    Args:
        model: a causal language model of transformers, with or without a PEFT adapter.
        samples: the samples.
        indices: which of them; default all. The result is in this order.
        tokens_per_batch: padded tokens in one forward pass; None: 8192 on an accelerator, 1024 on a
            CPU. Changes speed and memory, not scores.
        advance: called with the number of samples done since the last call.

    Raises:
        ForgettingError: the model gives a score that is not finite, or its own logits do not
            agree with the ones computed here.
    """
    chosen = np.arange(len(samples)) if indices is None else np.asarray(indices)
    counts = samples.num_response_tokens[chosen]
    starts = np.r_[0, np.cumsum(counts)]
    log_probs = np.empty(starts[-1], dtype=np.float32)
    is_greedy = np.empty(starts[-1], dtype=bool)
    head = split_head(model)
    checked = False
    with torch.inference_mode():
        device = next(model.parameters()).device
        on_cpu = device.type == "cpu"
        budget = tokens_per_batch or (TOKENS_PER_BATCH_CPU if on_cpu else TOKENS_PER_BATCH)
        for batch in _batches(samples.lengths[chosen], budget):
            inputs = _pad(samples, chosen[batch], device)
            batch_log_probs, batch_greedy = _score_batch(head, inputs)
            if not checked:
                _check_head(model, inputs, batch_log_probs)
                checked = True
            ends = np.cumsum(counts[batch])
            for place, end in zip(batch, ends, strict=True):
                begin = end - counts[place]
                target = slice(starts[place], starts[place + 1])
                log_probs[target] = batch_log_probs[begin:end]
                is_greedy[target] = batch_greedy[begin:end]
            advance(len(batch), "")
    if not np.isfinite(log_probs).all():
        token = int(np.flatnonzero(~np.isfinite(log_probs))[0])
        sample = samples.sample_ids[chosen[np.searchsorted(starts, token, side="right") - 1]]
        raise ForgettingError(
            f"the model gives sample {sample} a log-probability of {log_probs[token]}. Its weights "
            "are damaged, or its numbers overflow: try model.dtype float32"
        )
    return Scores(log_probs, is_greedy)


def score_dataset(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    tokens_per_batch: int | None = None,
) -> list[NDArray[np.float32]]:
    """Log-probabilities of the labelled tokens of tokenised samples.

    Args:
        model: a causal language model of transformers, with or without a PEFT adapter.
        input_ids: token ids of each sample.
        labels: of the same lengths; -100 where a token is not to be scored. The first token
            of a sample is never scored.
        tokens_per_batch: padded tokens in one forward pass; None as in `score_samples`.

    Returns:
        One array for each sample, of as many values as it has scored tokens.

    Raises:
        ForgettingError: a score is not finite.
    """
    samples = Samples.from_lists(input_ids, labels)
    scores = score_samples(model, samples, tokens_per_batch=tokens_per_batch)
    return np.split(scores.log_probs, samples.response_starts[1:-1])


def _batches(lengths: ArrayLike, tokens_per_batch: int) -> Iterator[NDArray[np.int64]]:
    """Places of samples of like length, longest first, so that a batch that does not fit fails
    at once; a batch holds at least one sample."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < order.size:
        size = max(1, tokens_per_batch // int(lengths[order[begin]]))
        yield order[begin : begin + size]
        begin += size


@dataclass(frozen=True)
class _Inputs:
    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    """(row, position) of each token to score, in the order of samples and positions."""
    positions: Tensor


def _pad(samples: Samples, indices: NDArray, device: torch.device) -> _Inputs:
    longest = int(samples.lengths[indices].max())
    shape = (len(indices), longest)
    ids = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    is_response = np.zeros(shape, dtype=bool)
    for row, index in enumerate(indices):
        begin, end = samples.token_starts[index], samples.token_starts[index + 1]
        ids[row, : end - begin] = samples.input_ids[begin:end]
        mask[row, : end - begin] = 1
        is_response[row, : end - begin] = samples.is_response[begin:end]
    rows, positions = np.nonzero(is_response)
    tensors = (torch.from_numpy(array).to(device) for array in (ids, mask, rows, positions))
    return _Inputs(*tensors)


def _score_batch(head: Head, inputs: _Inputs) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    hidden = head.backbone(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, use_cache=False
    ).last_hidden_state
    # Position i predicts the token at i + 1.
    found = predict(
        head,
        hidden[inputs.rows, inputs.positions - 1],
        inputs.input_ids[inputs.rows, inputs.positions],
        with_entropy=False,
    )
    return found.log_probs.cpu().numpy(), found.is_greedy.cpu().numpy()


def _check_head(model: Any, inputs: _Inputs, log_probs: NDArray) -> None:
    """Compare with the model's own logits: an architecture may do more in its head than we know."""
    row = int(inputs.rows[-1])
    logits = model(
        input_ids=inputs.input_ids[row : row + 1],
        attention_mask=inputs.attention_mask[row : row + 1],
        use_cache=False,
    ).logits.float()
    position = int(inputs.positions[-1])
    target = inputs.input_ids[row, position]
    own = float(logits[0, position - 1].log_softmax(-1)[target])
    tolerance = 1e-3 if logits.dtype == torch.float32 and _is_float32(model) else 0.25
    if abs(own - float(log_probs[-1])) > tolerance + 1e-3 * abs(own):
        raise ForgettingError(
            f"{type(model).__name__} computes its logits in a way that is not supported: the last "
            f"token of a sample has log-probability {own:.4f} by the model and "
            f"{float(log_probs[-1]):.4f} by its head"
        )


def _is_float32(model: Any) -> bool:
    return next(model.parameters()).dtype == torch.float32
