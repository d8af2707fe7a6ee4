"""Checks that what was saved works like what was trained.

Input: a model in memory and the folder that it was written to. Output: nothing, or an error.
Compares logits on a few tokens, the chat template of the tokenizer, and the end tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from forgetting.errors import ForgettingError

NUM_PROBES = 32
SAME_WEIGHTS = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest relative difference of logits, by dtype of the computation."""
QUANTIZED = {torch.float32: 0.05, torch.bfloat16: 0.05}
"""The same on a quantized base, whose kernels round in a dtype of their own."""
MERGED = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""The same for an adapter that was merged: each merged weight is rounded."""


def probe_logits(
    model: Any,
    dtype: torch.dtype,
    *,
    forward: Callable[..., Any] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Logits of a model on a few tokens from all over its vocabulary.

    Args:
        model: the model. If processes hold parts of it, they must call this together.
        dtype: dtype of the computation; weights may have another one.
        forward: computes with the model, if a trainer wrapped it. Default: the model.
        device: where it computes. Default: where its embeddings are.

    Returns:
        Logits without their mean, shape (tokens, vocabulary), float32 on the CPU.
    """
    forward = forward or model
    device = device or model.get_input_embeddings().weight.device
    size = model.config.get_text_config().vocab_size
    # From the last token down, because new tokens come last.
    ids = torch.linspace(size - 1, 0, min(NUM_PROBES, size), device=device).long()[None]
    was_training = model.training
    model.eval()
    half = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    # Not inference_mode: parts of a model are gathered into tensors that outlive this.
    with torch.no_grad(), half:
        logits = forward(input_ids=ids).logits[0].float().cpu()
    model.train(was_training)
    return logits - logits.mean(-1, keepdim=True)


def check_logits(
    found: Tensor,
    expected: Tensor,
    dtype: torch.dtype,
    what: str,
    tolerances: dict[torch.dtype, float] = SAME_WEIGHTS,
) -> None:
    """Refuse logits that differ from the expected ones by more than the dtype explains.

    Raises:
        ForgettingError: they do, or one of them is not finite. `what` names the model.
    """
    if found.shape != expected.shape:
        raise ForgettingError(
            f"{what} predicts {found.shape[-1]} tokens, and the trained model {expected.shape[-1]}"
        )
    difference = float((found - expected).norm() / expected.norm().clamp(min=1e-9))
    if not difference <= tolerances.get(dtype, max(tolerances.values())):
        raise ForgettingError(
            f"{what} does not work like the trained model: its logits differ by {difference:.2g} "
            f"of their norm, the largest by {float((found - expected).abs().max()):.3g}. Please "
            "report this with the recipe"
        )


def check_prompting(
    folder: Path, tokenizer: PreTrainedTokenizerBase, end_token_ids: Collection[int]
) -> None:
    """Refuse a saved model whose users could not prompt it as it was trained.

    Args:
        folder: of the model or adapter.
        tokenizer: with the chat template of the run.
        end_token_ids: every token that ends a labeled response.

    Raises:
        ForgettingError: the template is another one, or generation does not stop at an end token.
    """
    saved = AutoTokenizer.from_pretrained(folder)
    if saved.chat_template != tokenizer.chat_template:
        raise ForgettingError(
            f"{folder}: the saved tokenizer has another chat template than the run. Please report "
            "this with the recipe"
        )
    found = None
    if (folder / GENERATION_CONFIG_NAME).is_file():
        found = GenerationConfig.from_pretrained(folder).eos_token_id
    ends = {found} if isinstance(found, int) else set(found or ())
    if missing := sorted(set(end_token_ids) - ends):
        raise ForgettingError(
            f"{folder}: generation_config.json does not name the end tokens {missing}, so the "
            "model would not stop where it was trained to. Please report this with the recipe"
        )
