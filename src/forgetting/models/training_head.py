"""The head of a model in training: log-probabilities of the labels, and what a loss needs besides.

Input: a causal language model after `trl.trainer.add_fused_lm_head`, and, per label, what is asked
for. Output: TRL's per-token values and, at chosen labels, the cross-entropy to known alternatives,
the log-probability of the best other token, and statistics without a gradient. On CPUs the labeled
positions go through `lm_head` in small tiles; on accelerators TRL's kernel stays. Knows nothing of
losses.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.utils import FusedCausalLMOutput

from forgetting.models.lm_head import Head, predict, split_head
from forgetting.models.redistribution import Alternatives, cross_entropy
from forgetting.models.token_statistics import measure
from forgetting.models.top_tokens import best_others, top_entropy


@dataclass
class TrainingOutput(FusedCausalLMOutput):
    """TRL's values, and those that were requested; each of the shape of `log_probs`, zero where it
    was not requested."""

    corrections: Tensor | None = None
    """Cross-entropy to the alternatives, in nats."""
    best_other_log_probs: Tensor | None = None
    """Log-probability of the most likely token other than the label, in nats."""
    sum_squares: Tensor | None = None
    """Sum of the squared probabilities of all tokens, without gradient."""
    top_entropy: Tensor | None = None
    """Entropy among the most likely tokens in nats, see `top_tokens`, without gradient."""


@dataclass(frozen=True)
class TokenRequest:
    """What is wanted in addition to TRL's values; all tensors align with the input's tokens."""

    is_corrected: Tensor | None = None
    """At which labels the cross-entropy to the alternatives is wanted, shape (batch, length)."""
    alternative_ids: Tensor | None = None
    """Shape (batch, length, K); see `Alternatives`."""
    alternative_log_probs: Tensor | None = None
    """Shape (batch, length, K + 1)."""
    needs_best_other: Tensor | None = None
    """At which labels the best other token is wanted, shape (batch, length)."""
    statistics: Collection[str] = ()
    """`sum_squares` or `top_entropy`, at every label."""

    def of_length(self, length: int) -> TokenRequest:
        """The request with zeros before its tokens, for an adapter that has put virtual ones there.

        Args:
            length: of the input with them.
        """
        padded = {}
        for name, values in vars(self).items():
            if isinstance(values, Tensor) and values.shape[1] < length:
                missing = [0, 0] * (values.dim() - 2) + [length - values.shape[1], 0]
                padded[name] = pad(values, missing)
        return replace(self, **padded)


def add_training_head(model: Any) -> None:
    """Let a model that TRL has given its fused head take a `request`, and use `lm_head` on CPUs.

    On CPUs TRL's head scores every position, padding too, in tiles of some hundred megabytes: more
    than twice the time of the labeled positions in small ones. On accelerators its kernel stays;
    so it does for models whose loss needs the router's logits.

    Args:
        model: a causal language model after `trl.trainer.add_fused_lm_head`.
    """
    fused_forward = model.forward

    @functools.wraps(fused_forward)
    def forward(
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        request: TokenRequest | None = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            return fused_forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        head = split_head(model)
        mask = labels[:, 1:] != -100
        if _uses_lm_head(labels, kwargs):
            kwargs.pop("num_items_in_batch", None)
            found = head.backbone(*args, **{**kwargs, "use_cache": False})
            hidden = found.last_hidden_state[:, :-1]
            output = _on_cpu(head, hidden, labels[:, 1:], mask)
        else:
            with _last_hidden_state(head) as seen:
                output = fused_forward(*args, fused_lm_head=True, labels=labels, **kwargs)
            (hidden,) = (states[:, :-1] for states in seen)
        if request is not None:
            request = request.of_length(labels.shape[1])
        extras = {} if request is None else _extras(head, hidden, labels[:, 1:], mask, request)
        return TrainingOutput(**output, **extras)

    model.forward = forward


def without_virtual_tokens(outputs: Any, length: int) -> Any:
    """Model outputs without the positions that prompt tuning and p-tuning put before a sample.

    Args:
        outputs: per-token values have shape (batch, virtual tokens + length).
    """
    for name, values in outputs.items():
        if isinstance(values, Tensor) and values.dim() == 2:
            outputs[name] = values[:, values.shape[1] - length :]
    return outputs


def _uses_lm_head(labels: Tensor, arguments: Mapping[str, Any]) -> bool:
    unsupported = arguments.get("output_router_logits") or arguments.get("shift_labels") is not None
    return labels.device.type == "cpu" and not unsupported


def _on_cpu(head: Head, hidden: Tensor, labels: Tensor, mask: Tensor) -> FusedCausalLMOutput:
    found = predict(head, hidden[mask], labels[mask])
    log_probs = _spread(found.log_probs, mask)
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / mask.sum().clamp(min=1),
        log_probs=log_probs,
        entropy=_spread(found.entropy, mask),
        is_top1=_spread(found.is_greedy, mask),
        label_mask=mask,
    )


@contextmanager
def _last_hidden_state(head: Head) -> Iterator[list[Tensor]]:
    """Keeps what the backbone returns while the context is open."""
    seen: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        del module, inputs
        seen.append(output.last_hidden_state)

    handle = head.backbone.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _extras(
    head: Head, hidden: Tensor, labels: Tensor, mask: Tensor, request: TokenRequest
) -> dict[str, Tensor]:
    """What was requested, of the shape of `labels`."""
    extras = {}
    if request.is_corrected is not None:
        assert request.alternative_ids is not None
        assert request.alternative_log_probs is not None
        chosen = request.is_corrected[:, 1:] & mask
        alternatives = Alternatives(
            request.alternative_ids[:, 1:][chosen], request.alternative_log_probs[:, 1:][chosen]
        )
        values = cross_entropy(head, hidden[chosen], labels[chosen], alternatives)
        extras["corrections"] = _spread(values, chosen)
    if request.needs_best_other is not None:
        chosen = request.needs_best_other[:, 1:] & mask
        states = hidden[chosen]
        best = best_others(head, states.detach(), labels[chosen], 1).ids[:, 0]
        values = predict(head, states, best, with_entropy=False).log_probs
        extras["best_other_log_probs"] = _spread(values, chosen)
    if "sum_squares" in request.statistics:
        found = measure(head, hidden[mask].detach(), labels[mask], ["sum_squares"])
        assert found.sum_squares is not None
        extras["sum_squares"] = _spread(found.sum_squares, mask)
    if "top_entropy" in request.statistics:
        extras["top_entropy"] = _spread(top_entropy(head, hidden[mask].detach()), mask)
    return extras


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
