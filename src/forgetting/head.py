"""The last step of a causal language model, applied to chosen positions in tiles.

Goes in: hidden states of the positions that predict a target. Comes out: the targets'
log-probabilities, by a float32 log-sum-exp, without full logits at any time, forward or
backward. Small tiles stay in the processor's cache, which on CPUs is most of the speed. Knows
nothing of batches or of what the log-probabilities are for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trl.trainer.utils import FusedCausalLMOutput

ROWS_PER_TILE = 256
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
    """Of the whole prediction, in nats, float32; without gradient."""
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


def predict(head: Head, hidden: Tensor, targets: Tensor) -> Predictions:
    """Score targets.

    Args:
        hidden: states of the positions that predict them, shape (positions, hidden size).
        targets: token ids, shape (positions,).
    """
    size = ROWS_PER_TILE if hidden.device.type == "cpu" else ROWS_PER_TILE_ACCELERATOR
    starts = range(0, targets.numel(), size)
    tiles = [_Tile(head, targets[begin : begin + size]) for begin in starts]
    log_probs = []
    for begin, tile in zip(starts, tiles, strict=True):
        states = hidden[begin : begin + size]
        if torch.is_grad_enabled() and hidden.requires_grad:
            # Logits are recomputed in the backward pass, a tile at a time.
            log_probs.append(
                checkpoint(tile, states, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            log_probs.append(tile(states))
    if not tiles:
        # Connected to the model, so that a batch without targets still has a gradient of zero.
        nothing = hidden.sum(-1).float()
        return Predictions(nothing, nothing.detach(), nothing.detach().bool())
    return Predictions(
        torch.cat(log_probs),
        torch.cat([tile.entropy for tile in tiles if tile.entropy is not None]),
        torch.cat([tile.is_greedy for tile in tiles if tile.is_greedy is not None]),
    )


class _Tile:
    """Log-probabilities of some targets; what needs no gradient is kept from the first pass."""

    def __init__(self, head: Head, targets: Tensor) -> None:
        self.head = head
        self.targets = targets
        self.entropy: Tensor | None = None
        self.is_greedy: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.head.linear(hidden).float()
        if self.head.scale != 1.0:
            logits = logits * self.head.scale
        if self.head.softcap is not None:
            logits = self.head.softcap * torch.tanh(logits / self.head.softcap)
        of_target = logits.gather(1, self.targets[:, None])[:, 0]
        normalizer = logits.logsumexp(-1)
        if self.entropy is None:
            with torch.no_grad():
                probs = (logits - normalizer[:, None]).exp_()
                self.entropy = normalizer - probs.mul_(logits).sum(-1)
                self.is_greedy = of_target >= logits.amax(-1)
        return of_target - normalizer


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
