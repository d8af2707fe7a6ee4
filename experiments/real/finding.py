"""How well noise is found in one corpus: the detector, every measure, and IFD.

In: a cell and a finished run of its recipe up to `detect`. Out: `Found`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from experiments.known_noise import DetectorVerdict, KnownNoise, judge_detector
from experiments.real.cells import Cell
from forgetting.auditing.audit import Audit
from forgetting.auditing.suspicion import is_suspicion, suspected_parts
from forgetting.method.measures import DETECTOR
from forgetting.rundir.samples import Samples
from forgetting.studies import DetectionScore, detect_noise, measures, read_qualities, read_scores

STAGES = ("prepare", "reference", "probe", "score", "detect", "select")
IFD = "IFD"
"""The mean loss of a response with its prompt over that without (Li et al., arXiv 2308.12032)."""


class Found(BaseModel):
    """The noise of a corpus, and what is found of it."""

    num_records: int
    num_tokens: int
    verdict: DetectorVerdict
    scores: dict[str, dict[str, DetectionScore]]
    """By measure, then by kind of noise and `all`. The detector's are those of the order in which
    an audit lists records, also where it finds nothing."""
    planted_auroc: float | None
    left_out: dict[str, float | None]
    """AUROC of each planted kind by a detector that never saw it."""
    seconds: dict[str, float]
    """By stage."""


def measure_finding(cell: Cell, run: Path, seconds: dict[str, float]) -> Found:
    """Compare what the run says with what is known."""
    noise = KnownNoise.read(run)
    samples, noisy = noise.samples, noise.noisy
    qualities = read_qualities(run, measures(cell.reference))
    posterior = 1 - qualities[DETECTOR]
    audit = Audit(run.parent)
    if is_suspicion(audit):
        # No token is bad, so no order follows from the posterior. An audit shows this one.
        suspected = [part.posterior for part in suspected_parts(audit)]
        qualities[DETECTOR] = 1 - np.concatenate(suspected).astype(np.float64)
    qualities[IFD] = -instruction_difficulty(run, samples)
    findings = audit.findings
    return Found(
        num_records=len(samples),
        num_tokens=noisy.size,
        verdict=judge_detector(posterior, noise, findings),
        scores=detect_noise(qualities, noisy, noise.kinds),
        planted_auroc=None if findings.report is None else findings.report.auroc,
        left_out={kind.kind: kind.auroc_left_out for kind in findings.kinds},
        seconds=seconds,
    )


def instruction_difficulty(run: Path, samples: Samples) -> NDArray[np.float64]:
    """IFD of each response, repeated for its tokens; shape (response tokens,)."""
    scores = read_scores(run, ["base_log_probs", "base_empty_log_probs"])
    starts = samples.response_starts[:-1]
    with_prompt, without = (-np.add.reduceat(s.astype(np.float64), starts) for s in scores.values())
    return samples.per_response_token(with_prompt / without)
