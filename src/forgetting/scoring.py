"""Scores of every response token under a model: log-probability and other statistics.

Input: samples and a model. Output: one value per response token and statistic, in the order
of the tokens, independent of the batches. One forward pass yields all statistics. It reads a
sample up to its last response token, in batches of similar length. The head sees only the
positions that predict a response token, so full logits never exist; all sums are float32. Knows
nothing of what the scores are for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from forgetting.errors import ForgettingError
from forgetting.models.lm_head import Head, split_head
from forgetting.models.token_statistics import (
    STATISTICS,
    TokenStatistics,
    check_statistics,
    measure,
)
from forgetting.models.top_tokens import TopTokens, best_others
from forgetting.rundir.samples import Samples
from forgetting.rundir.token_alternatives import TokenAlternatives

TOKENS_PER_BATCH = 8192
# More only makes a CPU wait for fresh pages of memory.
TOKENS_PER_BATCH_CPU = 1024
_DTYPES: dict[str, Any] = {"is_greedy": np.bool_, "rank": np.int32}


@dataclass(frozen=True)
class Scores:
    """Statistics of each response token's prediction; every array has shape (response tokens,).

    Natural logarithms. The prediction p is a distribution over the vocabulary; fields that were not
    requested are None.
    """

    log_probs: NDArray[np.float32]
    """Log-probability of the token in nats."""
    is_greedy: NDArray[np.bool_]
    """Whether no other token is more likely."""
    entropy: NDArray[np.float32] | None = None
    """Entropy H of the prediction in nats."""
    surprise_std: NDArray[np.float32] | None = None
    """Standard deviation of the surprise -log p(v) for v drawn from p, in nats:
    sqrt(sum_v p(v) log(p(v))^2 - H^2)."""
    best_other_log_prob: NDArray[np.float32] | None = None
    """Largest log-probability among all other tokens, in nats, at least -10,000."""
    rank: NDArray[np.int32] | None = None
    """Number of tokens that are strictly more likely."""
    sum_squares: NDArray[np.float32] | None = None
    """Sum of the squared probabilities of all tokens."""

    def split(self, boundaries: NDArray[np.int64]) -> list[Scores]:
        """Cut at the given places, as `numpy.split` does."""
        parts = {
            field.name: np.split(values, boundaries)
            for field in fields(self)
            if (values := getattr(self, field.name)) is not None
        }
        return [
            Scores(**{name: of_name[index] for name, of_name in parts.items()})
            for index in range(len(boundaries) + 1)
        ]


def score_samples(
    model: Any,
    samples: Samples,
    indices: Sequence[int] | NDArray | None = None,
    *,
    statistics: Collection[str] = (),
    tokens_per_batch: int | None = None,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> Scores:
    """Score the response tokens of samples.

    Args:
        model: a causal language model of transformers, with or without a PEFT adapter.
        samples: the samples.
        indices: which of them; default all. The result is in this order.
        statistics: fields of `Scores` to compute in addition to `log_probs` and `is_greedy`:
            any of `STATISTICS`.
        tokens_per_batch: padded tokens in one forward pass; None: 8192 on an accelerator, 1024 on a
            CPU. Changes speed and memory, not scores.
        advance: called with the number of samples done since the last call.

    Raises:
        InputError: a name in `statistics` is unknown.
        ForgettingError: the model gives a score that is not finite, or its own logits do not
            agree with the ones computed here.
    """
    wanted = check_statistics(statistics)
    chosen = np.arange(len(samples)) if indices is None else np.asarray(indices)
    counts = samples.num_response_tokens[chosen]
    starts = np.r_[0, np.cumsum(counts)]
    head = split_head(model)
    device = next(model.parameters()).device
    budget = tokens_per_batch or (
        TOKENS_PER_BATCH_CPU if device.type == "cpu" else TOKENS_PER_BATCH
    )
    found: list[TokenStatistics] = []
    places: list[NDArray[np.int64]] = []
    with torch.inference_mode():
        for batch in _batches(_lengths_read(samples)[chosen], budget):
            inputs = _pad(samples, chosen[batch], device)
            hidden = _hidden(head, inputs)
            scores = measure(head, hidden, inputs.targets, wanted)
            if not found:
                _check_head(model, inputs, scores.log_probs)
            found.append(scores)
            places.extend(np.arange(starts[place], starts[place + 1]) for place in batch)
            advance(len(batch), "")
    advance(int((counts == 0).sum()), "")
    order = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)

    def gather(name: str) -> NDArray[Any]:
        # One transfer for all batches: until here, nothing has waited for an accelerator.
        values = np.empty(order.size, dtype=_DTYPES.get(name, np.float32))
        if found:
            values[order] = torch.cat([getattr(scores, name) for scores in found]).cpu().numpy()
        return values

    names = ["log_probs", "is_greedy", *(name for name in STATISTICS if name in wanted)]
    columns = {name: gather(name) for name in names}
    for name, values in columns.items():
        if not np.isfinite(values).all():
            token = int(np.flatnonzero(~np.isfinite(values))[0])
            sample = samples.sample_ids[chosen[np.searchsorted(starts, token, side="right") - 1]]
            raise ForgettingError(
                f"sample {sample}: the model gives {name} = {values[token]}. Its weights are "
                "damaged, or its numbers overflow. Set model.dtype to float32"
            )
    return Scores(**columns)


def find_alternatives(
    model: Any,
    samples: Samples,
    tokens: NDArray[np.int64],
    num_alternatives: int,
    *,
    tokens_per_batch: int | None = None,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> TokenAlternatives:
    """Find what a model expects in the place of some response tokens.

    Args:
        model: as for `score_samples`.
        samples: the samples.
        tokens: places among all response tokens of the samples, ascending. Samples without one are
            not read.
        num_alternatives: number of most likely other tokens to keep, fewer if the vocabulary is
            smaller.
        tokens_per_batch: as for `score_samples`.
        advance: called with the number of samples done since the last call.

    Raises:
        ForgettingError: the model gives a log-probability that is not finite.
    """
    if not len(tokens):
        none = np.zeros((0, 0))
        return TokenAlternatives(tokens, none.astype(np.int32), np.zeros((0, 1), np.float32))
    is_chosen = np.zeros(samples.response_ids.size, dtype=bool)
    is_chosen[tokens] = True
    starts = samples.response_starts
    rows = np.unique(np.searchsorted(starts, tokens, side="right") - 1)
    head = split_head(model)
    device = next(model.parameters()).device
    budget = tokens_per_batch or (
        TOKENS_PER_BATCH_CPU if device.type == "cpu" else TOKENS_PER_BATCH
    )
    found: list[TopTokens] = []
    places: list[NDArray[np.int64]] = []
    with torch.inference_mode():
        for batch in _batches(_lengths_read(samples)[rows], budget):
            inputs = _pad(samples, rows[batch], device)
            own = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows[batch]])
            wanted = torch.from_numpy(is_chosen[own]).to(device)
            hidden = _hidden(head, inputs)[wanted]
            found.append(best_others(head, hidden, inputs.targets[wanted], num_alternatives))
            places.append(own[is_chosen[own]])
            advance(len(batch), "")
    order = np.argsort(np.concatenate(places))
    ids = torch.cat([best.ids for best in found]).int().cpu().numpy()[order]
    log_probs = torch.cat([torch.cat([b.log_probs, b.log_rest[:, None]], 1) for b in found])
    values = log_probs.cpu().numpy()[order]
    if not np.isfinite(values).all():
        token = tokens[np.flatnonzero(~np.isfinite(values).all(1))[0]]
        sample = samples.sample_ids[np.searchsorted(starts, token, side="right") - 1]
        raise ForgettingError(
            f"sample {sample}: the model gives a log-probability that is not finite. Its weights "
            "are damaged, or its numbers overflow. Set model.dtype to float32"
        )
    return TokenAlternatives(tokens, ids, values)


@overload
def score_dataset(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    statistics: None = None,
    tokens_per_batch: int | None = None,
) -> list[NDArray[np.float32]]: ...


@overload
def score_dataset(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    statistics: Collection[str],
    tokens_per_batch: int | None = None,
) -> list[Scores]: ...


def score_dataset(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    statistics: Collection[str] | None = None,
    tokens_per_batch: int | None = None,
) -> list[NDArray[np.float32]] | list[Scores]:
    """Score the labeled tokens of tokenized samples.

    Args:
        model: a causal language model of transformers, with or without a PEFT adapter.
        input_ids: token ids of each sample.
        labels: of the same lengths; -100 where a token is not to be scored. The first token
            of a sample is never scored.
        statistics: None to get log-probabilities alone; else the fields of `Scores` to compute in
            addition: any of `entropy`, `surprise_std`, `best_other_log_prob`, `rank`,
            `sum_squares`.
        tokens_per_batch: padded tokens in one forward pass; None as in `score_samples`.

    Returns:
        One item per sample: the log-probabilities of its scored tokens in nats, shape (scored
        tokens,); `Scores` with these and the requested statistics if `statistics` is given.

    Raises:
        InputError: a name in `statistics` is unknown.
        ForgettingError: a score is not finite.
    """
    samples = Samples.from_lists(input_ids, labels)
    boundaries = samples.response_starts[1:-1]
    scores = score_samples(
        model, samples, statistics=statistics or (), tokens_per_batch=tokens_per_batch
    )
    if statistics is None:
        return np.split(scores.log_probs, boundaries)
    return scores.split(boundaries)


def _lengths_read(samples: Samples) -> NDArray[np.int64]:
    """Tokens of each sample that the model has to read: all before the last response token, which
    needs to be predicted but not read. 0 where there is no response."""
    places = np.flatnonzero(samples.is_response)
    lengths = np.zeros(len(samples), dtype=np.int64)
    some = samples.num_response_tokens > 0
    last = places[samples.response_starts[1:][some] - 1]
    lengths[some] = last - samples.token_starts[:-1][some]
    return lengths


def _batches(lengths: ArrayLike, tokens_per_batch: int) -> Iterator[NDArray[np.int64]]:
    """Places of samples of like length, longest first, so that a batch that does not fit fails
    at once; a batch holds at least one sample. Nothing is read of samples of length 0."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    order = order[: np.count_nonzero(lengths)]
    begin = 0
    while begin < order.size:
        size = max(1, tokens_per_batch // int(lengths[order[begin]]))
        yield order[begin : begin + size]
        begin += size


@dataclass(frozen=True)
class _Inputs:
    input_ids: Tensor
    """Padded on the right, shape (samples, longest)."""
    positions: Tensor
    """Those that predict a response token, counted over all rows in a line."""
    targets: Tensor
    """The token that each of them predicts."""


def _pad(samples: Samples, indices: NDArray, device: torch.device) -> _Inputs:
    rows, positions, targets = [], [], []
    for index in indices:
        begin, end = samples.token_starts[index], samples.token_starts[index + 1]
        responses = np.flatnonzero(samples.is_response[begin:end])
        ids = samples.input_ids[begin : begin + responses[-1] + 1]
        rows.append(ids[:-1])
        positions.append(responses - 1)
        targets.append(ids[responses])
    longest = max(len(row) for row in rows)
    input_ids = np.zeros((len(rows), longest), dtype=np.int64)
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        positions[row] += row * longest
    arrays = (input_ids, np.concatenate(positions), np.concatenate(targets).astype(np.int64))
    return _Inputs(*(_to(torch.from_numpy(array), device) for array in arrays))


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """To an accelerator without waiting for what it is doing."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _hidden(head: Head, inputs: _Inputs) -> Tensor:
    """States of the predicting positions.

    Without a mask: padding is on the right, where no token of a causal model looks, and
    attention without a mask takes the fastest way there is.
    """
    hidden: Tensor = head.backbone(input_ids=inputs.input_ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[inputs.positions]


def _check_head(model: Any, inputs: _Inputs, log_probs: Tensor) -> None:
    """Compare with the model's own logits: an architecture may do more in its head than we know,
    or look at padding that no causal model sees. The last, shortest row has the most padding."""
    longest = inputs.input_ids.shape[1]
    row, last = divmod(int(inputs.positions[-1]), longest)
    of_row = inputs.positions >= row * longest
    logits = model(
        input_ids=inputs.input_ids[row : row + 1, : last + 1], use_cache=False
    ).logits.float()
    log_p = logits[0, inputs.positions[of_row] - row * longest].log_softmax(-1)
    own = log_p.gather(1, inputs.targets[of_row, None])[:, 0]
    split = log_probs[of_row]
    # In bfloat16 and on quantized weights, a token may differ by 0.4 between batches, and the mean
    # over tokens by 0.1.
    tolerance = 1e-3 if _is_exact(model) else 0.25 + 0.75 / len(own)
    if float((own - split).abs().mean()) > tolerance + 1e-3 * float(own.abs().mean()):
        raise ForgettingError(
            f"{type(model).__name__} computes its logits in a way that is not supported: the "
            f"tokens of a sample have a mean log-probability of {float(own.mean()):.4f} by the "
            f"model and {float(split.mean()):.4f} by its head"
        )


def _is_exact(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.dtype == torch.float32 and not getattr(base, "is_quantized", False)
