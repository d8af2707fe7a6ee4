"""Cross-entropy to a few known tokens and to the rest of the vocabulary as one bucket, in tiles.

Input: hidden states of the positions that predict a target, and for each position a distribution q
over the other tokens: K of them with their probabilities, and the probability of all remaining
ones together. Output: the cross-entropy of q and the model's prediction, with its gradient in
closed form. No more of a vocabulary's size exists at any time than in `lm_head`. Knows nothing of
where q comes from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from forgetting.models.lm_head import ROWS_PER_TILE, Head, LinearTile, gradients, is_plain

ROWS_PER_TILE_ACCELERATOR = 1024
# Of an empty bucket: its exponential is zero, and zero times it is zero.
LEAST_LOGIT = -1e30


@dataclass(frozen=True)
class Alternatives:
    """What is expected in the place of each target: a distribution q without the target."""

    ids: Tensor
    """K different tokens, none of them the target, shape (positions, K), int64."""
    log_probs: Tensor
    """Log-probabilities of the K tokens and, last, of all remaining tokens together, shape
    (positions, K + 1). They are normalized before use; -inf is allowed."""

    def split(self, size: int) -> list[Alternatives]:
        """Parts of at most `size` positions."""
        pairs = zip(self.ids.split(size), self.log_probs.split(size), strict=True)
        return [Alternatives(*pair) for pair in pairs]


def cross_entropy(
    head: Head, hidden: Tensor, targets: Tensor, alternatives: Alternatives
) -> Tensor:
    """Cross-entropy of q and the prediction p, in nats.

    `CE(q, p) = - sum_k q_k log p_k - q_rest log p_rest`, in which `p_rest = 1 - sum_k p_k -
    p_target` is the sum over all tokens that are neither among the K nor the target. As the target
    has no share of q, the smallest value is the entropy of q over the K + 1 buckets. It is reached
    where p equals q in each bucket and the target has the probability 0.

    Args:
        head: head of a causal language model, from `split_head`.
        hidden: states of the positions that predict the targets, shape (positions, hidden size).
        targets: token ids, shape (positions,).

    Returns:
        Shape (positions,), float32, differentiable.
    """
    if not targets.numel():
        return head.linear(hidden).sum(-1).float()
    size = ROWS_PER_TILE if hidden.device.type == "cpu" else ROWS_PER_TILE_ACCELERATOR
    if is_plain(head.linear):
        weight: Tensor = head.linear.weight
        bias: Tensor | None = head.linear.bias
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        elif hidden.dtype != weight.dtype:
            hidden = hidden.to(weight.dtype)
        values: Tensor = _CrossEntropyHead.apply(
            hidden,
            weight,
            bias,
            targets,
            alternatives.ids,
            alternatives.log_probs,
            head.scale,
            head.softcap,
            size,
        )
        return values
    tiles = zip(hidden.split(size), targets.split(size), alternatives.split(size), strict=True)
    return torch.cat([_called_tile(head, *tile) for tile in tiles])


def _called_tile(head: Head, hidden: Tensor, targets: Tensor, alternatives: Alternatives) -> Tensor:
    def forward(hidden: Tensor) -> Tensor:
        logits = head.linear(hidden).float()
        if head.scale != 1.0:
            logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        log_q = alternatives.log_probs.float().log_softmax(-1)
        named = torch.cat([alternatives.ids, targets[:, None]], 1)
        of_rest = logits.scatter(1, named, LEAST_LOGIT).logsumexp(1)
        of_buckets = torch.cat([logits.gather(1, alternatives.ids), of_rest[:, None]], 1)
        return logits.logsumexp(1) - (log_q.exp() * of_buckets).sum(1)

    if not torch.is_grad_enabled():
        return forward(hidden)
    # Logits are made again in the backward pass, a tile at a time.
    return checkpoint(forward, hidden, use_reentrant=False, preserve_rng_state=False)


class _CrossEntropyHead(torch.autograd.Function):
    """The head of nearly all models. Like `lm_head`'s, it makes the product of the gradient with
    frozen weights while the tile is there, and else makes each tile again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ids: Tensor,
        log_probs: Tensor,
        scale: float,
        softcap: float | None,
        size: int,
    ) -> Tensor:
        ctx.tile = LinearTile(weight, bias, scale, softcap, min(size, len(targets)))
        ctx.size = size
        frozen = not any(ctx.needs_input_grad[1:3])
        slopes = []
        values = []
        tiles = (part.split(size) for part in (hidden, targets, ids, log_probs))
        for states, of_tile, ids_of_tile, log_probs_of_tile in zip(*tiles, strict=True):
            buckets = _Buckets(ctx.tile, states, of_tile, ids_of_tile, log_probs_of_tile)
            values.append(buckets.cross_entropy())
            if ctx.needs_input_grad[0] and frozen:
                slopes.append(buckets.slope() @ weight)
        ctx.tile.drop_buffers()
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        elif any(ctx.needs_input_grad):
            ctx.save_for_backward(hidden, weight, targets, ids, log_probs)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if len(ctx.saved_tensors) == 1:
            (slopes,) = ctx.saved_tensors
            return (grad[:, None].to(slopes.dtype) * slopes, *(None,) * 8)
        hidden, weight, targets, ids, log_probs = ctx.saved_tensors

        def slopes_of_tiles() -> Iterator[tuple[Tensor, Tensor]]:
            tiles = (part.split(ctx.size) for part in (hidden, targets, ids, log_probs, grad))
            for states, *of_tile, grad_of_tile in zip(*tiles, strict=True):
                yield states, _Buckets(ctx.tile, states, *of_tile).slope(grad_of_tile)

        found = gradients(slopes_of_tiles(), weight, ctx.needs_input_grad)
        ctx.tile.drop_buffers()
        return (*found, *(None,) * 6)


