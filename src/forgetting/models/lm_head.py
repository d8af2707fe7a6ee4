"""The last step of a causal language model, applied to chosen positions in tiles.

Input: hidden states of the positions that predict a target. Output: the targets'
log-probabilities, by a float32 log-sum-exp, without full logits at any time, forward or
backward. Small tiles stay in the processor's cache, which on CPUs is most of the speed.
This module is for training; `token_statistics` reads the same head for scoring. Knows nothing of
batches or of what the log-probabilities are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

ROWS_PER_TILE = 128
ROWS_PER_TILE_ACCELERATOR = 4096


@dataclass(frozen=True)
class Head:
    """`logits = softcap(scale * (hidden @ weight + bias))`, apart from the rest of the model."""

    backbone: nn.Module
    linear: nn.Module
    scale: float
    softcap: float | None


@dataclass(frozen=True)
class Predictions:
    """What is known of each target, shape (positions,)."""

    log_probs: Tensor
    """In nats, float32; differentiable."""
    entropy: Tensor
    """Entropy of the whole prediction, in nats, float32; without gradient."""
    is_greedy: Tensor
    """Whether no token is more likely."""


def split_head(model: Any) -> Head:
    """Separate a causal language model into backbone and head, through an adapter if it has one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = inner.config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            scale = float(value)
            break
    else:
        divisor = getattr(config, "logits_scaling", None)
        if divisor is not None:
            scale = float(divisor) if config.model_type == "hyperclovax" else 1 / float(divisor)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(inner.base_model, inner.get_output_embeddings(), scale, softcap)


def predict(
    head: Head, hidden: Tensor, targets: Tensor, *, with_entropy: bool = True
) -> Predictions:
    """Score targets.

    Args:
        hidden: states of the positions that predict them, shape (positions, hidden size).
        targets: token ids, shape (positions,).
        with_entropy: whether `entropy` is wanted; else it is zero.
    """
    size = ROWS_PER_TILE if hidden.device.type == "cpu" else ROWS_PER_TILE_ACCELERATOR
    if not targets.numel():
        # Connected to the whole model, so that a batch without targets still has a gradient of
        # zero: other processes wait for it.
        nothing = head.linear(hidden).sum(-1).float()
        return Predictions(nothing, nothing.detach(), nothing.detach().bool())
    if is_plain(head.linear):
        weight: Tensor = head.linear.weight
        bias: Tensor | None = head.linear.bias
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return Predictions(
            *_LinearHead.apply(
                hidden, weight, bias, targets, head.scale, head.softcap, size, with_entropy
            )
        )
    pairs = zip(hidden.split(size), targets.split(size), strict=True)
    tiles = [_predict_tile(head, *pair) for pair in pairs]
    return Predictions(*(torch.cat(parts) for parts in zip(*tiles, strict=True)))


