"""The state of a training run on disk, without pickle.

Tensors go to safetensors, everything else to JSON; neither can run code. A checkpoint counts once
its last file, the seal, is there: if a run is killed while it writes a checkpoint, the one before
it counts. Knows nothing of losses or of what is trained.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.storage import (
    checked_text,
    checked_value,
    file_sha256,
    write_atomically,
)

SEAL = layout.SEAL
RANDOM_STATE = "random_state"
OPTIMIZER = "optimizer"


def save_state(state: Any, path: Path) -> None:
    """Write nested dictionaries and lists of tensors and plain values.

    Args:
        state: such as the result of a `state_dict()`; keys are strings or integers.
        path: without suffix; `.safetensors` and `.json` are written.
    """
    tensors: dict[str, Tensor] = {}
    tree = _take_tensors(state, "", tensors)
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(tree))


def load_state(path: Path) -> Any:
    """Read what `save_state` wrote; tensors are on the CPU."""
    tensors = load_file(path.with_suffix(".safetensors"))
    return _put_tensors(json.loads(path.with_suffix(".json").read_text()), tensors)


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        # Pairs, not an object: JSON would turn integer keys into strings.
        return {"dict": [[k, _take_tensors(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_take_tensors(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} (at {name})")


def _put_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _put_tensors(item, tensors) for key, item in value}
    if kind == "list":
        return [_put_tensors(item, tensors) for item in value]
    return value


def random_state() -> dict[str, Any]:
    """The state of every random generator that training uses in this process."""
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = state
    accelerator = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": accelerator,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set every random generator to a state from `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def seal(folder: Path) -> None:
    """Mark a checkpoint as complete: write the checksums of its files, last of all."""
    checksums = {
        file.relative_to(folder).as_posix(): file_sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != SEAL
    }
    write_atomically(folder / SEAL, checked_text(checksums))


def latest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint in a trainer's output folder; None if there is none."""

    def step(path: Path) -> int:
        number = path.name.removeprefix("checkpoint-")
        return int(number) if number.isdigit() else -1

    for path in sorted(folder.glob("checkpoint-*"), key=step, reverse=True):
        if is_whole(path):
            return path
    return None


def check_whole(folder: Path) -> None:
    """Refuse a checkpoint that was not completed, or that was changed since.

    Raises:
        ValueError: the message says which other one there is.
    """
    if is_whole(folder):
        return
    if not folder.is_dir():
        raise ValueError(f"there is no checkpoint {folder}")
    reason = "is not complete" if (folder / SEAL).is_file() else f"has no {SEAL}"
    other = latest_checkpoint(folder.parent)
    advice = f"Resume from {other}" if other else "Train from the start"
    raise ValueError(
        f"{folder} {reason}: its writing was cut short, or another trainer wrote it. {advice}"
    )


def check_resumable(folder: Path) -> None:
    """Refuse a checkpoint that holds a model alone.

    Raises:
        ValueError: it was written with `save_only_model`.
    """
    if not (folder / f"{OPTIMIZER}.json").is_file():
        raise ValueError(
            f"{folder} holds the model without the state of its training (save_only_model), so it "
            "cannot be resumed. Train from the start without save_only_model, or load the model "
            "from the checkpoint and begin a new training with it"
        )


def check_num_processes(checkpoint: Path, count: int) -> None:
    """Refuse a checkpoint that another number of processes wrote.

    Each process draws its own dropout, so the result would be a different one.

    Raises:
        InputError: the message says how many processes to use.
    """
    saved = len(list(checkpoint.glob(f"{RANDOM_STATE}_*.json")))
    if saved != count:
        raise InputError(
            f"{checkpoint} was written by {saved} processes and cannot be resumed reproducibly "
            f"with {count}. Run with --processes {saved}, or remove {checkpoint.parent} to train "
            "from the start"
        )


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is sealed, and its files are as they were then."""
    try:
        checksums = checked_value((folder / SEAL).read_bytes())
        whole = (file_sha256(folder / name) == found for name, found in checksums.items())
        return bool(checksums) and all(whole)
    except (OSError, ValueError):
        return False
