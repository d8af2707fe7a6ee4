"""The evaluation loss: mean cross-entropy of positive tokens, and that of negative ones beside it.

Input: log-probabilities of each evaluated batch with polarity and weights. Output: the figures of
the whole evaluation, divided once. A mean over all labels would reward a model for the tokens that
it is to forget.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from forgetting.models.training_head import without_virtual_tokens
from forgetting.training.targets import of_targets, target_polarity


class EvaluationSums:
    """Sums over the batches of one evaluation."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(
        self,
        accelerator: Any,
        log_probs: Tensor,
        polarity: Tensor,
        is_label: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        """Count a batch.

        Args:
            log_probs: of the predicted tokens, shape (batch, length - 1).
            polarity: the same shape.
            is_label: the same shape: which tokens are predicted.
            weights: the same shape; default: all 1.

        Returns:
            The loss of the batch: the weighted mean cross-entropy of its positive tokens, 0 if it
            has none.
        """
        own = torch.ones_like(log_probs) if weights is None else weights
        losses = -log_probs.detach().double()
        rows = []
        for is_member in (polarity > 0, polarity < 0):
            weight = torch.where(is_member, own, 0.0).double()
            rows += [torch.where(is_member, weight * losses, 0.0).sum(-1), weight.sum(-1)]
        is_plain = (polarity > 0) & (own == 1)
        rows.append((is_label & ~is_plain).sum(-1).double())
        sums = torch.stack(rows, dim=-1)
        loss = sums[:, 0].sum() / sums[:, 1].sum().clamp(min=1e-12)
        if accelerator.num_processes > 1:
            # Without the samples that fill up the last batch of all processes.
            sums = accelerator.gather_for_metrics(sums)
        total = sums.sum(0)
        self._sums = total if self._sums is None else self._sums + total
        return loss.to(log_probs.dtype)

    def figures(self) -> dict[str, float]:
        """The loss of positive tokens and that of negative ones, by name.

        Empty if every token is positive and weighs 1: the loss is then that of `SFTTrainer`. NaN if
        there is no positive token.
        """
        if self._sums is None:
            return {}
        positive, weight, negative, negative_weight, num_others = self._sums.tolist()
        if not num_others:
            return {}
        found = {"loss": positive / weight if weight else math.nan}
        if negative_weight:
            found["negative_loss"] = negative / negative_weight
        return found


class PolarityEvaluation(SFTTrainer):
    """`SFTTrainer` whose evaluation loss counts positive tokens, if the data have a polarity."""

    _evaluated = EvaluationSums()

    def _evaluation_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        batch: dict[str, Any],
        return_outputs: bool,
        num_items_in_batch: Any,
    ) -> Any:
        """The loss of an evaluated batch, as `compute_loss` returns it.

        Args:
            inputs: what the model reads of `batch`.
        """
        # The parent adds its own figures; its first forward pass is looked at on the way.
        seen: list[Any] = []

        def watched(**given: Any) -> Any:
            seen.append(model(**given))
            return seen[-1]

        found = super().compute_loss(watched, inputs, return_outputs, num_items_in_batch)
        if "polarity" not in batch:
            return found
        polarity = target_polarity(batch)
        outputs = without_virtual_tokens(seen[0], polarity.shape[1])
        is_label = batch["labels"][:, 1:] != -100
        weights = of_targets(batch, "token_weights")
        sums = self._evaluated
        loss = sums.add(self.accelerator, outputs.log_probs, polarity, is_label, weights)
        if not sums.figures():
            return found
        return (loss, found[1]) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        # The parent averages means of batches, which differ in their numbers of tokens.
        self._evaluated = EvaluationSums()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        for name, value in self._evaluated.figures().items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output
