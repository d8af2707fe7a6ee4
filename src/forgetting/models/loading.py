"""Base models, their tokenizers and what is known about them.

Input: the model settings of a recipe. Output: transformers objects on a device. Weights are
read from safetensors only. Knows nothing of data or of what the model is used for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import patch_environment
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import CONFIG_NAME

from forgetting.config import LoraSettings, ModelSettings
from forgetting.errors import InputError
from forgetting.models.adapter_files import ADAPTER_CONFIG, small_file
from forgetting.models.config_values import check_values
from forgetting.models.foreign import reading
from forgetting.models.reported import check_report, first_not_finite
from forgetting.rundir.storage import file_sha256

_UNQUANTIZED = "Set model.quantization to null"
_ARCHITECTURE = "Set model_type and fields of the model's configuration"


def pick_device() -> torch.device:
    """The accelerator of this machine, or the CPU if there is none."""
    if torch.accelerator.is_available():
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    return torch.device("cpu")


def pick_dtype(settings: ModelSettings) -> torch.dtype:
    """Dtype of weights and computation. `auto`: bfloat16 on GPUs that support it, else float32."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16, which is then faster than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def load_config(settings: ModelSettings) -> PretrainedConfig:
    """The model's configuration, without its weights.

    Raises:
        InputError: there is no such model on this machine or on the Hub.
    """
    with _reading(settings, "configuration"):
        config = AutoConfig.from_pretrained(**_origin(settings))
        check_values(f"{settings.name_or_path}: {CONFIG_NAME}", config)
    return config


def described_config(settings: ModelSettings) -> PretrainedConfig | None:
    """The configuration that the recipe describes; None if it describes none.

    Raises:
        InputError: no model can be made from the description.
    """
    if settings.architecture is None:
        return None
    with reading("model.architecture describes no configuration", _ARCHITECTURE):
        config = AutoConfig.for_model(**settings.architecture)
    check_values("model.architecture", config)
    return config


