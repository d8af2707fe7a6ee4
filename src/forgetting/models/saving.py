"""Writes models with all that their users need, and checks each by loading it again.

Input: a trained model or the folder of an adapter, the tokenizer of the run, and the tokens that
end a response. Output: a folder whose model, template and end tokens are those of the training.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from forgetting.config import ModelSettings
from forgetting.models.adapter_files import is_adapter
from forgetting.models.adapters import load_variant, merge_adapter
from forgetting.models.prompting import set_end_tokens
from forgetting.models.verification import (
    QUANTIZED,
    SAME_WEIGHTS,
    check_logits,
    check_prompting,
    probe_logits,
)

_SAVED = "saved"


def save_merged(
    settings: ModelSettings,
    dtype: torch.dtype,
    adapter: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    end_token_ids: Collection[int],
) -> None:
    """Merge an adapter into the base model and write the whole model.

    Args:
        settings: of the base model.
        dtype: dtype of the written weights.
        adapter: folder of the adapter.
        folder: to write into.
        tokenizer: with the chat template of the run.
        end_token_ids: every token that ends a labeled response.

    Raises:
        ForgettingError: the written model does not work like the adapter on its base.
    """
    merged = merge_adapter(settings, dtype, adapter)
    set_end_tokens(merged, end_token_ids)
    expected = probe_logits(merged, dtype)
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del merged
    check_saved(settings, dtype, dtype, folder, expected)
    check_prompting(folder, tokenizer, end_token_ids)


def check_saved(
    settings: ModelSettings,
    weights: torch.dtype,
    computation: torch.dtype,
    folder: Path,
    expected: Tensor,
) -> None:
    """Load whole weights, or an adapter on its base model, and compare their logits.

    Args:
        settings: of the base model.
        weights: dtype to load the weights in.
        computation: dtype that the expected logits were computed in.
        folder: of the weights or the adapter.
        expected: what `probe_logits` gave for the trained model.

    Raises:
        ForgettingError: they differ.
    """
    model = load_variant(settings, weights, folder)
    found = probe_logits(model, computation)
    what = "adapter" if is_adapter(folder) else "model"
    check_logits(found, expected, computation, f"the {what} in {folder}", _tolerances(model))


def check_adapter(adapted: Any, dtype: torch.dtype, folder: Path, expected: Tensor) -> None:
    """Load an adapter next to the trained one, on the same base, and compare their logits.

    Args:
        adapted: the trained PEFT model, which comes back as it was.
        dtype: dtype that the expected logits were computed in.
        folder: of the adapter.
        expected: what `probe_logits` gave for the trained adapter.

    Raises:
        ForgettingError: they differ.
    """
    trained = adapted.active_adapter
    adapted.load_adapter(str(folder), adapter_name=_SAVED)
    adapted.set_adapter(_SAVED)
    found = probe_logits(adapted, dtype)
    adapted.set_adapter(trained)
    adapted.delete_adapter(_SAVED)
    check_logits(found, expected, dtype, f"the adapter in {folder}", _tolerances(adapted))


def _tolerances(model: Any) -> dict[torch.dtype, float]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return QUANTIZED if getattr(base, "is_quantized", False) else SAME_WEIGHTS
