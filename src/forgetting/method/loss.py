"""The mathematics of the loss: what a step learns and what it unlearns.

Goes in: log-probabilities of the target tokens and their polarity. Comes out: one scalar.
The formulas are those of arXiv 2508.04329 (equation 8 and Algorithm 1), and of other ways to
unlearn a token (`ForgettingTerm`). This module knows nothing of models, batches, devices or
files; counts over a whole optimizer step are passed in by whoever knows them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

ScheduleKind = Literal["linear", "linear_from_t_min", "constant", "cosine"]
TermKind = Literal["ga", "wga", "satimp", "npo", "tnpo", "wtnpo", "unlikelihood"]
Normalization = Literal["group", "token"]
# A token that is certain in float32 has 1 - p = 0; its terms are those of this log-probability.
LARGEST_LOG_PROB = -1e-7


@dataclass(frozen=True)
class ForgettingTerm:
    """What is minimised on a negative token of probability p, r under the base model.

    * `ga`, gradient ascent on the cross-entropy (the paper): `log p`
    * `wga` (arXiv 2502.19301): `p^alpha * log p`
    * `satimp` (saturation and importance): `p^beta1 * (1 - p)^beta2 * log p`
    * `npo` (arXiv 2404.05868): `(2 / beta) * log(1 + (P / R)^beta)`, one value for a sample, where
      P and R are the products of p and r over its negative tokens
    * `tnpo` (arXiv 2502.19301): `(2 / beta) * log(1 + (p / r)^beta)`
    * `wtnpo` (arXiv 2502.19301): `p^alpha` times that of `tnpo`
    * `unlikelihood` (arXiv 1908.04319): `-log(1 - p)`

    The weights `p^alpha`, `p^beta1` and `(1 - p)^beta2` have no gradient.

    Args:
        kind: default `ga`.
        alpha: of `wga` and `wtnpo`, at least 0; default 1.
        beta: of `npo`, `tnpo` and `wtnpo`, above 0; default 0.1.
        beta1: of `satimp`, at least 0; default 5.
        beta2: of `satimp`, at least 0; default 1.
        floor: probability below which a token is left alone, in (0, 1): its log p is replaced by
            `log floor + softplus(log p - log floor)`, whose gradient vanishes smoothly below, and
            which is never less than log floor. Default: none.

    Raises:
        ValueError: unknown kind, or a number outside its range.
    """

    kind: TermKind = "ga"
    alpha: float = 1.0
    beta: float = 0.1
    beta1: float = 5.0
    beta2: float = 1.0
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(TermKind):
            raise ValueError(f"unknown term {self.kind!r}; one of {get_args(TermKind)}")
        for name in ("alpha", "beta", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (name == "beta" and value == 0):
                raise ValueError(f"{name} of the term is out of range: {value}")
        if self.floor is not None and not 0 < self.floor < 1:
            raise ValueError(f"floor must be a probability in (0, 1), got {self.floor}")

    @property
    def needs_base(self) -> bool:
        """Whether the base model's log-probabilities are needed."""
        return self.kind in ("npo", "tnpo", "wtnpo")

    @property
    def is_per_sample(self) -> bool:
        """Whether the set is counted in samples, not in tokens."""
        return self.kind == "npo"

    def __call__(
        self,
        log_probs: Tensor,
        is_negative: Tensor,
        base_log_probs: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Sum of the term over the negative tokens (over the samples that have some, for `npo`).

        Args:
            log_probs: in nats, shape (tokens,) or (batch, length). `npo` takes a row for a sample.
            is_negative: same shape.
            base_log_probs: same shape, under the base model.
            weights: same shape, of each token's value in the sum; default: all 1.

        Returns:
            A scalar, float32 or finer. Other tokens receive no gradient, whatever their value.

        Raises:
            ValueError: the term needs base_log_probs, or has no value per token to be weighted.
        """
        if self.needs_base and base_log_probs is None:
            raise ValueError(f"the term {self.kind} needs base_log_probs")
        if self.is_per_sample and weights is not None:
            raise ValueError(f"the term {self.kind} is one value a sample: it takes no weights")
        dtype = torch.promote_types(log_probs.dtype, torch.float32)
        # What is not negative may be infinite, and zero times infinity is no number.
        log_p = torch.where(is_negative, log_probs.to(dtype), -1.0)
        if self.floor is not None:
            lowest = math.log(self.floor)
            log_p = lowest + _log1p_exp(log_p - lowest)
        if self.needs_base:
            assert base_log_probs is not None
            ratio = log_p - torch.where(is_negative, base_log_probs.to(dtype), -1.0)
            if self.is_per_sample:
                ratio = torch.where(is_negative, ratio, 0.0).sum(-1)
                is_negative = is_negative.any(-1)
            values = 2 / self.beta * _log1p_exp(self.beta * ratio)
            if self.kind == "wtnpo":
                values = (self.alpha * log_p).detach().exp() * values
        elif self.kind == "unlikelihood":
            # The gradient of a certain token is that of the largest value, not zero.
            log_p = log_p - (log_p - log_p.clamp(max=LARGEST_LOG_PROB)).detach()
            values = -torch.log(-torch.expm1(log_p))
        else:
            weight = torch.ones_like(log_p)
            if self.kind == "wga":
                weight = (self.alpha * log_p).detach().exp()
            elif self.kind == "satimp":
                rest = -torch.expm1(log_p.detach().clamp(max=LARGEST_LOG_PROB))
                weight = (self.beta1 * log_p).detach().exp() * rest**self.beta2
            values = weight * log_p
        if weights is not None:
            values = weights.to(dtype) * values
        return torch.where(is_negative, values, 0.0).sum()


def _log1p_exp(x: Tensor) -> Tensor:
    # Exact on both sides; torch's softplus is linear above 20.
    return torch.logaddexp(x, torch.zeros_like(x))


GRADIENT_ASCENT = ForgettingTerm()


def polarity_sums(
    log_probs: Tensor, polarity: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the positive and over the negative tokens.

    Args:
        log_probs: log-probabilities of the target tokens in nats, any shape.
        polarity: same shape; +1 learn, -1 forget, 0 ignore.
        weights: same shape; default: all 1.

    Returns:
        Two scalars, `sum_P -w log p` and `sum_N -w log p`; each is zero where its set is empty.
        Tokens of the other sets receive no gradient, whatever their value.
    """
    cross_entropy = -log_probs if weights is None else -weights * log_probs
    zero = cross_entropy.new_zeros(())
    positive = torch.where(polarity > 0, cross_entropy, zero).sum()
    negative = torch.where(polarity < 0, cross_entropy, zero).sum()
    return positive, negative


def forgetting_loss(
    log_probs: Tensor,
    polarity: Tensor,
    lam: float,
    *,
    term: ForgettingTerm = GRADIENT_ASCENT,
    base_log_probs: Tensor | None = None,
    weights: Tensor | None = None,
    num_positive: Tensor | float | None = None,
    num_negative: Tensor | float | None = None,
) -> Tensor:
    """Learn the positive tokens, unlearn the negative ones (arXiv 2508.04329, equation 8).

    `L = 1/|P| sum_P -w log p  +  lam * 1/|N| sum_N w term`, where the paper's term is `log p` and
    its weights w are 1.

    Args:
        log_probs: log-probabilities of the target tokens in nats, shape (tokens,) or
            (batch, length). Positions that are no target have polarity 0.
        polarity: same shape; +1 learn, -1 forget, 0 ignore.
        lam: weight of the unlearning term at this step, at least 0.
        term: what is minimised on negative tokens; default: gradient ascent, as in the paper.
        base_log_probs: same shape, for the terms that need them.
        weights: same shape, of each token's part in its sum, at least 0; default: all 1. The
            counts stay counts: a token of weight 0 still counts.
        num_positive: |P|; default: counted in `polarity`. A trainer passes the count of the
            whole optimizer step, so that the losses of its parts add up to the loss of the step.
        num_negative: |N|, likewise; samples with a negative token for a term per sample.

    Returns:
        A scalar. A set that is empty contributes zero; the loss is never 0/0.

    Raises:
        ValueError: shapes differ, `lam` is no weight, the term lacks base_log_probs or takes no
            weights.
    """
    others = (("polarity", polarity), ("base_log_probs", base_log_probs), ("weights", weights))
    for name, other in others:
        if other is not None and other.shape != log_probs.shape:
            raise ValueError(
                f"log_probs and {name} differ in shape: {tuple(log_probs.shape)} and "
                f"{tuple(other.shape)}"
            )
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(f"lam must be finite and at least 0, got {lam}")
    is_negative = polarity < 0
    if num_positive is None:
        num_positive = (polarity > 0).sum()
    if num_negative is None:
        num_negative = (is_negative.any(-1) if term.is_per_sample else is_negative).sum()
    positive, _ = polarity_sums(log_probs, polarity, weights)
    loss = positive / torch.as_tensor(num_positive, device=positive.device).clamp(min=1)
    # At lambda 0 the second term is left out, not multiplied: 0 * inf would be NaN.
    if lam > 0:
        negative = term(log_probs, is_negative, base_log_probs, weights)
        loss = loss + lam * negative / torch.as_tensor(num_negative, device=negative.device).clamp(
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
