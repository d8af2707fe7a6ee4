"""The tokens that a model finds most likely at chosen positions, other than the targets.

Input: hidden states of the positions that predict a target. Output: per target, the K most likely
other tokens with their log-probabilities once the target is taken out; or the entropy of the
prediction among its most likely tokens. Logits exist in tiles of some rows. Computes no gradient.
Knows nothing of what the tokens are for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from forgetting.models.lm_head import ROWS_PER_TILE, Head, is_plain, scale_logits

ROWS_PER_TILE_ACCELERATOR = 512
NUM_TOP = 20
"""Tokens of `top_entropy`, as in EAFT (arXiv 2601.02151)."""
LEAST_LOG_PROB = -1e4
"""Lower bound of log-probabilities, in nats, which float16 can hold."""


@dataclass(frozen=True)
class TopTokens:
    """The most likely tokens other than each target, and what is left.

    The probabilities are those of the prediction without the target, renormalized.
    """

    ids: Tensor
    """Most likely first, shape (positions, K), int64."""
    log_probs: Tensor
    """In nats, float32, shape (positions, K)."""
    log_rest: Tensor
    """Log-probability of all other tokens together, in nats, at least `LEAST_LOG_PROB`, shape
    (positions,)."""


@torch.no_grad()
def best_others(head: Head, hidden: Tensor, targets: Tensor, num_tokens: int) -> TopTokens:
    """Find the most likely tokens other than the targets.

    Args:
        head: head of a causal language model, from `split_head`.
        hidden: states of the positions that predict the targets, shape (positions, hidden size).
        targets: token ids, shape (positions,).
        num_tokens: K; fewer if the vocabulary has fewer other tokens.
    """
    found = []
    for rows, logits in _tiles(head, hidden):
        logits.scatter_(1, targets[rows][:, None], -math.inf)
        normalizer = logits.logsumexp(1)
        best = logits.topk(min(num_tokens, logits.shape[1] - 1), 1)
        logits.scatter_(1, best.indices, -math.inf)
        rest = (logits.logsumexp(1) - normalizer).clamp(min=LEAST_LOG_PROB)
        log_probs = (best.values - normalizer[:, None]).clamp(min=LEAST_LOG_PROB)
        found.append((best.indices, log_probs, rest))
    return TopTokens(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@torch.no_grad()
def top_entropy(head: Head, hidden: Tensor, num_tokens: int = NUM_TOP) -> Tensor:
    """Entropy of the `num_tokens` most likely tokens' renormalized distribution, in nats.

    Args:
        head: head of a causal language model, from `split_head`.
        hidden: states of positions, shape (positions, hidden size).

    Returns:
        Shape (positions,), float32.
    """
    found = []
    for _, logits in _tiles(head, hidden):
        best = logits.topk(min(num_tokens, logits.shape[1]), 1).values
        log_probs = best.log_softmax(1)
        found.append(-torch.linalg.vecdot(log_probs.exp(), log_probs))
    return torch.cat(found)


def _tiles(head: Head, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a tile, and their float32 logits. Without positions, one empty tile."""
    size = ROWS_PER_TILE if hidden.device.type == "cpu" else ROWS_PER_TILE_ACCELERATOR
    for begin in range(0, max(1, len(hidden)), size):
        rows = slice(begin, begin + size)
        states = hidden[rows]
        if is_plain(head.linear) and not torch.is_autocast_enabled(hidden.device.type):
            states = states.to(head.linear.weight.dtype)
        logits = head.linear(states).float()
        yield rows, scale_logits(logits, head.scale, head.softcap)
