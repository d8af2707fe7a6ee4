"""Samples whose noise is known, and what the detector or a selection makes of that noise.

In: a run directory whose corpus has `noise_spans`. Out: figures that an experiment stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from forgetting.rundir import layout
from forgetting.rundir.findings import DetectorSummary
from forgetting.rundir.heldout_losses import sums_of_samples
from forgetting.rundir.samples import Samples

BAD = 0.5
"""The posterior from which a token counts as marked."""


class DetectorVerdict(BaseModel):
    """What the detector says of D_train, next to what is true."""

    found: bool
    """Whether it found noise worth acting on. If not, every posterior is 0."""
    true_share: float
    """Share of the response tokens that are noise."""
    share: float | None
    """The detector's estimate of it; None if nothing could be learned."""
    low: float | None
    """Lower end of the estimate's 90 % interval."""
    high: float | None
    marked: float
    """Share of the tokens with a posterior of at least 0.5."""
    precision: float | None
    """Share of those that are noise; None if there are none."""
    recall: float | None
    """Share of the noise among those; None without noise."""
    calibration_error: float | None
    """Expected calibration error on planted noise."""


class Negatives(BaseModel):
    """A variant's negative tokens compared with the known noise."""

    share: float
    """Share of all tokens that are negative."""
    share_ignored: float
    """Share of all tokens that are neither negative nor positive."""
    precision: float | None
    """Share of the negative tokens that are noise; None without negatives."""
    recall: float | None
    """Share of the noise that is negative; None without noise."""
    recall_by_kind: dict[str, float]


@dataclass(frozen=True)
class KnownNoise:
    """A split and its noise."""

    samples: Samples
    noisy: NDArray[np.bool_]
    """Which response tokens are noise, shape (response tokens,)."""
    kinds: NDArray
    """The kind of noise of each token's sample, "" for none; same shape."""

    @classmethod
    def read(cls, run: Path, split: str = "train") -> KnownNoise:
        """A split of a prepared run whose noise is known."""
        samples = Samples.read(layout.split_file(layout.data_dir(run), split))
        noisy = samples.noise()
        assert noisy is not None
        kinds = np.asarray([kind or "" for kind in samples.table["noise_kind"].to_pylist()])
        return cls(samples, noisy, samples.per_response_token(kinds))

    @property
    def names(self) -> list[str]:
        """The kinds of noise that occur."""
        return [str(kind) for kind in np.unique(self.kinds[self.noisy])]

    @property
    def is_clean(self) -> NDArray[np.bool_]:
        """Which samples have no noise, shape (samples,)."""
        return sums_of_samples(self.samples, self.noisy) == 0

    def of(self, kind: str) -> NDArray[np.bool_]:
        """Which tokens are noise of a kind, shape (response tokens,)."""
        return self.noisy & (self.kinds == kind)


def judge_detector(
    posterior: NDArray[np.float32], noise: KnownNoise, findings: DetectorSummary
) -> DetectorVerdict:
    """What the detector says, next to what is true.

    Args:
        posterior: of each response token.
    """
    share, report = findings.tokens, findings.report
    found = describe_negatives(np.where(posterior >= BAD, -1, 1).astype(np.int8), noise)
    return DetectorVerdict(
        found=findings.found,
        true_share=float(noise.noisy.mean()),
        share=None if share is None else share.share,
        low=None if share is None else share.low,
        high=None if share is None else share.high,
        marked=found.share,
        precision=found.precision,
        recall=found.recall,
        calibration_error=None if report is None else report.calibration_error,
    )


def describe_negatives(polarity: NDArray[np.int8], noise: KnownNoise) -> Negatives:
    """Compare negative tokens, shape (response tokens,), with the known noise."""
    negative = polarity < 0
    num_found = int((negative & noise.noisy).sum())
    return Negatives(
        share=float(negative.mean()),
        share_ignored=float((polarity == 0).mean()),
        precision=num_found / int(negative.sum()) if negative.any() else None,
        recall=num_found / int(noise.noisy.sum()) if noise.noisy.any() else None,
        recall_by_kind={kind: float(negative[noise.of(kind)].mean()) for kind in noise.names},
    )
