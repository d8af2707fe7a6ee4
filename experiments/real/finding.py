"""How well noise is found in one corpus: the detector, every measure, and IFD.

In: a cell and a finished run of its recipe up to `detect`. Out: `Found`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from experiments.real.cells import Cell, measures
from forgetting.rundir import layout
from forgetting.rundir.findings import read_findings
from forgetting.rundir.samples import Samples
from forgetting.studies import DetectionScore, detect_noise, read_qualities
from forgetting.studies.detection import read_scores

STAGES = ("prepare", "reference", "probe", "score", "detect", "select")
IFD = "IFD"
"""The mean loss of a response with its prompt over that without (Li et al., arXiv 2308.12032)."""
BAD = 0.5


class Found(BaseModel):
    """The noise of a corpus, and what is found of it."""

    num_records: int
    num_tokens: int
    true_share: float
    """Share of the response tokens that are noise."""
    scores: dict[str, dict[str, DetectionScore]]
    """By measure, then by kind of noise and `all`."""
    verdict: bool
    """Whether the detector found noise worth acting on."""
    share: float | None
    """Its estimate of the share; None if nothing could be learned."""
    low: float | None
    high: float | None
    marked: float
    """Share of the tokens with a posterior of at least 0.5."""
    precision: float | None
    """Share of those that are noise; None if there are none."""
    recall: float | None
    """Share of the noise among those; None without noise."""
    planted_auroc: float | None
    calibration_error: float | None
    """Expected calibration error on planted noise."""
    left_out: dict[str, float | None]
    """AUROC of each planted kind by a detector that never saw it."""
    seconds: dict[str, float]
    """By stage."""


def measure_finding(cell: Cell, run: Path, seconds: dict[str, float]) -> Found:
    """Compare what the run says with what is known."""
    samples = Samples.read(layout.train_file(run))
    noisy = samples.noise()
    assert noisy is not None
    kinds = np.asarray([kind or "" for kind in samples.table["noise_kind"].to_pylist()])
    qualities = read_qualities(run, measures(cell.reference))
    posterior = 1 - qualities["detector"]
    qualities[IFD] = -instruction_difficulty(run, samples)
    findings = read_findings(run, samples.fingerprint)
    marked = posterior >= BAD
    share, report = findings.tokens, findings.report
    return Found(
        num_records=len(samples),
        num_tokens=noisy.size,
        true_share=float(noisy.mean()),
        scores=detect_noise(qualities, noisy, samples.per_response_token(kinds)),
        verdict=findings.found,
        share=None if share is None else share.share,
        low=None if share is None else share.low,
        high=None if share is None else share.high,
        marked=float(marked.mean()),
        precision=float(noisy[marked].mean()) if marked.any() else None,
        recall=float(marked[noisy].mean()) if noisy.any() else None,
        planted_auroc=None if report is None else report.auroc,
        calibration_error=None if report is None else report.calibration_error,
        left_out={kind.kind: kind.auroc_left_out for kind in findings.kinds},
        seconds=seconds,
    )


def instruction_difficulty(run: Path, samples: Samples) -> NDArray[np.float64]:
    """IFD of each response, repeated for its tokens; shape (response tokens,)."""
    scores = read_scores(run, ["base_log_probs", "base_empty_log_probs"])
    starts = samples.response_starts[:-1]
    with_prompt, without = (-np.add.reduceat(s.astype(np.float64), starts) for s in scores.values())
    return samples.per_response_token(with_prompt / without)
