"""Decides which model of a run to use, by the loss on held-out samples.

Input: a run after `evaluate`. Output: the differences to a baseline with their intervals, and
the model that they speak for. If the detector judged the held-out samples, a token counts as much
as it is good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgetting.method.comparison import Difference, paired_difference
from forgetting.method.measures import not_bad
from forgetting.rundir import layout
from forgetting.rundir.findings import heldout_posterior, require_lengths
from forgetting.rundir.heldout_losses import read_heldout_losses, sums_of_samples
from forgetting.rundir.manifest import same_model
from forgetting.rundir.reader import RunReader
from forgetting.rundir.results import Evaluation
from forgetting.rundir.samples import Samples

BASELINE = "full"
SMALLEST_NUM_SAMPLES = 20
"""Held-out samples that a comparison needs: the interval of fewer is too narrow."""


@dataclass(frozen=True)
class Verdict:
    """Which model to use."""

    baseline: str
    """`full`, or the first variant of the recipe."""
    differences: Mapping[str, Difference]
    """Mean loss of every other variant minus that of the baseline, in nats per token; empty if
    there are too few samples. Without variants whose model is that of another."""
    same: Mapping[str, str]
    """Variants whose model is that of an earlier variant, and that variant."""
    num_samples: int
    is_enough: bool
    """Whether the samples suffice for a comparison."""
    found_nothing: bool
    """Whether a detector judged the corpus and found nothing."""
    is_weighted: bool
    """Whether tokens were weighed by the detector's posterior."""

    @property
    def model(self) -> str:
        """The variant to use: of those whose interval is below 0 the one with the lowest loss, or
        else the baseline."""
        better = {name: each.value for name, each in self.differences.items() if each.high < 0}
        return min(better, key=better.__getitem__) if better else self.baseline

    @property
    def runner_up(self) -> str | None:
        """The variant other than the baseline that has the lowest loss; None if there is none."""
        values = {name: each.value for name, each in self.differences.items()}
        return min(values, key=values.__getitem__) if values else None

    def to_dict(self) -> dict[str, object]:
        """The figures as JSON."""
        return {
            "model": self.model,
            "baseline": self.baseline,
            "num_samples": self.num_samples,
            "is_weighted": self.is_weighted,
            "same": dict(self.same),
            "differences": {
                name: {"value": each.value, "low": each.low, "high": each.high}
                for name, each in self.differences.items()
            },
        }


def run_verdict(run: RunReader) -> Verdict | None:
    """Compare the variants of a run.

    Returns:
        None if there are not two variants that were measured on held-out samples, or the baseline
        has no finite loss.

    Raises:
        InputError: an artifact is damaged, or belongs to other tokens.
    """
    file = layout.split_file(layout.data_dir(run.path), "heldout")
    if run.recipe is None or not file.is_file():
        return None
    samples = Samples.read(file)
    posterior = _posterior(run, samples)
    weights = not_bad(posterior)
    losses = {}
    for name, variant in run.recipe.variants.items():
        if variant.selects and variant.selection.by == "known":
            # A ceiling, not a choice: whose noise is known can drop it.
            continue
        found = read_heldout_losses(layout.evaluation_dir(run.path, name), samples, weights)
        if found is not None and np.isfinite(found).all():
            losses[name] = found
    if len(losses) < 2 or (BASELINE in run.recipe.variants and BASELINE not in losses):
        return None
    baseline = BASELINE if BASELINE in losses else next(iter(losses))
    same = {name: other for name in losses if (other := same_model(run.manifest, name))}
    totals = sums_of_samples(samples, weights)
    is_enough = bool(np.count_nonzero(totals) >= SMALLEST_NUM_SAMPLES)
    return Verdict(
        baseline=baseline,
        differences={
            name: paired_difference(own, losses[baseline], totals)
            for name, own in losses.items()
            if is_enough and name != baseline and name not in same
        },
        same=same,
        num_samples=len(samples),
        is_enough=is_enough,
        found_nothing=run.findings is not None and not run.findings.found,
        is_weighted=bool(posterior.any()),
    )


def copies(run: RunReader, evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Evaluated variants whose model is that of another evaluated variant, and that one."""
    measured = list(dict.fromkeys(each.variant for each in evaluations))
    same = {name: same_model(run.manifest, name) for name in measured}
    return {name: other for name, other in same.items() if other is not None and other in measured}


def _posterior(run: RunReader, samples: Samples) -> NDArray[np.float32]:
    """Probability that a response token is bad; 0 if no detector judged them."""
    found = heldout_posterior(run.path, samples.fingerprint)
    if found is None:
        return np.zeros(samples.response_ids.size, np.float32)
    file = layout.heldout_posterior_file(layout.detector_dir(run.path))
    require_lengths(file, found.lengths, samples.num_response_tokens)
    return found.posterior