class _Buckets:
    """A tile's logits, summed up in K + 2 buckets: the K tokens, the target, all the rest.

    The rest is summed on its own instead of as 1 minus the others, so that nothing cancels.
    """

    def __init__(
        self, tile: LinearTile, states: Tensor, targets: Tensor, ids: Tensor, log_probs: Tensor
    ) -> None:
        self.tile = tile
        self.named = torch.cat([ids, targets[:, None]], 1)
        self.q = log_probs.float().softmax(-1)
        self.logits = tile.logits(states)
        self.of_named = self.logits.gather(1, self.named)
        # Out of the rest. The logits are put back afterward, because the slope needs them.
        self.logits.scatter_(1, self.named, -math.inf)
        # Without any rest, its largest logit is finite this way, and its sum is zero.
        largest = self.logits.amax(1).clamp_(min=LEAST_LOGIT)
        self.exps = tile.exps(self.logits, largest)
        self.total = self.exps.sum(1)
        self.logits.scatter_(1, self.named, self.of_named)
        of_rest = torch.where(self.total > 0, largest + self.total.log(), LEAST_LOGIT)
        self.of_buckets = torch.cat([self.of_named[:, :-1], of_rest[:, None]], 1)
        everything = torch.cat([self.of_buckets, self.of_named[:, -1:]], 1)
        self.normalizer = everything.logsumexp(1)

    def cross_entropy(self) -> Tensor:
        """`CE(q, p)`, shape (rows,)."""
        return self.normalizer - (self.q * self.of_buckets).sum(1)

    def slope(self, grad: Tensor | None = None) -> Tensor:
        """Its gradient to the product of states and weights.

        To the logits it is p - q for the K tokens and p for the target. The rest's tokens share
        `p_rest - q_rest` in proportion to their probabilities.
        """
        excess = (self.of_buckets - self.normalizer[:, None]).exp() - self.q
        of_target = (self.of_named[:, -1:] - self.normalizer[:, None]).exp()
        tiny = torch.finfo(torch.float32).tiny
        slope = self.exps.mul_((excess[:, -1] / self.total.clamp(min=tiny))[:, None])
        slope.scatter_(1, self.named, torch.cat([excess[:, :-1], of_target], 1))
        return self.tile.to_product(self.logits, slope, grad)
