"""Files of adapters, in a folder or on the Hub: whether there are any, and what they say.

Input: a folder or an id on the Hub. Output: the configuration and the shapes of the weights. Reads
headers, not weights. Files on the Hub are read from its cache on this machine if they are there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, file_exists, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME

from forgetting.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

Shapes = dict[str, tuple[int, ...]]
"""Shapes of tensors by their names."""


def is_adapter(path: Path | str) -> bool:
    """Whether a folder or Hub id holds an adapter rather than whole weights.

    Raises:
        InputError: it is not a folder, and the Hub cannot be asked.
    """
    if Path(path).is_dir():
        return (Path(path) / ADAPTER_CONFIG).is_file()
    if cached(path, ADAPTER_CONFIG) is not None:
        return True
    try:
        return file_exists(str(path), ADAPTER_CONFIG)
    # The client passes on any error of the network or of the Hub.
    except Exception as error:
        if cached(path, CONFIG_NAME) is not None:
            return False
        raise InputError(f"{path} is not a folder, and the Hub cannot be asked: {error}") from error


def small_file(path: Path | str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model or an adapter; None if there is none, or if the Hub cannot be asked.

    A file from the Hub is in a folder that is named after its commit.
    """
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(str(path), name, revision=revision))
    except (OSError, ValueError):
        return None


def adapter_config(file: Path) -> dict[str, Any]:
    """What the configuration of an adapter says.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a valid adapter configuration: {error}") from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(base, str | None):
        raise InputError(
            f"{file} is not a valid adapter configuration: expected an object whose "
            "base_model_name_or_path is a text"
        )
    return config


def adapter_shapes(path: Path | str) -> Shapes | None:
    """The shapes of an adapter's weights; None if the Hub cannot be asked.

    Raises:
        InputError: there are no weights in safetensors form, or they are damaged.
    """
    missing = f"{path} holds no safetensors adapter"
    file = Path(path) / ADAPTER_WEIGHTS if Path(path).is_dir() else cached(path, ADAPTER_WEIGHTS)
    if file is not None:
        if not file.is_file():
            raise InputError(missing)
        return header_shapes(file)
    try:
        header = HfApi().parse_safetensors_file_metadata(str(path), ADAPTER_WEIGHTS)
    except RemoteEntryNotFoundError as error:
        raise InputError(missing) from error
    # The client passes on any error of the network or of the Hub.
    except Exception:
        return None
    return {name: tuple(tensor.shape) for name, tensor in header.tensors.items()}


def saved_shapes(adapted: Any) -> Shapes:
    """The shapes of all weights of a model with one adapter, by the names that PEFT saves."""
    form = re.compile(r"\.(modules_to_save\.default|default)(?=\.|$)")
    return {form.sub("", name): tuple(v.shape) for name, v in adapted.state_dict().items()}


def header_shapes(file: Path) -> Shapes:
    """The shapes in a safetensors file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}") from error


def cached(path: Path | str, name: str) -> Path | None:
    """A file of a repository on the Hub that is on this machine already; None if it is not."""
    file = try_to_load_from_cache(str(path), name)
    return Path(file) if isinstance(file, str) else None
