"""The objective of a step: learn the positive tokens, unlearn the negative ones (equation 8).

Input: log-probabilities of the target tokens, their polarity and weights, and the cross-entropy to
what is expected in the place of some of them. Output: one scalar. The formula is that of arXiv
2508.04329; `losses` has the other ways to learn a token, `terms` those to unlearn one. Counts over
a whole optimizer step are arguments, because only the trainer knows them. Knows nothing of models,
batches, devices or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from forgetting.method.losses import CROSS_ENTROPY, PositiveLoss
from forgetting.method.terms import GRADIENT_ASCENT, ForgettingTerm

Normalization = Literal["group", "token"]


def polarity_sums(
    log_probs: Tensor, polarity: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the positive and over the negative tokens.

    Args:
        log_probs: log-probabilities of the target tokens in nats, any shape.
        polarity: same shape; +1 learn, -1 forget, 0 ignore.
        weights: same shape; default: all 1.

    Returns:
        Two scalars, `sum_P -w log p` and `sum_N -w log p`; each is zero if its set is empty.
        Tokens of the other sets receive no gradient, even if they are infinite.
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
    loss: PositiveLoss = CROSS_ENTROPY,
    base_log_probs: Tensor | None = None,
    best_other_log_probs: Tensor | None = None,
    weights: Tensor | None = None,
    corrections: Tensor | None = None,
    correction_weights: Tensor | None = None,
    statistics: Mapping[str, Tensor] = MappingProxyType({}),
    num_positive: Tensor | float | None = None,
    num_negative: Tensor | float | None = None,
) -> Tensor:
    """Learn the positive tokens, unlearn the negative ones (arXiv 2508.04329, equation 8).

    `L = 1/|P| sum_P (w loss + c CE) + lam * 1/|N| sum_N w term`. In the paper, the loss is
    `-log p`, the term is `log p`, all weights w are 1, and there are no corrections CE.

    Args:
        log_probs: log-probabilities of the target tokens in nats, shape (tokens,) or
            (batch, length). Positions without a target have polarity 0.
        polarity: same shape; +1 learn, -1 forget, 0 ignore.
        lam: weight of the unlearning term at this step, at least 0.
        term: what is minimized on negative tokens; default: gradient ascent, as in the paper.
        loss: what is minimized on positive tokens; default: cross-entropy, as in the paper.
        base_log_probs: same shape, for terms that need them.
        best_other_log_probs: same shape, of the most likely token other than each, for terms that
            need them.
        weights: same shape, weight of each token in its sum, at least 0; default: all 1. Weights
            do not change the counts: a token of weight 0 still counts.
        corrections: same shape, cross-entropy CE of the prediction and of what is expected in the
            place of a token, for positive tokens; default: none.
        correction_weights: same shape, weight c of each, at least 0; where it is 0, the correction
            has no effect. Needed with `corrections`.
        statistics: by name, each of the same shape, for losses that need them.
        num_positive: |P|; default: counted in `polarity`. A trainer passes the count of the
            whole optimizer step, so that the losses of micro-batches add up to the loss of the
            step.
        num_negative: |N|, likewise. For a term per sample: samples with a negative token.

    Returns:
        A scalar. An empty set contributes zero; the loss is never 0/0.

    Raises:
        ValueError: shapes differ, `lam` is negative or not finite, or something that the term or
            the loss needs is missing.
    """
    others = {
        "polarity": polarity,
        "base_log_probs": base_log_probs,
        "best_other_log_probs": best_other_log_probs,
        "weights": weights,
        "corrections": corrections,
        "correction_weights": correction_weights,
        **statistics,
    }
    for name, other in others.items():
        if other is not None and other.shape != log_probs.shape:
            raise ValueError(
                f"log_probs and {name} differ in shape: {tuple(log_probs.shape)} and "
                f"{tuple(other.shape)}"
            )
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(f"lam must be finite and at least 0, got {lam}")
    if (corrections is None) != (correction_weights is None):
        raise ValueError("corrections and correction_weights need each other")
    is_negative = polarity < 0
    if num_positive is None:
        num_positive = (polarity > 0).sum()
    if num_negative is None:
        num_negative = (is_negative.any(-1) if term.is_per_sample else is_negative).sum()
    is_positive = polarity > 0
    learned = loss(log_probs, is_positive, statistics)
    positive = (learned if weights is None else weights * learned).sum()
    if corrections is not None and correction_weights is not None:
        has_effect = is_positive & (correction_weights > 0)
        positive = positive + torch.where(has_effect, correction_weights * corrections, 0.0).sum()
    total = positive / torch.as_tensor(num_positive, device=positive.device).clamp(min=1)
    # At lambda 0 the second term is skipped, not multiplied: 0 * inf would be NaN.
    if lam > 0:
        negative = term(log_probs, is_negative, base_log_probs, weights, best_other_log_probs)
        count = torch.as_tensor(num_negative, device=negative.device).clamp(min=1)
        total = total + lam * negative / count
    return total