def empty_model(where: str, settings: ModelSettings, config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration, without weights.

    Args:
        where: the configuration is from, for messages.

    Raises:
        InputError: it is no causal language model, or not one that can be used here.
    """
    kind, attention = f"model_type {config.model_type}", settings.attn_implementation
    problem = f"{where} describes no causal language model that can be used ({kind})"

    def make(**options: Any) -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=settings.trust_remote_code, **options
            )

    with reading(problem):
        model = make()
    if attention is not None:
        field = f"model.attn_implementation: {attention} cannot be used on this machine"
        with reading(field, "Set another one, or null"):
            model = make(attn_implementation=attention)
    return model


def check_headers(settings: ModelSettings) -> PreTrainedModel:
    """Compare the weights in a folder with its configuration; reads their names and sizes only.

    Returns:
        The model without weights.

    Raises:
        InputError: as `load_base_model`.
    """
    return _weights(settings, dtype=pick_dtype(settings), device_map="meta")


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        InputError: there is none, it is not a fast tokenizer, or it has no end-of-sequence token.
    """
    with _reading(settings, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**_origin(settings))
        # Some of what its files say is read when it is used.
        tokenizer.decode(tokenizer("a").input_ids)
    if not tokenizer.is_fast:
        raise InputError(
            f"{settings.name_or_path}: the tokenizer has no tokenizer.json, which says which "
            "characters a token covers. Convert it to a fast tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{settings.name_or_path}: the tokenizer has no end-of-sequence token, so the model "
            "cannot learn where a response ends. Set `eos_token` in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def decoder(settings: ModelSettings) -> Callable[[Sequence[int]], str]:
    """A function from token ids to text that keeps special tokens and spaces.

    Raises:
        InputError: see `load_tokenizer`.
    """
    tokenizer = load_tokenizer(settings)

    def decode(ids: Sequence[int]) -> str:
        return str(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    return decode


def special_token_ids(settings: ModelSettings) -> set[int]:
    """Ids of the tokens that are not text: end, padding, the marks of a chat template.

    Raises:
        InputError: see `load_tokenizer`.
    """
    tokenizer = load_tokenizer(settings)
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def load_base_model(
    settings: ModelSettings, dtype: torch.dtype, *, in_parts: bool = False
) -> PreTrainedModel:
    """The base model in evaluation mode, on this machine's device.

    Args:
        in_parts: leave the model where it was read, for a trainer that shards it over several
            processes; only one of them may hold the weights.

    Raises:
        InputError: there are no such weights, they are not safetensors, they are not those that the
            configuration describes, or one is not finite.
    """
    extra: dict[str, Any] = {}
    if settings.quantization is not None:
        extra["quantization_config"] = quantization_config(settings, dtype)
        # Quantized weights cannot be moved: they are made on their device.
        extra["device_map"] = {"": pick_device()}

    if in_parts:
        return _weights(settings, dtype=dtype, **extra).eval()
    # If training is set up for shards, transformers would read only a part, or nothing.
    unset_hf_deepspeed_config()
    with patch_environment(fsdp_cpu_ram_efficient_loading="false"):
        model = _weights(settings, dtype=dtype, **extra)
    model = (model if settings.quantization else model.to(pick_device())).eval()
    if settings.quantization:
        # The kernels of a quantization do not take all sizes of weights on all processors.
        problem = f"model.quantization: {settings.name_or_path} in {settings.quantization} cannot"
        with reading(f"{problem} be computed on this machine", _UNQUANTIZED), torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device))
    if name := first_not_finite(model):
        raise InputError(
            f"{settings.name_or_path}: the weight {name} has values that are not finite numbers. "
            "Save the model again, or set another one"
        )
    return model


def _weights(settings: ModelSettings, **options: Any) -> PreTrainedModel:
    """Load a model, and check that its weights are those of its configuration."""
    path = Path(settings.name_or_path)
    if path.is_dir() and not list(path.glob("*.safetensors")):
        raise InputError(
            f"{path} holds no safetensors weights. Save the model with `save_pretrained`, or set "
            "another folder in model.name_or_path"
        )
    # transformers would not say which sizes differ; quantized weights have others in memory.
    options["ignore_mismatched_sizes"] = "quantization_config" not in options
    # Refused here if need be, with the field.
    load_config(settings)
    with _reading(settings, "model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            **_origin(settings),
            attn_implementation=settings.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        check_report(settings.name_or_path, report)
    return model


def quantization_config(settings: ModelSettings, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How the base weights are quantized; computation is in `dtype`.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise InputError(
            "model.quantization needs bitsandbytes, which is not installed: "
            "pip install 'forgetting[qlora]'"
        )
    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def lora_config(settings: LoraSettings) -> Any:
    """The configuration of a new adapter, for PEFT."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        modules_to_save=settings.modules_to_save or None,
        task_type="CAUSAL_LM",
    )


def max_positions(config: PretrainedConfig) -> int | None:
    """The longest sequence that the model has positions for; None if it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def count_trainable(settings: ModelSettings, lora: LoraSettings | None) -> int | None:
    """Number of trainable parameters, counted on a model without weights.

    None if the configuration cannot be read and the recipe does not describe it.
    """
    try:
        config, where = load_config(settings), f"{settings.name_or_path}: {CONFIG_NAME}"
    except InputError:
        described = described_config(settings)
        if described is None:
            return None
        config, where = described, "model.architecture"
    model: nn.Module = empty_model(where, settings, config)
    if lora is not None:
        from peft import get_peft_model

        with reading(f"{where}: no adapter can be put on this model"), torch.device("meta"):
            model = get_peft_model(model, lora_config(lora))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def model_fingerprint(settings: ModelSettings) -> dict[str, Any]:
    """What identifies a model or an adapter: checksums of local files, or the commit on the Hub."""
    path = Path(settings.name_or_path)
    if path.is_dir():
        return {
            file.name: file_sha256(file)
            for file in sorted(path.iterdir())
            if file.suffix in {".json", ".safetensors", ".jinja", ".model"}
        }
    commit = _hub_commit(settings)
    if commit is None:
        # It says why there is no such model.
        load_config(settings)
    return {"id": settings.name_or_path, "commit": commit}


def _hub_commit(settings: ModelSettings) -> str | None:
    """The commit of a model or an adapter on the Hub; None if the Hub cannot be asked."""
    for name in (CONFIG_NAME, ADAPTER_CONFIG):
        file = small_file(settings.name_or_path, name, settings.revision)
        if file is not None:
            return file.parent.name
    return None


@dataclass(frozen=True)
class ModelFacts:
    """What a base model's repository and card say; None if they do not say it."""

    commit: str | None
    """Commit on the Hub."""
    licence: str | None
    """License on the model card."""


def model_facts(settings: ModelSettings) -> ModelFacts:
    """Read a base model's card. What cannot be read is None."""
    path = Path(settings.name_or_path)
    commit = None
    try:
        if path.is_dir():
            card = path / REPOCARD_NAME
        else:
            commit = _hub_commit(settings)
            name, revision = settings.name_or_path, settings.revision
            card = Path(hf_hub_download(name, REPOCARD_NAME, revision=revision))
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    # Without card, network or valid YAML the license is unknown, which is no reason to stop.
    except (OSError, ValueError, EntryNotFoundError, InputError, yaml.YAMLError):
        return ModelFacts(commit, None)
    licence = data.get("license_name") or data.get("license")
    if not licence:
        return ModelFacts(commit, None)
    text = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
    link = data.get("license_link")
    return ModelFacts(commit, f"{text} ({link})" if link else text)


def _origin(settings: ModelSettings) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": settings.name_or_path,
        "revision": settings.revision or "main",
        "trust_remote_code": settings.trust_remote_code,
    }


@contextmanager
def _reading(settings: ModelSettings, what: str) -> Iterator[None]:
    where = "that folder" if Path(settings.name_or_path).is_dir() else "a folder or the Hub"
    with reading(f"{settings.name_or_path}: no {what} could be read from {where}"):
        yield
