"""What a batch of the trainer says about the tokens that are predicted.

Position i of `labels` is predicted from the tokens before it, so the first column is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def target_polarity(batch: dict[str, Any]) -> Tensor:
    """Polarity of the predicted tokens, shape (batch, length - 1); zero without a label."""
    polarity, labels = batch["polarity"][:, 1:], batch["labels"][:, 1:]
    return torch.where(labels == -100, torch.zeros_like(polarity), polarity)


def of_targets(batch: dict[str, Any], name: str) -> Tensor | None:
    """A column of the predicted tokens, shape (batch, length - 1); None if it is not there."""
    return batch[name][:, 1:] if name in batch else None


def rows_of_samples(batch: dict[str, Any], values: Tensor) -> Tensor:
    """Values of the predicted tokens with one row per sample, padded with zeros.

    A padding-free batch has all samples in one row, shape (1, length - 1).
    """
    if "cu_seq_lens_q" not in batch:
        return values
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    lengths[0] -= 1  # its first token is not predicted; first tokens of others have no label
    return pad_sequence(list(values[0].split(lengths)), batch_first=True)
