"""The mathematics of the loss: what a step learns and what it unlearns.

Goes in: log-probabilities of the target tokens and their polarity. Comes out: one scalar.
The formulas are those of arXiv 2508.04329 (equation 8 and Algorithm 1). This module knows
nothing of models, batches, devices or files; counts over a whole optimizer step are passed in
by whoever knows them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

ScheduleKind = Literal["linear", "linear_from_t_min", "constant", "cosine"]


def polarity_sums(log_probs: Tensor, polarity: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the positive and over the negative tokens.

    Args:
        log_probs: log-probabilities of the target tokens in nats, any shape.
        polarity: same shape; +1 learn, -1 forget, 0 ignore.

    Returns:
        Two scalars, `sum_P -log p` and `sum_N -log p`; each is zero where its set is empty.
        Tokens of the other sets receive no gradient, whatever their value.
    """
    cross_entropy = -log_probs
    zero = cross_entropy.new_zeros(())
    positive = torch.where(polarity > 0, cross_entropy, zero).sum()
    negative = torch.where(polarity < 0, cross_entropy, zero).sum()
    return positive, negative


def forgetting_loss(
    log_probs: Tensor,
    polarity: Tensor,
    lam: float,
    *,
    num_positive: Tensor | float | None = None,
    num_negative: Tensor | float | None = None,
) -> Tensor:
    """Learn the positive tokens, unlearn the negative ones (arXiv 2508.04329, equation 8).

    `L = 1/|P| sum_P -log p  -  lam * 1/|N| sum_N -log p`

    Args:
        log_probs: log-probabilities of the target tokens in nats, shape (tokens,) or
            (batch, length). Positions that are no target have polarity 0.
        polarity: same shape; +1 learn, -1 forget, 0 ignore.
        lam: weight of the unlearning term at this step, at least 0.
        num_positive: |P|; default: counted in `polarity`. A trainer passes the count of the
            whole optimizer step, so that the losses of its parts add up to the loss of the step.
        num_negative: |N|, likewise.

    Returns:
        A scalar. A set that is empty contributes zero; the loss is never 0/0.
    """
    if log_probs.shape != polarity.shape:
        raise ValueError(
            f"log_probs and polarity differ in shape: {tuple(log_probs.shape)} and "
            f"{tuple(polarity.shape)}"
        )
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(f"lam must be finite and at least 0, got {lam}")
    positive, negative = polarity_sums(log_probs, polarity)
    if num_positive is None:
        num_positive = (polarity > 0).sum()
    if num_negative is None:
        num_negative = (polarity < 0).sum()
    loss = positive / torch.as_tensor(num_positive, device=positive.device).clamp(min=1)
    # At lambda 0 the second term is left out, not multiplied: 0 * inf would be NaN.
    if lam > 0:
        loss = loss - lam * negative / torch.as_tensor(num_negative, device=negative.device).clamp(
            min=1
        )
    return loss


@dataclass(frozen=True)
class LambdaSchedule:
    """The weight of unlearning over a run; `step` counts optimizer steps from 0.

    * `linear` (Algorithm 1 of the paper): `(t_max - t_min) * step / total_steps`, from 0
    * `linear_from_t_min`: `t_min + (t_max - t_min) * step / total_steps`
    * `cosine`: `t_min + (t_max - t_min) * (1 - cos(pi * step / total_steps)) / 2`
    * `constant`: `t_max` at every step

    Defaults are the paper's: linear, t_min 1e-4, t_max 0.25.

    Raises:
        ValueError: unknown kind, or not 0 <= t_min <= t_max < infinity.
    """

    kind: ScheduleKind = "linear"
    t_min: float = 1e-4
    t_max: float = 0.25

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise ValueError(f"unknown schedule {self.kind!r}; one of {get_args(ScheduleKind)}")
        if not 0 <= self.t_min <= self.t_max < math.inf:
            raise ValueError(
                f"a schedule needs 0 <= t_min <= t_max, got t_min {self.t_min}, t_max {self.t_max}"
            )

    def __call__(self, step: int, total_steps: int) -> float:
        """Lambda at optimizer step `step` of `total_steps`, held at its end beyond."""
        progress = min(step / total_steps, 1.0) if total_steps > 0 else 0.0
        span = self.t_max - self.t_min
        if self.kind == "linear":
            return span * progress
        if self.kind == "linear_from_t_min":
            return self.t_min + span * progress
        if self.kind == "cosine":
            return self.t_min + span * (1 - math.cos(math.pi * progress)) / 2
        return self.t_max