def scale_logits(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """In place, what comes after the linear layer."""
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a head is its weights; an adapter on it, quantised or sharded weights are called."""
    hooked = linear._forward_hooks or linear._forward_pre_hooks or hasattr(linear, "_hf_hook")
    return type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and not hooked


class _LinearHead(torch.autograd.Function):
    """The head of nearly all models, with its gradient in closed form.

    For logits z, log p(t) = z_t - logsumexp(z) has the gradient onehot(t) - softmax(z). Where
    the weights are frozen, as under an adapter, its product with them is made while the tile is
    there, and the backward pass only scales it; else the backward pass makes each tile again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        size: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.tile = LinearTile(weight, bias, scale, softcap, min(size, len(targets)))
        ctx.size = size
        frozen = not any(ctx.needs_input_grad[1:3])
        slopes = []
        found = []
        for states, of_tile in zip(hidden.split(size), targets.split(size), strict=True):
            logits = ctx.tile.logits(states)
            of_target = logits.gather(1, of_tile[:, None])[:, 0]
            largest = logits.amax(1)
            exps = ctx.tile.exps(logits, largest)
            total = exps.sum(1)
            normalizer = largest + total.log()
            entropy = torch.zeros_like(total)
            if with_entropy:
                entropy = normalizer - torch.linalg.vecdot(exps, logits) / total
            found.append((of_target - normalizer, entropy, of_target >= largest))
            if ctx.needs_input_grad[0] and frozen:
                slope = ctx.tile.slope(logits, exps.div_(total[:, None]), of_tile)
                slopes.append(slope @ weight)
        log_probs, entropy, is_greedy = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.tile.drop_buffers()
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        elif any(ctx.needs_input_grad):
            ctx.save_for_backward(hidden, weight, targets, log_probs)
        ctx.mark_non_differentiable(entropy, is_greedy)
        return log_probs, entropy, is_greedy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if len(ctx.saved_tensors) == 1:
            (slopes,) = ctx.saved_tensors
            return (grad[:, None].to(slopes.dtype) * slopes, *(None,) * 7)
        hidden, weight, targets, log_probs = ctx.saved_tensors

        def slopes_of_tiles() -> Iterator[tuple[Tensor, Tensor]]:
            tiles = (values.split(ctx.size) for values in (hidden, targets, log_probs, grad))
            for states, of_tile, log_prob, grad_of_tile in zip(*tiles, strict=True):
                logits = ctx.tile.logits(states)
                normalizer = logits.gather(1, of_tile[:, None])[:, 0] - log_prob
                probs = ctx.tile.exps(logits, normalizer)
                yield states, ctx.tile.slope(logits, probs, of_tile, grad_of_tile)

        found = gradients(slopes_of_tiles(), weight, ctx.needs_input_grad)
        ctx.tile.drop_buffers()
        return (*found, *(None,) * 5)


def gradients(
    slopes: Iterable[tuple[Tensor, Tensor]], weight: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients to the states, the weights and the bias of a linear layer, from all tiles.

    Args:
        slopes: the states of each tile, and the gradient to their product with the weights, shape
            (rows, vocabulary).
        weight: shape (vocabulary, hidden size).
        needed: which of the three are wanted; the others are None.
    """
    needs_hidden, needs_weight, needs_bias = needed[:3]
    # Sums over many tiles are kept in float32.
    grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
    grad_bias = weight.new_zeros(len(weight), dtype=torch.float32) if needs_bias else None
    grad_hidden = []
    for states, slope in slopes:
        if needs_hidden:
            grad_hidden.append(slope @ weight)
        if grad_weight is not None:
            grad_weight += slope.T @ states
        if grad_bias is not None:
            grad_bias += slope.float().sum(0)
    return (
        torch.cat(grad_hidden) if needs_hidden else None,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(weight.dtype),
    )


class LinearTile:
    """Logits of a few rows, in buffers that are used again: fresh pages cost as much as the
    arithmetic."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None, rows: int
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.scale = scale
        self.softcap = softcap
        self.rows = rows
        self.buffers: list[Tensor] = []

    def _buffer(self, index: int, rows: int) -> Tensor:
        if not self.buffers:
            shape = (2, self.rows, len(self.weight))
            self.buffers = list(self.weight.new_empty(shape, dtype=torch.float32))
        return self.buffers[index][:rows]

    def drop_buffers(self) -> None:
        self.buffers = []

    def logits(self, states: Tensor) -> Tensor:
        """Float32, shape (rows, vocabulary)."""
        buffer = self._buffer(0, len(states))
        if self.weight.dtype == torch.float32:
            logits = torch.mm(states, self.weight.T, out=buffer)
        else:
            logits = buffer.copy_(states @ self.weight.T)
        if self.bias is not None:
            logits += self.bias
        return scale_logits(logits, self.scale, self.softcap)

    def exps(self, logits: Tensor, shift: Tensor) -> Tensor:
        """exp(logits - shift), in a buffer of its own."""
        return torch.sub(logits, shift[:, None], out=self._buffer(1, len(logits))).exp_()

    def slope(
        self, logits: Tensor, probs: Tensor, targets: Tensor, grad: Tensor | None = None
    ) -> Tensor:
        """Gradient of the log-probabilities to the product of states and weights; takes `probs`
        over for it."""
        slope = probs.neg_()
        slope[torch.arange(len(targets), device=targets.device), targets] += 1
        return self.to_product(logits, slope, grad)

    def to_product(self, logits: Tensor, slope: Tensor, grad: Tensor | None = None) -> Tensor:
        """Turn a gradient to the logits into one to the product of states and weights.

        Args:
            slope: gradient of each row's value to its logits; overwritten.
            grad: factor of each row, shape (rows,); default: 1.
        """
        if self.softcap is not None:
            slope *= 1 - (logits / self.softcap).square_()
        if self.scale != 1.0:
            slope *= self.scale
        if grad is not None:
            slope *= grad[:, None]
        return slope.to(self.weight.dtype)


def _predict_tile(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = head.linear(hidden).float()
        if head.scale != 1.0:
            logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        log_probs = logits.log_softmax(-1)
        of_target = log_probs.gather(1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -torch.linalg.vecdot(log_probs.exp(), log_probs)
            is_greedy = of_target >= log_probs.amax(-1)
        return of_target, entropy, is_greedy

    if not torch.is_grad_enabled():
        return forward(hidden)
    # Logits are made again in the backward pass, a tile at a time.
    return checkpoint(forward, hidden, use_reentrant=False, preserve_rng_state=False)
