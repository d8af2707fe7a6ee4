"""What training on a corpus with noise gives: losses on clean held-out responses, and benchmarks.

In: a finished run. Out: `Trained`. Every model is compared with `full` on the same samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel

from experiments.known_noise import KnownNoise
from forgetting.method.comparison import paired_difference
from forgetting.report.verdict import run_verdict
from forgetting.rundir import layout
from forgetting.rundir.heldout_losses import (
    read_heldout_hits,
    read_heldout_losses,
    sums_of_samples,
)
from forgetting.rundir.reader import RunReader

FULL = "full"


class Gap(BaseModel):
    """A mean, and its difference from that of `full` with a 90 % interval; None for `full`."""

    mean: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Score(BaseModel):
    """A benchmark's metric."""

    value: float
    stderr: float | None


class Model(BaseModel):
    """What one model makes of the clean held-out responses and of the benchmarks."""

    loss: Gap
    """Mean over the response tokens, in nats."""
    accuracy: Gap
    """Share of the response tokens that greedy decoding gives."""
    tasks: dict[str, Score]
    losses: list[tuple[int, float]]
    """Training loss by step."""


class Trained(BaseModel):
    """The models of a run."""

    num_clean: int
    """Held-out samples without noise, on which the models are measured."""
    models: dict[str, Model]
    advised: str | None
    """The model that the report's verdict names; it does not know which held-out tokens are
    noise."""
    found: bool | None
    """Whether the detector found noise; None without a detector."""
    seconds: dict[str, float]
    """By stage."""


def measure_training(run: Path, seconds: dict[str, float]) -> Trained:
    """Compare the models of a run."""
    noise = KnownNoise.read(run, "heldout")
    samples, is_clean = noise.samples, noise.is_clean
    weights = samples.per_response_token(is_clean).astype(np.float64)
    totals = sums_of_samples(samples, weights)
    reader = RunReader(run)
    assert reader.recipe is not None
    names = [layout.BASE, *reader.recipe.variants]
    folders = {name: layout.evaluation_dir(run, name) for name in names}
    losses = {n: read_heldout_losses(folder, samples, weights) for n, folder in folders.items()}
    hits = {n: read_heldout_hits(folder, samples, weights) for n, folder in folders.items()}

    def gap(sums: dict[str, np.ndarray | None], name: str) -> Gap:
        own, full = sums[name], sums[FULL]
        assert own is not None
        assert full is not None
        mean = float(own.sum() / totals.sum())
        if name == FULL:
            return Gap(mean=mean)
        difference = paired_difference(own, full, totals)
        return Gap(mean=mean, difference=difference.value, low=difference.low, high=difference.high)

    verdict = run_verdict(reader)
    return Trained(
        num_clean=int(is_clean.sum()),
        models={
            name: Model(
                loss=gap(losses, name),
                accuracy=gap(hits, name),
                tasks=benchmarks(reader, name),
                losses=training_losses(reader, name),
            )
            for name in names
        },
        advised=None if verdict is None else verdict.model,
        found=None if reader.findings is None else reader.findings.found,
        seconds=seconds,
    )


def benchmarks(run: RunReader, name: str) -> dict[str, Score]:
    """Accuracy of a model by benchmark."""
    return {
        each.task: Score(value=each.metrics["acc"].value, stderr=each.metrics["acc"].stderr)
        for each in run.evaluations
        if each.variant == name and "acc" in each.metrics
    }


def training_losses(run: RunReader, name: str) -> list[tuple[int, float]]:
    """The training loss of a model by step; empty for the base."""
    curve = run.curves.get(name)
    if curve is None:
        return []
    steps = curve.steps.astype(int).tolist()
    return list(zip(steps, curve.positive_loss.tolist(), strict=True))
