"""Adapters on a base model: attached, merged, and lent one after the other.

Input: the model settings of a recipe, and folders of trained adapters or whole weights.
Output: models for inference. Weights are read from safetensors only.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from forgetting.config import ModelSettings
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.models.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_config,
    adapter_shapes,
    is_adapter,
    small_file,
)
from forgetting.models.foreign import reading
from forgetting.models.reported import check_adapter_names, first_not_finite
from forgetting.models.verification import MERGED, check_logits, probe_logits

ROUNDING = 1e-6
"""Relative difference of logits that is no change. A training changes them a thousand times as
much."""


def merge_adapter(settings: ModelSettings, dtype: torch.dtype, path: Path | str) -> PreTrainedModel:
    """The base model with an adapter merged into its weights, in `dtype`, not quantized.

    Args:
        path: folder of the adapter.

    Raises:
        ForgettingError: the merged model does not work like the adapter on its base.
    """
    whole = settings.model_copy(update={"quantization": None})
    adapted = attach_adapter(loading.load_base_model(whole, dtype), path)
    expected = probe_logits(adapted, dtype)
    if _adapts_ends(adapted):
        _untie(adapted.get_base_model())
    merged = adapted.merge_and_unload()
    check_logits(probe_logits(merged, dtype), expected, dtype, f"{path}, merged,", MERGED)
    return merged


def _adapts_ends(adapted: Any) -> bool:
    """Whether an adapter changes the embedding or the head."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    ends = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    return any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in ends)


def _untie(model: Any) -> None:
    """Give the head weights of its own if it shares those of the embedding.

    An adapter on one of them would be merged into both.
    """
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = (_without_adapter(module) for module in ends)
    if head is None or head.weight is not embedding.weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _without_adapter(module: Any) -> Any:
    for name in ("base_layer", "original_module"):
        module = getattr(module, name, module)
    return module


def attach_adapter(model: PreTrainedModel, path: Path | str) -> Any:
    """The model with a trained LoRA adapter, for inference; base weights are shared, not copied.

    The adapter gets the dtype of the model.

    Raises:
        InputError: the folder holds no adapter in safetensors form, or one that does not fit the
            model or has weights that are not finite.
    """
    from peft import PeftModel

    folder = Path(path)
    if folder.is_dir() and not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{folder} holds no safetensors adapter")
    problem = f"the adapter {path} cannot be put on {model.config.name_or_path or 'the model'}"
    with reading(problem):
        # In float32, as in training, the adapter and its casts take as long as the model itself.
        adapted = PeftModel.from_pretrained(model, str(path), autocast_adapter_dtype=False)
    shapes = adapter_shapes(path)
    if shapes is not None:
        # PEFT only warns, and leaves what is missing as it was drawn.
        check_adapter_names(path, shapes, adapted)
    if name := first_not_finite(adapted):
        raise InputError(f"the adapter {path}: {name} has values that are not finite numbers")
    return adapted.eval()


def fuse_adapter(adapted: Any) -> None:
    """Merge an adapter into the base weights if that loses nothing, which makes inference faster.

    For a base that is not needed any more. In half precision or with quantized weights the
    adapter stays separate: rounding the sum would lose most of what was trained.
    """
    from peft.tuners.lora import LoraModel

    model = adapted.get_base_model()
    is_exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    # Where the base has no bias, that of an adapter cannot be merged.
    is_exact &= not any(
        getattr(config, "lora_bias", False) for config in adapted.peft_config.values()
    )
    # Embedding and head may share their weights: an adapter on one would change the other too.
    if is_exact and isinstance(adapted.base_model, LoraModel) and not _adapts_ends(adapted):
        adapted.merge_adapter()


def load_variant(settings: ModelSettings, dtype: torch.dtype, path: Path | str) -> Any:
    """A fine-tuned model: an adapter on the base model, or whole weights."""
    if is_adapter(path):
        return attach_adapter(loading.load_base_model(settings, dtype), path)
    return loading.load_base_model(whole_weights(settings, path), dtype)


