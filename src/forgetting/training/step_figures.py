"""The figures of a training log: sums over the steps since the last one, divided once.

Input: per-token values of each micro-batch. Output: the figures that are logged, and the state of
the run that a checkpoint keeps for them. Means over micro-batches would be biased if some of them
have no negative token. Knows nothing of losses' formulas or of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from forgetting.method.loss import polarity_sums

COUNTERS = (
    "positive_loss",
    "negative_loss",
    "negative_prob",
    "entropy",
    "num_greedy",
    "correction_loss",
    "num_corrected",
    "num_positive",
    "num_negative",
    "num_tokens",
    "aux_loss",
    "num_batches",
)


class WindowSums:
    """Sums over the micro-batches since the last log."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(
        self,
        outputs: Any,
        polarity: Tensor,
        weights: Tensor | None,
        correction_weights: Tensor | None,
    ) -> None:
        """Count a micro-batch.

        Args:
            outputs: of the model, a `TrainingOutput`.
            polarity: of the predicted tokens, shape (batch, length - 1).
            weights: the same shape, of each token; default: all 1.
            correction_weights: the same shape; default: no token is corrected.
        """
        # Weighted, as the loss is.
        log_probs = outputs.log_probs.detach().float()
        positive, negative = polarity_sums(log_probs, polarity, weights)
        is_negative = polarity < 0
        corrected = correction = positive.new_zeros(())
        if correction_weights is not None:
            corrected = ((correction_weights > 0) & (polarity > 0)).sum()
            correction = outputs.corrections.detach().sum()
        aux_loss = positive.new_zeros(()) if outputs.aux_loss is None else outputs.aux_loss.detach()
        sums = torch.stack(
            [
                positive,
                negative,
                torch.where(is_negative, log_probs.exp(), 0.0).sum(),
                outputs.entropy.detach().float().sum(),
                outputs.is_top1.sum(),
                correction,
                corrected,
                (polarity > 0).sum(),
                is_negative.sum(),
                outputs.label_mask.sum(),
                aux_loss,
                torch.ones_like(positive),
            ]
        ).double()
        self._sums = sums if self._sums is None else self._sums + sums

    def total(self, accelerator: Any) -> list[float] | None:
        """The sums of all processes in the order of `COUNTERS`; None if nothing was counted."""
        if self._sums is None:
            return None
        sums = self._sums
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, reduction="sum")
        return sums.tolist()

    def resume(self, total: Sequence[float], device: Any) -> None:
        """Go on from the sums that `total` returned."""
        self._sums = torch.tensor(total, dtype=torch.float64, device=device)

    def take(self, accelerator: Any) -> dict[str, float]:
        """The figures of all processes, and a new beginning; empty if nothing was counted."""
        total = self.total(accelerator)
        self._sums = None
        return {} if total is None else figures(dict(zip(COUNTERS, total, strict=True)))


def figures(total: dict[str, float]) -> dict[str, float]:
    """Means from sums by the names of `COUNTERS`; figures of empty sets are not there."""
    found = {}
    num_tokens = max(total["num_tokens"], 1)
    if total["num_positive"]:
        found["positive_loss"] = total["positive_loss"] / total["num_positive"]
    if total["num_negative"]:
        found["negative_loss"] = total["negative_loss"] / total["num_negative"]
        found["negative_prob"] = total["negative_prob"] / total["num_negative"]
    if total["num_corrected"]:
        found["correction_loss"] = total["correction_loss"] / total["num_corrected"]
        found["share_corrected"] = total["num_corrected"] / num_tokens
    if total["aux_loss"]:
        found["aux_loss"] = total["aux_loss"] / total["num_batches"]
    found["share_negative"] = total["num_negative"] / num_tokens
    found["entropy"] = total["entropy"] / num_tokens
    found["mean_token_accuracy"] = total["num_greedy"] / num_tokens
    return found


NUM_FIRST_STEPS = 10


class LossWatch:
    """Compares the positive loss of each optimizer step with that of the first ones.

    It does so in every step, whatever is logged: a run that diverges within its first logging
    window would otherwise be compared with itself.
    """

    def __init__(self) -> None:
        self.first_losses: list[float] = []
        """Positive losses of the first steps with positive tokens, at most `NUM_FIRST_STEPS`."""
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, log_probs: Tensor, polarity: Tensor, weights: Tensor | None) -> None:
        """Count a micro-batch; the arguments are those of `polarity_sums`."""
        positive, _ = polarity_sums(log_probs.float(), polarity, weights)
        # The loss of tokens that hardly count may rise without training being off its course.
        of_tokens = torch.ones_like(log_probs) if weights is None else weights
        weight = torch.where(polarity > 0, of_tokens, 0.0).sum()
        sums = torch.stack([positive, weight]).double()
        self._sums = sums if self._sums is None else self._sums + sums

    def close_step(self, accelerator: Any) -> tuple[float, float] | None:
        """End a step: its loss and that of the start; None while there is nothing to compare."""
        if self._sums is None:
            return None
        sums, self._sums = self._sums, None
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, reduction="sum")
        positive, weight = sums.tolist()
        if weight <= 0:
            return None
        loss = positive / weight
        # The median, because a mean would follow the first steps of a run that diverges at once.
        start = median_low(self.first_losses) if self.first_losses else 0.0
        if len(self.first_losses) < NUM_FIRST_STEPS and loss > 0:
            self.first_losses.append(loss)
        return (loss, start) if start > 0 else None
