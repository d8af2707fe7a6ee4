"""The last step of a causal language model, applied to chosen positions in tiles.

Goes in: hidden states of the positions that predict a target. Comes out: the targets'
log-probabilities, by a float32 log-sum-exp, without full logits at any time, forward or
backward. Small tiles stay in the processor's cache, which on CPUs is most of the speed.
`predict` is for training, `measure` for scoring. Knows nothing of batches or of what the
log-probabilities are for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_triton_available
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput

ROWS_PER_TILE = 128
ROWS_PER_TILE_ACCELERATOR = 4096
# Without a gradient a tile can be cut along the vocabulary too: many rows share each piece of the
# weights, and 2 MiB of float32 logits are read while they are still in the cache.
ROWS_PER_BLOCK = 1024
LOGITS_PER_BLOCK = 2**19
# Columns of a block on an accelerator, where TRL's kernel reads it once.
COLUMNS_PER_BLOCK_ACCELERATOR = 2**15


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
    """Of the whole prediction, in nats, float32; without gradient."""
    is_greedy: Tensor
    """Whether no token is more likely."""
    rank: Tensor | None = None
    """How many tokens are more likely, int32; only from `measure`, and only when asked for."""


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
    if _is_plain(head.linear):
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


@torch.no_grad()
def measure(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    *,
    with_entropy: bool = False,
    with_rank: bool = False,
) -> Predictions:
    """Score targets without a gradient: the same numbers as `predict`, faster.

    Args:
        hidden: states of the positions that predict them, shape (positions, hidden size).
        targets: token ids, shape (positions,).
        with_entropy: whether `entropy` is wanted; else it is zero.
        with_rank: whether `rank` is wanted; needs all logits of a row at once, which takes longer.
    """
    on_cpu = hidden.device.type == "cpu"
    if with_rank or not _is_plain(head.linear):
        rows = ROWS_PER_TILE if on_cpu else ROWS_PER_TILE_ACCELERATOR
        columns = None
    elif on_cpu:
        rows = min(ROWS_PER_BLOCK, max(1, len(targets)))
        columns = max(1, LOGITS_PER_BLOCK // rows)
    elif _has_kernel(hidden.device):
        return _measure_by_kernel(head, hidden, targets, with_entropy)
    else:
        rows, columns = ROWS_PER_TILE_ACCELERATOR, COLUMNS_PER_BLOCK_ACCELERATOR
    buffers = _Buffers(hidden.device)
    # Without targets there is one empty tile.
    tiles = [
        _measure_tile(
            _logit_blocks(head, states, columns, buffers), of_tile, with_entropy, with_rank, buffers
        )
        for states, of_tile in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    log_probs, entropy, is_greedy, ranks = zip(*tiles, strict=True)
    return Predictions(
        torch.cat(log_probs),
        torch.cat(entropy),
        torch.cat(is_greedy),
        torch.cat(ranks) if with_rank else None,
    )


def _has_kernel(device: torch.device) -> bool:
    """Whether TRL's fused head runs as a kernel of its own, one pass over each block."""
    return device.type in ("cuda", "xpu") and is_triton_available()


def _measure_by_kernel(
    head: Head, hidden: Tensor, targets: Tensor, with_entropy: bool
) -> Predictions:
    outputs = ("entropy", "is_top1") if with_entropy else ("is_top1",)
    weight: Any = head.linear.weight
    log_probs, entropy, _, _, is_greedy = ChunkedLogProbFunction.apply(
        hidden.to(weight.dtype),
        weight,
        head.linear.bias,
        targets,
        1.0,
        COLUMNS_PER_BLOCK_ACCELERATOR,
        head.softcap,
        head.scale,
        outputs,
    )
    return Predictions(
        log_probs, torch.zeros_like(log_probs) if entropy is None else entropy, is_greedy
    )