def whole_weights(settings: ModelSettings, path: Path | str) -> ModelSettings:
    """The settings with the fine-tuned weights at `path` in the place of the base model's."""
    return settings.model_copy(
        update={"name_or_path": str(path), "revision": None, "quantization": None}
    )


def continue_adapter(adapted: Any, path: Path) -> None:
    """Give an adapter that is to be trained the weights of a trained one of the same settings.

    Args:
        adapted: a PEFT model.
        path: folder of the trained adapter.

    Raises:
        InputError: the trained adapter has other weights.
    """
    from peft import set_peft_model_state_dict

    saved = load_file(path / ADAPTER_WEIGHTS)
    check_adapter_names(path, saved, adapted)
    set_peft_model_state_dict(adapted, saved)


class SharedBase:
    """One base model, loaded once and lent to one fine-tuned model after the other.

    An adapter is attached to the base and detached again. If that would leave something behind, the
    base is loaded anew. Whole weights replace the base, so two
    models are never in memory together. The owner calls `release`.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._base: PreTrainedModel | None = None
        self._logits: Tensor | None = None

    @contextmanager
    def lend(self, path: Path | str | None = None, *, is_last: bool = False) -> Iterator[Any]:
        """The base model, or the fine-tuned model at `path`, while the context is open.

        Args:
            path: folder or Hub id of an adapter or whole weights. Default: the base model.
            is_last: nothing is lent after this, so an adapter may be merged into the base.

        Raises:
            InputError: there are no such weights, or they predict what the base model predicts.
        """
        dtype = loading.pick_dtype(self._settings)
        if path is None:
            yield self._loaded(dtype)
            return
        if not is_adapter(path):
            base = self._base_logits(dtype)
            self.release()
            model = load_variant(self._settings, dtype, path)
            _check_changes(probe_logits(model, torch.float32), base, path)
            yield model
            return
        model = attach_adapter(self._loaded(dtype), path)
        try:
            with model.disable_adapter():
                base = probe_logits(model, torch.float32)
            _check_changes(probe_logits(model, torch.float32), base, path)
            if is_last:
                self._base = None
                fuse_adapter(model)
            yield model
        finally:
            if not is_last:
                self._base = model.unload() if leaves_base_alone(path) else None

    def _loaded(self, dtype: torch.dtype) -> PreTrainedModel:
        if self._base is None:
            self._base = loading.load_base_model(self._settings, dtype)
        return self._base

    def _base_logits(self, dtype: torch.dtype) -> Tensor:
        """The probe of the base model, which is loaded for it once if need be."""
        if self._logits is None:
            self._logits = probe_logits(self._loaded(dtype), torch.float32)
        return self._logits

    def release(self) -> None:
        """Free the memory of the base model; the next `lend` loads it again."""
        self._base = None
        gc.collect()


def leaves_base_alone(path: Path | str) -> bool:
    """Whether the base model is as before once an adapter is detached.

    PEFT puts whole modules of an adapter (`modules_to_save`, resized embeddings) into the base,
    and does not take them out again. Adapters that begin as a part of the weights, such as PiSSA
    and OLoRA, are subtracted from the base as soon as they are attached.
    """
    shapes = adapter_shapes(path)
    file = small_file(path, ADAPTER_CONFIG)
    start = True if file is None else adapter_config(file).get("init_lora_weights", True)
    return (
        shapes is not None
        and all(".lora_" in name for name in shapes)
        and (start is True or start in (False, "gaussian", "orthogonal"))
    )


def _check_changes(found: Tensor, base: Tensor, path: Path | str) -> None:
    """Refuse a fine-tuned model that predicts what the base model predicts.

    Args:
        found: its logits on a few tokens.
        base: those of the base model.
    """
    # Another vocabulary is another model.
    if found.shape != base.shape or float((found - base).norm()) > ROUNDING * float(base.norm()):
        return
    raise InputError(
        f"the {'adapter' if is_adapter(path) else 'model'} in {path} does not change what the base "
        "model predicts. It was not trained (learning rate or number of steps too small), or it "
        "is a copy of the base model, or an adapter of another one. Nothing was measured"
    )
