"""What a run counted and logged: its data, its training curves, the cost of its stages."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgetting.rundir import layout
from forgetting.rundir.manifest import Manifest
from forgetting.rundir.storage import StageSummary, readable, write_atomically


@dataclass
class UnusedKey:
    """A key of a source's records or turns that no reader used."""

    count: int
    """How many times it held something."""
    example: str
    """The first value, as JSON, cut to 60 characters."""


@dataclass
class SourceCounts:
    """What became of a source's records."""

    name: str
    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Records that could not be used, by reason."""
    duplicates: int = 0
    near_duplicates: int = 0
    prompt_too_long: int = 0
    cut: int = 0
    """Samples that were cut to `max_length`."""
    used: int = 0
    tokens: int = 0
    response_tokens: int = 0
    context_turns: int = 0
    """Earlier responses without labels, because the chat template drops or changes them."""
    weightless_turns: int = 0
    """Responses without labels, because the data gives them the weight 0."""
    weighted_tokens: int = 0
    """Response tokens with another weight than 1."""
    negatives: int = 0
    """Samples whose response is one to forget."""
    split_tokens: int = 0
    """Tokens of the rendered text that span a prompt and its response, and were split there."""
    other_prompts: int = 0
    """Samples whose prompt differs from the chat template's generation prompt."""
    template_marks: int = 0
    """Records that hold written-out marks of a chat template."""
    unused_keys: dict[str, UnusedKey] = field(default_factory=dict)
    """By path, such as `messages[].weight`."""


@dataclass
class SplitCounts:
    """What a part of the corpus holds."""

    samples: int = 0
    tokens: int = 0
    response_tokens: int = 0
    weighted_tokens: int = 0
    """Response tokens with another weight than 1."""


class DataSummary(StageSummary):
    """Counts of the corpus."""

    max_length: int
    """Tokens after which a sample is cut."""
    sources: list[SourceCounts]
    splits: dict[str, SplitCounts]
    """By the names of `layout.SPLITS`."""
    end_token_ids: list[int]
    """Tokens that end a response or a turn."""
    date: str | None = None
    """Date that the chat template read from the clock, ISO 8601; None if it reads none."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer whose ids the samples hold; None if it was not noted."""

    @classmethod
    def stage(cls) -> str:
        """The stage that writes it."""
        return "prepare"


@dataclass(frozen=True)
class TrainingCurve:
    """What training logged; arrays of shape (logged steps,), NaN where undefined."""

    steps: NDArray[np.float64]
    positive_loss: NDArray[np.float64]
    """Mean loss of the positive tokens, in nats."""
    negative_loss: NDArray[np.float64]
    lam: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    """Before clipping."""
    negative_prob: NDArray[np.float64]
    """Mean probability of the negative tokens."""


def write_training_log(model: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write what training logged, one JSON object per entry, into the folder of the model."""
    lines = (json.dumps(entry) for entry in entries)
    write_atomically(layout.training_log(model), "".join(f"{line}\n" for line in lines))


def continued_log(
    model: Path, num_steps: int, entries: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The log of a model, and after it what a training that began with it logged.

    Args:
        model: folder of the model.
        num_steps: optimizer steps of its training, which are added to those of the entries.
    """
    file = layout.training_log(model)
    with readable(file, "evolve"):
        earlier = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [*earlier, *({**entry, "step": entry["step"] + num_steps} for entry in entries)]


def read_training_log(model: Path) -> TrainingCurve:
    """Read what training logged.

    Raises:
        InputError: the log is missing or damaged.
    """
    file = layout.training_log(model)
    with readable(file, "train"):
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]

        def column(key: str) -> NDArray[np.float64]:
            values = (row.get(key) for row in rows)
            return np.array([math.nan if x is None else float(x) for x in values], dtype=float)

        return TrainingCurve(
            steps=column("step"),
            positive_loss=column("positive_loss"),
            negative_loss=column("negative_loss"),
            lam=column("lambda"),
            grad_norm=column("grad_norm"),
            negative_prob=column("negative_prob"),
        )


@dataclass(frozen=True)
class StageCost:
    """What a finished stage cost."""

    name: str
    """With the variant, such as `train:forgetting`."""
    seconds: float
    num_tokens: int | None
    """Tokens that it read; None if unknown."""
    peak_memory_bytes: int
    peak_device_memory_bytes: int | None
    """None if no accelerator was used."""


def stage_costs(manifest: Manifest) -> list[StageCost]:
    """What the finished stages cost, in the order of the plan. Leaves out `report`, which cannot
    know its own cost."""
    costs = []
    for name, entry in manifest.stages.items():
        if name == "report":
            continue
        tokens = entry.details.get("tokens")
        costs.append(
            StageCost(
                name=name,
                seconds=entry.seconds,
                num_tokens=None if tokens is None else int(tokens),
                peak_memory_bytes=entry.peak_memory_bytes,
                peak_device_memory_bytes=entry.peak_device_memory_bytes,
            )
        )
    return costs