class _Buffers:
    """Memory that is used again for every block: fresh pages cost as much as the arithmetic."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flat: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
        size = shape[0] * shape[1]
        if name not in self.flat or self.flat[name].numel() < size:
            self.flat[name] = torch.empty(size, dtype=dtype, device=self.device)
        return self.flat[name][:size].view(shape)


def _logit_blocks(
    head: Head, states: Tensor, columns: int | None, buffers: _Buffers
) -> Iterator[tuple[int, Tensor]]:
    """Float32 logits, shape (rows, columns), and the token of the first column; a block is gone
    when the next one is asked for. None: all columns at once."""
    if not _is_plain(head.linear):
        logits = head.linear(states).float()
        yield 0, _scale(logits, head.scale, head.softcap)
        return
    weight, bias = head.linear.weight, head.linear.bias
    states = states.to(weight.dtype)
    for begin in range(0, len(weight), columns or len(weight)):
        part = weight[begin : begin + (columns or len(weight))]
        shape = (len(states), len(part))
        logits = buffers.take("logits", shape)
        if weight.dtype == torch.float32:
            torch.mm(states, part.T, out=logits)
        else:
            product = buffers.take("product", shape, weight.dtype)
            logits.copy_(torch.mm(states, part.T, out=product))
        if bias is not None:
            logits += bias[begin : begin + len(part)]
        yield begin, _scale(logits, head.scale, head.softcap)


def _scale(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """In place, what comes after the linear layer."""
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _measure_tile(
    blocks: Iterator[tuple[int, Tensor]],
    targets: Tensor,
    with_entropy: bool,
    with_rank: bool,
    buffers: _Buffers,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Statistics of each block about its largest logit, put together in the end.

    For the largest logit m of all, the normaliser is m + log(S), S = sum exp(z - m), and the
    entropy log(S) - sum exp(z - m) (z - m) / S, in which nothing large cancels.
    """
    of_target = torch.full(targets.shape, -math.inf, device=targets.device)
    rank = None
    found = []
    for begin, logits in blocks:
        column = targets - begin
        is_here = (column >= 0) & (column < logits.shape[1])
        there = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])
        of_target = torch.where(is_here, there[:, 0], of_target)
        if with_rank:
            rank = (logits > there).sum(1, dtype=torch.int32)
        largest = logits.amax(1)
        shifted = logits.sub_(largest[:, None])
        weighted = torch.zeros_like(largest)
        if with_entropy:
            shape = (logits.shape[0], logits.shape[1])
            exps = torch.exp(shifted, out=buffers.take("exps", shape))
            weighted = torch.linalg.vecdot(exps, shifted)
        else:
            exps = shifted.exp_()
        found.append((largest, exps.sum(1), weighted))
    maxima, sums, weights = (torch.stack(parts) for parts in zip(*found, strict=True))
    largest = maxima.amax(0)
    shift = maxima - largest
    total = (shift.exp() * sums).sum(0)
    log_probs = of_target - largest - total.log()
    mean = (shift.exp() * (weights + shift * sums)).sum(0) / total
    entropy = total.log() - mean if with_entropy else torch.zeros_like(total)
    return log_probs, entropy, of_target >= largest, rank


def _is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
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
        ctx.tile = _LinearTile(weight, bias, scale, softcap, min(size, len(targets)))
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
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Sums over many tiles are kept in float32.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = weight.new_zeros(len(weight), dtype=torch.float32) if needs_bias else None
        grad_hidden = []
        tiles = (values.split(ctx.size) for values in (hidden, targets, log_probs, grad))
        for states, of_tile, log_prob, grad_of_tile in zip(*tiles, strict=True):
            logits = ctx.tile.logits(states)
            normalizer = logits.gather(1, of_tile[:, None])[:, 0] - log_prob
            probs = ctx.tile.exps(logits, normalizer)
            slope = ctx.tile.slope(logits, probs, of_tile, grad_of_tile)
            if needs_hidden:
                grad_hidden.append(slope @ weight)
            if grad_weight is not None:
                grad_weight += slope.T @ states
            if grad_bias is not None:
                grad_bias += slope.float().sum(0)
        ctx.tile.drop_buffers()
        return (
            torch.cat(grad_hidden) if needs_hidden else None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            *(None,) * 5,
        )


class _LinearTile:
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
        return _scale(logits, self.scale, self.softcap)

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


def add_tiled_head(model: Any) -> None:
    """Let a model that TRL has given its fused head use this one on CPUs.

    TRL's head scores every position there, padding too, in tiles of some hundred megabytes: more
    than twice the time of the labelled positions in small ones. On accelerators its kernel
    stays; so it does for models whose loss needs the router's logits.

    Args:
        model: a causal language model after `trl.trainer.add_fused_lm_head`.
    """
    fused_forward = model.forward

    @functools.wraps(fused_forward)
    def forward(
        *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        unsupported = kwargs.get("output_router_logits") or kwargs.get("shift_labels") is not None
        if not fused_lm_head or labels is None or labels.device.type != "cpu" or unsupported:
            return fused_forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        head = split_head(model)
        hidden = head.backbone(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        mask = labels[:, 1:] != -100
        found = predict(head, hidden[mask], labels[:, 1:][mask])

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        log_probs = spread(found.log_probs)
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / mask.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=spread(found.entropy),
            is_top1=spread(found.is_greedy),
            label_mask=mask,
        )

    model.forward = forward
