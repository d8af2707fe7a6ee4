"""Base models, tokenizers and adapters.

Goes in: the model settings of a recipe. Comes out: transformers and PEFT objects on a device.
Weights are read from safetensors only. Knows nothing of data or of what the model is used for.
"""

from __future__ import annotations

import gc
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
from safetensors import SafetensorError
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

from forgetting.config import LoraSettings, ModelSettings
from forgetting.errors import InputError
from forgetting.rundir.files import file_sha256

ADAPTER_CONFIG = "adapter_config.json"


def pick_device() -> torch.device:
    """The accelerator of this machine, else the CPU."""
    if torch.accelerator.is_available():
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    return torch.device("cpu")


def pick_dtype(settings: ModelSettings) -> torch.dtype:
    """Of weights and arithmetic. `auto` is bfloat16 on GPUs that compute in it, else float32."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def load_config(settings: ModelSettings) -> PretrainedConfig:
    """The model's configuration, without its weights.

    Raises:
        InputError: there is no such model here or on the hub.
    """
    return _read(settings, "configuration", lambda: AutoConfig.from_pretrained(**_origin(settings)))


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        InputError: there is none, it is not a fast one, or it has no end-of-sequence token.
    """
    tokenizer = _read(
        settings, "tokenizer", lambda: AutoTokenizer.from_pretrained(**_origin(settings))
    )
    if not tokenizer.is_fast:
        raise InputError(
            f"{settings.name_or_path}: its tokenizer has no tokenizer.json, which is needed to "
            "tell which characters a token covers"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{settings.name_or_path}: its tokenizer has no end-of-sequence token, so a model "
            "cannot learn where a response ends. Set `eos_token` in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def decoder(settings: ModelSettings) -> Callable[[Sequence[int]], str]:
    """The tokenizer's way back from token ids to text, special tokens and spaces as they are.

    Raises:
        InputError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(settings)

    def decode(ids: Sequence[int]) -> str:
        return str(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    return decode


def special_token_ids(settings: ModelSettings) -> set[int]:
    """Ids of the tokens that stand for no text: ends, padding, the marks of a chat template.

    Raises:
        InputError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(settings)
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def load_base_model(
    settings: ModelSettings, dtype: torch.dtype, *, in_parts: bool = False
) -> PreTrainedModel:
    """The base model in evaluation mode, on this machine's device.

    Args:
        in_parts: leave it where it was read, for a trainer that spreads it over several
            processes; then only one of them may hold the weights.

    Raises:
        InputError: there are no such weights, or they are not safetensors.
    """
    path = Path(settings.name_or_path)
    if path.is_dir() and not list(path.glob("*.safetensors")):
        raise InputError(
            f"{path} holds no weights in safetensors form. Save the model with "
            "`save_pretrained`, or give another folder in model.name_or_path"
        )
    extra: dict[str, Any] = {"attn_implementation": settings.attn_implementation}
    if settings.quantization is not None:
        extra["quantization_config"] = quantization_config(settings, dtype)
        # Quantised weights are made where they stay.
        extra["device_map"] = {"": pick_device()}

    def read() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(
            **_origin(settings),
            dtype=dtype,
            use_safetensors=True,
            **{key: value for key, value in extra.items() if value is not None},
        )

    if in_parts:
        return _read(settings, "model", read).eval()
    # transformers would read a part of it, or nothing, where training is set up to be in parts.
    unset_hf_deepspeed_config()
    with patch_environment(fsdp_cpu_ram_efficient_loading="false"):
        model = _read(settings, "model", read)
    return (model if settings.quantization else model.to(pick_device())).eval()


def quantization_config(settings: ModelSettings, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How the base weights are kept in fewer bits; arithmetic is in `dtype`.

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


def merge_adapter(settings: ModelSettings, dtype: torch.dtype, path: Path | str) -> PreTrainedModel:
    """The base model with an adapter added to its weights, in `dtype` and no fewer bits.

    Args:
        path: folder of the adapter.
    """
    whole = settings.model_copy(update={"quantization": None})
    return attach_adapter(load_base_model(whole, dtype), path).merge_and_unload()


def attach_adapter(model: PreTrainedModel, path: Path | str) -> Any:
    """The model with a trained LoRA adapter on it, in the model's own type, for inference; the base
    weights are shared, not copied."""
    from peft import PeftModel

    folder = Path(path)
    if folder.is_dir() and not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} holds no adapter in safetensors form")
    # In float32, as for training, its products and the casts around them take as long as the model.
    adapted = PeftModel.from_pretrained(model, str(path), autocast_adapter_dtype=False)
    return adapted.eval()


def fuse_adapter(adapted: Any) -> None:
    """Add an adapter into the weights that it is on, where that loses nothing; it spares its own
    products, for who needs the base no more.

    In half precision or fewer bits it stays apart: rounding the sum would lose most of what was
    trained.
    """
    from peft.tuners.lora import LoraModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = adapted.get_base_model()
    is_exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    # An adapter on weights that embedding and head share would change the other one too.
    ends = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    adapts_ends = any(isinstance(module, BaseTunerLayer) for module in ends)
    if is_exact and isinstance(adapted.base_model, LoraModel) and not adapts_ends:
        adapted.merge_adapter()


def load_variant(settings: ModelSettings, dtype: torch.dtype, path: Path | str) -> Any:
    """A fine-tuned model: an adapter on the base model, or whole weights of its own."""
    if is_adapter(path):
        return attach_adapter(load_base_model(settings, dtype), path)
    own = settings.model_copy(
        update={"name_or_path": str(path), "revision": None, "quantization": None}
    )
    return load_base_model(own, dtype)


class SharedBase:
    """One base model, loaded once and lent to one fine-tuned model after the other.

    An adapter is put on the base and taken off again; whole weights take the base's place, so
    that two models are never in memory together. The caller owns it, and calls `release`.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._base: PreTrainedModel | None = None

    @contextmanager
    def lend(self, path: Path | str | None = None, *, is_last: bool = False) -> Iterator[Any]:
        """The base model, or the fine-tuned one at `path`, for as long as the context is open.

        Args:
            is_last: an adapter may take the base's weights over, as no other loan follows.

        Raises:
            InputError: there are no such weights, or the adapter changes nothing.
        """
        dtype = pick_dtype(self._settings)
        if path is not None and not is_adapter(path):
            self.release()
            yield load_variant(self._settings, dtype, path)
            return
        if self._base is None:
            self._base = load_base_model(self._settings, dtype)
        if path is None:
            yield self._base
            return
        model = attach_adapter(self._base, path)
        try:
            if not is_last and not changes_logits(model):
                raise InputError(
                    f"the adapter in {path} does not change what the model predicts: it was not "
                    "trained (a learning rate or a number of steps too small), or does not fit "
                    "this base model. Nothing was measured"
                )
            if is_last:
                self._base = None
                fuse_adapter(model)
            yield model
        finally:
            if not is_last:
                self._base = model.unload()

    def release(self) -> None:
        """Give the base model's memory back; the next loan loads it again."""
        self._base = None
        gc.collect()


def changes_logits(model: Any) -> bool:
    """Whether a PEFT model's adapter makes any difference to the logits of some tokens."""
    device = next(model.parameters()).device
    ids = torch.arange(min(32, model.config.get_text_config().vocab_size), device=device)[None]
    with torch.inference_mode():
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
    return not torch.equal(tuned, base)


def is_adapter(path: Path | str) -> bool:
    """Whether a folder or hub id holds an adapter rather than whole weights."""
    if Path(path).is_dir():
        return (Path(path) / ADAPTER_CONFIG).is_file()
    from huggingface_hub import file_exists

    try:
        return file_exists(str(path), ADAPTER_CONFIG)
    except Exception as error:
        raise InputError(f"{path} is no folder, and the hub cannot be asked: {error}") from error


def lora_config(settings: LoraSettings) -> Any:
    """The adapter's configuration for PEFT."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )


def max_positions(config: PretrainedConfig) -> int | None:
    """The longest sequence the model has positions for; None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def count_trainable(settings: ModelSettings, lora: LoraSettings | None) -> int | None:
    """Trainable parameters, counted on a model without weights.

    None where the configuration cannot be read and the recipe does not describe it.
    """
    try:
        config = load_config(settings)
    except InputError:
        if settings.architecture is None:
            return None
        config = AutoConfig.for_model(**settings.architecture)
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
        if lora is not None:
            from peft import get_peft_model

            model = get_peft_model(model, lora_config(lora))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def model_fingerprint(settings: ModelSettings) -> dict[str, Any]:
    """What identifies the weights: checksums of local files, or the commit on the hub."""
    path = Path(settings.name_or_path)
    if path.is_dir():
        return {
            file.name: file_sha256(file)
            for file in sorted(path.iterdir())
            if file.suffix in {".json", ".safetensors", ".jinja", ".model"}
        }
    config = load_config(settings)
    return {"id": settings.name_or_path, "commit": getattr(config, "_commit_hash", None)}


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a base model beside its weights; None where nothing is."""

    commit: str | None
    """On the hub."""
    licence: str | None
    """As its own card says."""


def model_facts(settings: ModelSettings) -> ModelFacts:
    """Read a base model's own card; what cannot be read is unknown."""
    path = Path(settings.name_or_path)
    commit = None
    try:
        if path.is_dir():
            card = path / REPOCARD_NAME
        else:
            commit = getattr(load_config(settings), "_commit_hash", None)
            name, revision = settings.name_or_path, settings.revision
            card = Path(hf_hub_download(name, REPOCARD_NAME, revision=revision))
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    # No card, no network, no YAML: the licence is unknown, and no reason to stop.
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


def _read(settings: ModelSettings, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = "that folder" if Path(settings.name_or_path).is_dir() else "here or on the hub"
        raise InputError(
            f"{settings.name_or_path}: no {what} could be read from {where}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
