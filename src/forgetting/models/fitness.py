"""Refuses models that do not fit together, before anything is computed.

Input: the model settings of a recipe, and the name of a reference model. Output: nothing, or
an error with both values. Reads configurations, tokenizers and the headers of adapters; loads no
weights. A model on the Hub that cannot be reached is not checked here: loading it says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from forgetting.config import ModelSettings
from forgetting.console import logger
from forgetting.errors import InputError
from forgetting.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from forgetting.models.loading import load_config, load_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def check_base(settings: ModelSettings) -> None:
    """Refuse a base model that cannot be trained and saved.

    Raises:
        InputError: the tokenizer is larger than the vocabulary, the weights are quantized, or the
            generation configuration cannot be saved.
    """
    config = _config(settings)
    if config is None:
        return
    _check_unquantized(settings, config)
    tokenizer = _tokenizer(settings)
    if tokenizer is not None:
        _check_vocabulary(settings.name_or_path, tokenizer, config)
    _check_generation_config(settings, config)


def check_reference(settings: ModelSettings, reference: str) -> None:
    """Refuse a reference model that does not fit the base model.

    Args:
        settings: of the base model.
        reference: folder or Hub id of an adapter or whole weights.

    Raises:
        InputError: another tokenizer, another base model, or weights of another size.
    """
    config, tokenizer = _config(settings), _tokenizer(settings)
    if config is None or tokenizer is None:
        return
    own = settings.model_copy(update={"name_or_path": reference, "revision": None})
    folder = Path(reference)
    adapter = _adapter_config(reference)
    if adapter is not None:
        _check_adapter_base(settings, reference, adapter)
        if folder.is_dir():
            _check_adapter_sizes(settings, config, folder)
    else:
        reference_config = _config(own)
        if reference_config is not None:
            _check_reference_vocabulary(settings, reference, reference_config, tokenizer)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    if has_tokenizer or not (folder.is_dir() or adapter is not None):
        other = _tokenizer(own)
        if other is not None:
            _check_same_tokens(settings.name_or_path, tokenizer, reference, other)


def _config(settings: ModelSettings) -> PretrainedConfig | None:
    try:
        return load_config(settings)
    except InputError:
        if Path(settings.name_or_path).is_dir():
            raise
        return None


def _tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(settings)
    except InputError:
        if Path(settings.name_or_path).is_dir():
            raise
        return None


def _check_unquantized(settings: ModelSettings, config: PretrainedConfig) -> None:
    found = getattr(config, "quantization_config", None)
    if not found:
        return
    values = found if isinstance(found, Mapping) else found.to_dict()
    method = values.get("quant_method", "an unknown method")
    if values.get("load_in_4bit"):
        method = f"{method}, 4 bits"
    elif values.get("load_in_8bit"):
        method = f"{method}, 8 bits"
    raise InputError(
        f"{settings.name_or_path}: config.json has a quantization_config, so the weights are "
        f"already quantized ({method}). An adapter cannot be merged into them without loss. Set "
        "the unquantized model, and model.quantization: nf4 or int8 if memory is short"
    )


def _check_vocabulary(
    name: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> None:
    size = config.get_text_config().vocab_size
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > size:
        raise InputError(
            f"{name}: the tokenizer has {needed:,} token ids, but the model's vocabulary has "
            f"{size:,} (vocab_size in config.json). Call model.resize_token_embeddings({needed}) "
            "and save the model, or use the tokenizer that belongs to it"
        )


def _check_generation_config(settings: ModelSettings, config: PretrainedConfig) -> None:
    try:
        generation = GenerationConfig.from_pretrained(
            settings.name_or_path, revision=settings.revision or "main"
        )
    except OSError:
        # Without a file, transformers makes one from the fields of config.json.
        generation = GenerationConfig.from_model_config(config)
    try:
        generation.validate(strict=True)
    except ValueError as error:
        fields = dict.fromkeys(re.findall(r"^- `(\w+)`:", str(error), flags=re.MULTILINE))
        values = [f"{name} {getattr(generation, name)}" for name in [*fields, "do_sample"]]
        reason = ", ".join(values) if fields else " ".join(str(error).split())[:300]
        raise InputError(
            f"{settings.name_or_path}: generation_config.json contradicts itself ({reason}), so "
            "transformers would refuse to save the trained model. Set do_sample to true in the "
            "file, or remove the fields that are named here"
        ) from error


def _adapter_config(reference: str) -> dict[str, Any] | None:
    """The configuration of an adapter; None for whole weights, or if the Hub cannot be asked."""
    file = Path(reference) / ADAPTER_CONFIG
    if Path(reference).is_dir():
        if not file.is_file():
            return None
    else:
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(reference, ADAPTER_CONFIG))
        except (OSError, ValueError):
            return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{reference}: {ADAPTER_CONFIG} is not valid JSON: {error}") from error


def _check_adapter_base(
    settings: ModelSettings, reference: str, adapter: Mapping[str, Any]
) -> None:
    trained, base = adapter.get("base_model_name_or_path"), settings.name_or_path
    if not trained or trained == base or Path(trained).name == Path(base).name:
        return
    # A folder may be a copy of the other model: only its sizes and its tokenizer can tell.
    if Path(trained).is_absolute() or Path(trained).is_dir() or Path(base).is_dir():
        logger.warning(
            "The adapter %s was trained on %s, and model.name_or_path is %s. Its scores mean "
            "something only if both are the same model",
            reference,
            trained,
            base,
        )
        return
    raise InputError(
        f"reference.name_or_path: the adapter {reference} was trained on {trained}, but "
        f"model.name_or_path is {base}. Set one of the two so that they agree"
    )


def _check_adapter_sizes(settings: ModelSettings, config: PretrainedConfig, folder: Path) -> None:
    from peft import PeftConfig, get_peft_model
    from safetensors import SafetensorError, safe_open

    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise InputError(f"reference.name_or_path: {folder} holds no safetensors adapter")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, trust_remote_code=settings.trust_remote_code
            )
            peft_config = PeftConfig.from_pretrained(str(folder))
            # Otherwise PEFT warns of a copy of the base model.
            peft_config.base_model_name_or_path = None
            adapted = get_peft_model(model, peft_config)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"reference.name_or_path: the adapter {folder} does not fit {settings.name_or_path}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    sizes = {_saved_name(name): tuple(v.shape) for name, v in adapted.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            saved = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}") from error
    for name, shape in saved.items():
        if name in sizes and sizes[name] != shape:
            raise InputError(
                f"reference.name_or_path: the adapter {folder} has {name.split('.', 2)[-1]} of "
                f"shape {list(shape)}, but {settings.name_or_path} needs {list(sizes[name])}. Set "
                "the model that the adapter was trained on in model.name_or_path, or another "
                "reference"
            )


def _saved_name(name: str) -> str:
    """The name under which PEFT saves a parameter of a model with one adapter."""
    return re.sub(r"\.(modules_to_save\.default|default)(?=\.|$)", "", name)


def _check_reference_vocabulary(
    settings: ModelSettings,
    reference: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    size = config.get_text_config().vocab_size
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > size:
        raise InputError(
            f"reference.name_or_path: the tokenizer of {settings.name_or_path} has {needed:,} "
            f"token ids, but the vocabulary of {reference} has {size:,}. Set a reference that was "
            "trained from the base model"
        )


def _check_same_tokens(
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    reference: str,
    other: PreTrainedTokenizerBase,
) -> None:
    own, theirs = tokenizer.get_vocab(), other.get_vocab()
    # A reference may have more tokens than the base, but not others.
    differing = sorted((index, token) for token, index in own.items() if theirs.get(token) != index)
    if not differing:
        return
    index, token = differing[0]
    found = other.convert_ids_to_tokens(index) if index < len(other) else None
    raise InputError(
        f"reference.name_or_path: {reference} has another tokenizer than {base}: "
        f"{len(differing):,} of {len(own):,} tokens differ, such as id {index}, which is {found!r} "
        f"and {token!r}. Its scores would be those of other text. Set a reference with the "
        "tokenizer of the base model"
    )
