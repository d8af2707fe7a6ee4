"""What the detector found in D_train: a summary, and the posterior of every response token.

`PosteriorWriter` and `DetectorSummary.save` write it. `read_findings` reads the summary,
`posterior_parts` the posterior and the likely kind of each token, some samples at a time, and
`heldout_posterior` that of the held-out samples. All refuse what was found in other tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.method.classifiers import SMALLEST_AUROC
from forgetting.rundir import layout
from forgetting.rundir.samples import (
    ResponseWriter,
    check_fingerprint,
    list_column,
    require_fingerprint,
    rows_in_parts,
)
from forgetting.rundir.storage import StageSummary

AGAIN = "Detect again with `forgetting detect`"


@dataclass(frozen=True)
class ShareRange:
    """A share, and its 90 % bootstrap interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class KindFinding:
    """One kind of planted noise: how well it is found, and how much of the corpus looks like it."""

    kind: str
    """Name of the corruption."""
    words: str
    """What is wrong with such a token, for people."""
    num_copies: int
    num_tokens: int
    """Planted tokens."""
    auroc: float | None
    """Against clean tokens; None if there are too few of its tokens."""
    recall: float | None
    """Share of its tokens with a posterior of at least 0.5 among the copies."""
    auroc_left_out: float | None
    """As `auroc`, by a detector that never saw this kind."""
    share: float | None
    """Estimated share of D_train's response tokens; None if nothing was learned."""
    precision: float | None = None
    """Share of planted noise, of any kind, among the tokens of the copies that have a posterior of
    at least 0.5 and look most like this kind; None if there are fewer than 10 of them."""


@dataclass(frozen=True)
class CalibrationBin:
    """Tokens of the copies whose posteriors are close together."""

    posterior: float
    """Mean posterior."""
    share_planted: float
    num_tokens: float
    """A token counts as much as it is clean, or 1 if noise was planted there."""


@dataclass(frozen=True)
class ProbeReport:
    """How well planted noise is found, by detectors that have not seen the record."""

    num_tokens: int
    """Response tokens of all copies."""
    share_planted: float
    auroc: float
    average_precision: float
    precision: float | None
    """At a posterior of 0.5; None if no token reaches it."""
    recall: float
    calibration_error: float
    calibration: list[CalibrationBin]
    auroc_without_reference: float | None
    """The same by the base model's passes alone; None if there are no others."""
    average_precision_without_reference: float | None


@dataclass(frozen=True)
class SourceFinding:
    """The samples of one source."""

    source: str
    num_samples: int
    num_tokens: int
    """Response tokens."""
    num_bad_tokens: float
    """Sum of the posteriors."""
    num_bad_samples: int
    """Samples with a token whose posterior is at least 0.5."""


class DetectorSummary(StageSummary):
    """The verdict on D_train, and what it rests on."""

    fingerprint: str
    """Fingerprint of D_train."""
    found: bool
    """Whether noise was found that is worth acting on. If not, every posterior is 0."""
    verdict: str
    """The verdict in words; if nothing was found, with the reason."""
    passes: list[str]
    """Forward passes that the detector looked at."""
    num_copies: int
    num_clean_copies: int
    report: ProbeReport | None
    """None if nothing could be learned from the copies."""
    kinds: list[KindFinding]
    """The order of the numbers in the column `kind` of the posterior."""
    tokens: ShareRange | None
    """Estimated share of bad tokens in D_train; None if nothing could be learned."""
    samples: ShareRange | None
    """Estimated share of samples with a token whose posterior is at least 0.5."""
    by_source: list[SourceFinding]

    @property
    def is_measured(self) -> bool:
        """Whether planted noise is told well enough for the shares to say something: those of a
        detector that guesses are 0 for a corpus of any quality."""
        has_shares = self.tokens is not None and self.samples is not None
        return has_shares and self.report is not None and self.report.auroc >= SMALLEST_AUROC

    @classmethod
    def stage(cls) -> str:
        """The stage that writes it."""
        return "detect"


def has_findings(run: Path) -> bool:
    """Whether the detector has run, even if it found nothing."""
    return layout.summary_file(layout.detector_dir(run)).is_file()


