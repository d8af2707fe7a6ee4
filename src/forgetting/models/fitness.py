"""Refuses models that do not fit together, before anything is computed.

Input: the model settings of a recipe, and the name of a reference model. Output: nothing, or
an error with both values. Reads configurations, tokenizers and the headers of adapters; loads no
weights. A model on the Hub that cannot be reached, and is not in its cache, is not checked here:
loading it says why.

A reference may have any architecture and size, because it is only asked for the log-probabilities
of the same tokens. So its tokens must be those of the base, and it must have as many positions as
samples have tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from forgetting.config import LoraSettings, ModelSettings
from forgetting.console import logger
from forgetting.errors import InputError
from forgetting.models.adapter_files import (
    ADAPTER_CONFIG,
    Shapes,
    adapter_config,
    adapter_shapes,
    saved_shapes,
    small_file,
)
from forgetting.models.config_values import check_token_ids
from forgetting.models.foreign import reading
from forgetting.models.loading import (
    check_headers,
    described_config,
    empty_model,
    load_config,
    load_tokenizer,
    lora_config,
    max_positions,
)
from forgetting.models.reported import check_adapter_names

_REMOVE = "Correct the file, or remove it"
_NUMBERS = set(map(str, range(1000)))
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def check_base(settings: ModelSettings) -> None:
    """Refuse a base model that cannot be trained and saved.

    Raises:
        InputError: it is no causal language model, the tokenizer is larger than the vocabulary, the
            weights are quantized or of other sizes than the configuration says, or the generation
            configuration cannot be saved.
    """
    described_config(settings)
    config = _config(settings)
    if config is None:
        return
    _check_unquantized(settings, config)
    _check_generation_config(settings, config)
    _without_weights(settings, config)
    tokenizer = _tokenizer(settings)
    if tokenizer is not None:
        _check_vocabulary(settings.name_or_path, tokenizer, config)


def check_reference(settings: ModelSettings, reference: str, max_length: int) -> None:
    """Refuse a reference model that does not fit the base model and the data.

    Args:
        settings: of the base model.
        reference: folder or Hub id of an adapter or whole weights.
        max_length: maximum number of tokens per sample.

    Raises:
        InputError: the base model itself; another tokenizer; an adapter of another base model, or
            for weights of another size; whole weights with fewer token ids or positions than
            needed.
    """
    if reference == settings.name_or_path and settings.revision is None:
        raise InputError(
            f"reference.name_or_path: {reference} is the base model itself, so no token would be "
            "better or worse under it. Set a model that was fine-tuned, or leave the field out to "
            "train one on D_ref"
        )
    config, tokenizer = _config(settings), _tokenizer(settings)
    if config is None or tokenizer is None:
        return
    own = settings.model_copy(update={"name_or_path": reference, "revision": None})
    adapter = small_file(reference, ADAPTER_CONFIG)
    if adapter is not None:
        _check_adapter_base(settings, reference, adapter_config(adapter))
        shapes = adapter_shapes(reference)
        if shapes is not None:
            _check_adapter_sizes(settings, config, reference, adapter.parent, shapes)
    else:
        reference_config = _config(own)
        if reference_config is not None:
            _without_weights(own, reference_config)
            _check_reference_sizes(settings, reference, reference_config, tokenizer, max_length)
    found = [small_file(reference, name) for name in TOKENIZER_FILES]
    if adapter is not None and found[0] is not None:
        # Without a configuration next to it, a tokenizer on the Hub is found by its folder alone.
        own = own.model_copy(update={"name_or_path": str(found[0].parent)})
    if any(found):
        other = _tokenizer(own)
        if other is not None:
            _check_same_tokens(settings.name_or_path, tokenizer, reference, other)
    elif adapter is None and Path(reference).is_dir():
        logger.warning(
            "The reference model %s has no tokenizer, so its tokens could not be compared with "
            "those of %s. Its scores mean something only if they are the same",
            reference,
            settings.name_or_path,
        )


def check_adapted_modules(section: str, settings: ModelSettings, lora: LoraSettings) -> None:
    """Refuse names of modules that a new adapter would not find, or could not train.

    Args:
        section: of the recipe, for messages.
        settings: of the base model.
        lora: the adapter.

    Raises:
        InputError: the model has no such module, or the adapter is on its output head.
    """
    config = _config(settings)
    if config is None:
        return
    model = _without_weights(settings, config)
    names = [name for name, _ in model.named_modules() if name]
    targets = [] if lora.target_modules == "all-linear" else lora.target_modules
    for field, wanted in (("target_modules", targets), ("modules_to_save", lora.modules_to_save)):
        for module in wanted:
            if not any(name == module or name.endswith(f".{module}") for name in names):
                known = sorted({name.rpartition(".")[2] for name in names} - _NUMBERS)
                raise InputError(
                    f"{section}.lora.{field}: {settings.name_or_path} has no module {module}. "
                    f"It has: {', '.join(known)}"
                )
    head = next((n for n, m in model.named_modules() if m is model.get_output_embeddings()), "")
    if head and any(head == module or head.endswith(f".{module}") for module in targets):
        # The loss is computed from the weights of the head alone.
        raise InputError(
            f"{section}.lora.target_modules: an adapter on the output head {head} would not be "
            f"trained. Remove it, and train the whole head with {section}.lora.modules_to_save"
        )
    from peft import get_peft_model

    problem = f"{section}.lora: this adapter cannot be put on {settings.name_or_path}"
    with reading(problem), torch.device("meta"):
        get_peft_model(model, lora_config(lora))


def _without_weights(settings: ModelSettings, config: PretrainedConfig) -> PreTrainedModel:
    """The model without its weights. Those in a folder are compared with the configuration.

    Raises:
        InputError: it is no causal language model, or its weights do not fit.
    """
    model = empty_model(f"{settings.name_or_path}: {CONFIG_NAME}", settings, config)
    return check_headers(settings) if Path(settings.name_or_path).is_dir() else model


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
    name = settings.name_or_path
    if small_file(name, GENERATION_CONFIG_NAME, settings.revision) is None:
        # Without a file, transformers makes one from the fields of config.json.
        generation = GenerationConfig.from_model_config(config)
    else:
        with reading(f"{name}: {GENERATION_CONFIG_NAME} cannot be read", _REMOVE):
            generation = GenerationConfig.from_pretrained(
                name, revision=settings.revision or "main"
            )
        size = config.get_text_config().vocab_size
        check_token_ids(f"{name}: {GENERATION_CONFIG_NAME}", generation, size)
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


def _check_adapter_sizes(
    settings: ModelSettings, config: PretrainedConfig, reference: str, folder: Path, saved: Shapes
) -> None:
    """Refuse an adapter whose weights the base model has no place for.

    Args:
        reference: the adapter, for messages.
        folder: of its configuration.
        saved: shapes of its weights.
    """
    adapted = _adapted(settings, config, reference, folder)
    needed = saved_shapes(adapted)
    base = settings.name_or_path
    other = (
        "Set the model that the adapter was trained on in model.name_or_path, or another reference"
    )
    for name, shape in saved.items():
        if name in needed and needed[name] != shape:
            raise InputError(
                f"reference.name_or_path: the adapter {reference} has {name.split('.', 2)[-1]} of "
                f"shape {list(shape)}, but {base} needs {list(needed[name])}. {other}"
            )
    layers, needed_layers = _num_layers(saved), _num_layers(needed)
    if layers != needed_layers:
        raise InputError(
            f"reference.name_or_path: the adapter {reference} adapts layers up to number {layers}, "
            f"but on {base} they would go up to {needed_layers}. {other}"
        )
    check_adapter_names(reference, saved, adapted)


def _adapted(
    settings: ModelSettings, config: PretrainedConfig, reference: str, folder: Path
) -> Any:
    """The base model with the places for an adapter's weights, without loading it."""
    from peft import PeftConfig, get_peft_model

    model = _without_weights(settings, config)
    base = settings.name_or_path
    problem = f"reference.name_or_path: the adapter {reference} does not fit {base}"
    with reading(problem), torch.device("meta"):
        peft_config = PeftConfig.from_pretrained(str(folder))
        # Otherwise PEFT warns of a copy of the base model.
        peft_config.base_model_name_or_path = None
        return get_peft_model(model, peft_config)


def _num_layers(shapes: Shapes) -> int:
    """The number of the last layer with an adapter, counted from 1; 0 if no layer has one."""
    found = (re.search(r"\.(\d+)\.", name) for name in shapes if ".lora_" in name)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _check_reference_sizes(
    settings: ModelSettings,
    reference: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    size = config.get_text_config().vocab_size
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > size:
        raise InputError(
            f"reference.name_or_path: the tokenizer of {settings.name_or_path} has {needed:,} "
            f"token ids, but the vocabulary of {reference} has {size:,}. Set a reference with the "
            "tokenizer of the base model"
        )
    positions = max_positions(config)
    if positions is not None and max_length > positions:
        raise InputError(
            f"data.max_length {max_length} is more than the {positions} positions of the reference "
            f"model {reference}. Set data.max_length to {positions} or less, or set another "
            "reference.name_or_path"
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
