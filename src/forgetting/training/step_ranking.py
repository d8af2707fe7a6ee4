"""Which tokens of an optimizer step are among the highest, over all micro-batches and processes.

Input: a value for each token or sample of the step, per micro-batch. Output: per micro-batch, which
tokens are kept. Knows nothing of what the values mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from forgetting.method.losses import kept_of_step


class Ranked(NamedTuple):
    """Values of a micro-batch, of which some take part in the ranking."""

    values: Tensor
    """Any shape."""
    takes_part: Tensor
    """Bool, the same shape."""
    sample: Tensor | None = None
    """If the values are of samples, shape (samples,): the sample of each token, shape (batch,
    tokens)."""


def values_of_samples(values: Tensor, is_positive: Tensor, boundaries: Tensor | None) -> Ranked:
    """The mean over the positive tokens of each sample; samples without one do not take part.

    Args:
        values: of the predicted tokens, shape (batch, length - 1).
        is_positive: the same shape.
        boundaries: if all samples are in one row, the start of each and the end of the last,
            counted with the first token, which is not predicted; shape (samples + 1,).
    """
    num_rows, length = values.shape
    if boundaries is None:
        sample = torch.arange(num_rows, device=values.device)[:, None].expand(num_rows, length)
        num_samples = num_rows
    else:
        position = torch.arange(1, length + 1, device=values.device)
        sample = torch.searchsorted(boundaries.to(position), position, right=True)[None] - 1
        num_samples = len(boundaries) - 1
    counts = values.new_zeros(num_samples).index_add(
        0, sample.flatten(), is_positive.flatten().to(values.dtype)
    )
    sums = values.new_zeros(num_samples).index_add(
        0, sample.flatten(), torch.where(is_positive, values, 0.0).flatten()
    )
    return Ranked(sums / counts.clamp(min=1), counts > 0, sample)


def choose_tokens(batches: list[Any], keep: float, accelerator: Any) -> list[Tensor]:
    """Keep a share of what takes part, the highest first.

    Args:
        batches: of this process, each the fields of a `Ranked`.
        keep: share of the tokens or samples of all processes, in (0, 1].
        accelerator: joins the processes.

    Returns:
        For each micro-batch, whether a token is kept, bool, shape (batch, tokens). What does not
        take part is not kept.
    """
    ranked = [Ranked(*batch) for batch in batches]
    own = torch.cat([batch.values[batch.takes_part] for batch in ranked])
    kept = _kept(own, keep, accelerator)
    found = []
    begin = 0
    for batch in ranked:
        count = int(batch.takes_part.sum())
        is_kept = torch.zeros_like(batch.takes_part)
        is_kept[batch.takes_part] = kept[begin : begin + count]
        begin += count
        found.append(is_kept if batch.sample is None else is_kept[batch.sample])
    return found


def _kept(own: Tensor, keep: float, accelerator: Any) -> Tensor:
    if accelerator.num_processes == 1:
        return kept_of_step(own, keep)
    counts = accelerator.gather(torch.tensor([len(own)], device=own.device)).tolist()
    padded = own.new_zeros(max(counts))
    padded[: len(own)] = own
    rows = accelerator.gather(padded[None])
    everything = torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)])
    begin = sum(counts[: accelerator.process_index])
    return kept_of_step(everything, keep)[begin : begin + len(own)]