def read_findings(run: Path, fingerprint: str) -> DetectorSummary:
    """The summary of what the detector found.

    Args:
        fingerprint: of D_train.

    Raises:
        InputError: the summary is missing, damaged, or belongs to other tokens.
    """
    folder = layout.detector_dir(run)
    summary = DetectorSummary.load(folder)
    require_fingerprint(layout.summary_file(folder), summary.fingerprint, fingerprint, AGAIN)
    return summary


class PosteriorWriter(ResponseWriter):
    """Writes the posterior and the likely kind of response tokens, part by part.

    Args:
        file: the Parquet file, see `layout.posterior_file` and `layout.heldout_posterior_file`.
        fingerprint: of the samples.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        super().__init__(file, fingerprint, {"posterior": pa.float32(), "kind": pa.int8()})

    def write(
        self,
        sample_ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        posterior: NDArray[np.float32],
        kind: NDArray[np.int8],
    ) -> None:
        """Write a row group.

        Args:
            sample_ids: shape (samples,).
            lengths: response tokens of each sample, shape (samples,).
            posterior: shape (response tokens of these samples,).
            kind: place in `DetectorSummary.kinds` of the kind that a token is if it is bad, or -1;
                the same shape.
        """
        self.write_group(sample_ids, np.r_[0, np.cumsum(lengths)], posterior, kind)


@dataclass(frozen=True)
class PosteriorPart:
    """Some consecutive samples."""

    sample_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Response tokens of each sample, shape (samples,)."""
    posterior: NDArray[np.float32]
    """Probability that a token is bad, 0 everywhere if nothing was found; shape (response tokens
    of these samples,)."""
    kind: NDArray[np.int8]
    """Place in `DetectorSummary.kinds` of the kind that a token is if it is bad, or -1."""


def posterior_parts(
    run: Path, fingerprint: str, sizes: Iterable[int] | None = None
) -> Iterator[PosteriorPart]:
    """The posterior of D_train's response tokens in order, in bounded memory.

    Args:
        fingerprint: of D_train.
        sizes: samples of each part; default: parts of at most 1,000.

    Raises:
        InputError: the posterior is missing or damaged, or belongs to other tokens.
    """
    yield from _parts(layout.posterior_file(layout.detector_dir(run)), fingerprint, sizes)


def heldout_posterior(run: Path, fingerprint: str) -> PosteriorPart | None:
    """The posterior of the response tokens of all held-out samples; None if there is none.

    Args:
        fingerprint: of the held-out samples.

    Raises:
        InputError: it is damaged, or belongs to other tokens.
    """
    file = layout.heldout_posterior_file(layout.detector_dir(run))
    if not file.is_file():
        return None
    parts = list(_parts(file, fingerprint, None))
    return PosteriorPart(
        np.concatenate([part.sample_ids for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.posterior for part in parts]),
        np.concatenate([part.kind for part in parts]),
    )


def require_lengths(file: Path, found: NDArray[np.int64], expected: NDArray[np.int64]) -> None:
    """Refuse a posterior that does not have one value for each response token.

    Args:
        file: of the posterior, see `layout.posterior_file` and `layout.heldout_posterior_file`.
        found: values of each sample, shape (samples,).
        expected: response tokens of each sample, shape (samples,).

    Raises:
        InputError: they differ.
    """
    if not np.array_equal(found, expected):
        raise InputError(f"{file} does not hold one posterior for each response token. {AGAIN}")


def _parts(file: Path, fingerprint: str, sizes: Iterable[int] | None) -> Iterator[PosteriorPart]:
    check_fingerprint(file, fingerprint)
    for part in rows_in_parts(file, ["sample_id", "posterior", "kind"], sizes):
        posterior, starts = list_column(part, "posterior")
        kind, kind_starts = list_column(part, "kind")
        in_range = np.isfinite(posterior).all() and not ((posterior < 0) | (posterior > 1)).any()
        if not in_range or not np.array_equal(starts, kind_starts):
            raise InputError(f"{file} does not hold one probability for each token. {AGAIN}")
        yield PosteriorPart(part["sample_id"].to_numpy(), np.diff(starts), posterior, kind)
