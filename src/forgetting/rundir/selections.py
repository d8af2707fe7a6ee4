"""The selection of a variant: the polarity of every response token, and a summary.

`PolarityWriter` and `SelectionSummary.save` write it. `selected_parts` reads D_train with the
polarity and the scores, in parts; `read_selection` reads the summary. Both refuse a selection
that was made for other tokens. Training, report, inspector and export all read it here, so what is
shown and exported is what was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import field_validator

from forgetting.errors import InputError
from forgetting.method.measures import MEASURES, Measure
from forgetting.method.metrics import NoiseDetection
from forgetting.method.mixture import Component
from forgetting.method.tally import PolarityCounts
from forgetting.rundir import layout
from forgetting.rundir.samples import (
    ROWS_PER_GROUP,
    ResponseWriter,
    SampleFile,
    Samples,
    check_fingerprint,
    list_column,
    read_table,
    require_fingerprint,
    rows_in_parts,
)
from forgetting.rundir.scores import ScoredCorpus
from forgetting.rundir.storage import StageSummary

AGAIN = "Select again with `forgetting select`"
TOKENS = ("input_ids", "labels")
WEIGHED = (*TOKENS, "weights", "is_negative")
"""Columns of samples that training depends on."""


@dataclass(frozen=True)
class SourceSelection(PolarityCounts):
    """The response tokens of one source."""

    source: str
    threshold: float | None
    """Lowest quality that is learned; None unless each source has its own threshold."""


@dataclass(frozen=True)
class PositionSelection(PolarityCounts):
    """The response tokens at positions `start` to `stop` (not included) of their response."""

    start: int
    stop: int | None
    """None: no end."""


@dataclass(frozen=True)
class QualityHistogram:
    """Response tokens by quality."""

    edges: list[float]
    """One more than bins."""
    counts: list[int]


@dataclass(frozen=True)
class ExtremeSample:
    """A sample whose mean quality is among the lowest or the highest."""

    sample_id: int
    source: str
    mean_quality: float
    num_tokens: int
    """Response tokens."""


@dataclass(frozen=True)
class MixtureCurve:
    """The fitted components at some qualities; all lists have the same length."""

    quality: list[float]
    bad_density: list[float]
    """Times the share of the bad component."""
    good_density: list[float]
    posterior: list[float]
    """Probability of the bad component."""


@dataclass(frozen=True)
class MixtureFit:
    """Two components that were fitted to the quality."""

    weight: float
    """Share of the bad component."""
    bad: Component
    good: Component
    negative_below: float | None
    """None: no token is negative."""
    positive_from: float | None
    """None: every token is positive."""
    curve: MixtureCurve


@dataclass(frozen=True)
class MixtureSummary:
    """The fit, or why there is none."""

    fit: MixtureFit | None
    reason: str | None


@dataclass(frozen=True)
class NoiseKind:
    """Known noise of one kind."""

    kind: str
    num_tokens: int
    recall: float
    """Share of these tokens that is not learned."""


@dataclass(frozen=True)
class KnownNoise(NoiseDetection):
    """How well low quality finds known noise, overall and by kind."""

    by_kind: list[NoiseKind]


class SelectionSummary(StageSummary):
    """How a variant selected its tokens, and what came out."""

    variant: str
    fingerprint: str
    """Fingerprint of D_train."""
    quality: str
    """Name of the measure."""
    granularity: str
    balance: str
    by: str
    threshold_kind: str
    rho: float
    auto_rho: float
    """Share of tokens with quality above 0."""
    forget_rate: float | None
    end_token_ids: list[int]
    """End-of-sequence tokens, which are never negative; empty if the recipe does not keep them."""
    threshold: float | None
    """Lowest quality that is learned; None if no single threshold divides the tokens."""
    num_tokens: int
    """Response tokens of D_train."""
    num_positive: int
    num_negative: int
    num_ignored: int
    by_source: list[SourceSelection]
    by_position: list[PositionSelection]
    histogram: QualityHistogram
    worst: list[ExtremeSample]
    best: list[ExtremeSample]
    mixture: MixtureSummary | None
    noise: KnownNoise | None
    """None unless noise is known for every sample."""

    @classmethod
    def stage(cls) -> str:
        """The stage that writes it."""
        return "select"

    @field_validator("quality")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in MEASURES:
            raise ValueError(f"there is no measure of quality {value!r}")
        return value

    @property
    def measure(self) -> Measure:
        """The measure of quality."""
        return MEASURES[self.quality]

    @property
    def mixture_fit(self) -> MixtureFit | None:
        """The two components; None if they were not asked for or not found."""
        return None if self.mixture is None else self.mixture.fit


def read_selection(run: Path, variant: str, fingerprint: str) -> SelectionSummary:
    """The summary of a variant's selection.

    Args:
        fingerprint: of D_train.

    Raises:
        InputError: the summary is missing, damaged, or belongs to other tokens.
    """
    folder = layout.selection_dir(run, variant)
    summary = SelectionSummary.load(folder)
    require_fingerprint(layout.summary_file(folder), summary.fingerprint, fingerprint, AGAIN)
    return summary


class PolarityWriter(ResponseWriter):
    """Writes the polarity of D_train's response tokens, some samples at a time.

    Args:
        file: the Parquet file, see `layout.polarity_file`.
        fingerprint: of D_train.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        super().__init__(file, fingerprint, {"polarity": pa.int8()})

    def write(
        self, sample_ids: NDArray[np.int64], polarity: NDArray[np.int8], starts: NDArray[np.int64]
    ) -> None:
        """Write a row group.

        Args:
            sample_ids: shape (samples,).
            polarity: shape (response tokens of these samples,).
            starts: sample i has the tokens [starts[i], starts[i + 1]); shape (samples + 1,).
        """
        self.write_group(sample_ids, starts, polarity)


def read_polarity(file: Path, fingerprint: str) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """All polarities of a file of `PolarityWriter`, and the starts of each sample's.

    Raises:
        InputError: the file is missing or damaged, or belongs to other tokens.
    """
    return list_column(read_table(file, fingerprint), "polarity")


@dataclass(frozen=True)
class SelectedPart:
    """Some consecutive samples of D_train."""

    samples: Samples
    polarity: NDArray[np.int8]
    """Shape (response tokens of these samples,): +1 learn, -1 forget, 0 ignore."""
    scores: dict[str, NDArray]
    """By name, each of the shape of `polarity`."""

    def rows(self, begin: int, end: int) -> SelectedPart:
        """Samples `begin` to `end`, not included."""
        starts = self.samples.response_starts
        tokens = slice(starts[begin], starts[end])
        return SelectedPart(
            Samples(self.samples.table.slice(begin, end - begin)),
            self.polarity[tokens],
            {name: values[tokens] for name, values in self.scores.items()},
        )


def own_scores(run: Path, variant: str | None) -> Path | None:
    """The log-probabilities of the reference that a variant has for itself; None if it uses that
    of the run."""
    if variant is None:
        return None
    file = layout.own_scores_file(layout.selection_dir(run, variant))
    return file if file.is_file() else None


def own_polarity(file: Path, sizes: Sequence[int]) -> Iterator[NDArray[np.int8]]:
    """The polarity next to the log-probabilities of a variant's own reference.

    Args:
        file: see `layout.own_scores_file`.
        sizes: samples of each part.
    """
    for part in rows_in_parts(file, ["polarity"], sizes):
        yield list_column(part, "polarity")[0].copy()


def rows_of_parts(parts: Iterable[SelectedPart], rows: range) -> Iterator[SelectedPart]:
    """The given rows of D_train, out of all its parts in order."""
    first = 0
    for part in parts:
        begin, end = max(rows.start - first, 0), min(rows.stop - first, len(part.samples))
        if begin < end:
            yield part.rows(begin, end)
        first += len(part.samples)


def selected_parts(
    run: Path,
    variant: str | None,
    scores: Sequence[str] = (),
    columns: Sequence[str] = TOKENS,
    fingerprint: str | None = None,
) -> Iterator[SelectedPart]:
    """D_train's samples in order, with polarity and scores. Memory is bounded by one part.

    Args:
        run: the run directory.
        variant: whose selection; None: every response token is positive, or ignored in samples
            that the data says to forget.
        scores: columns of the scores. Those of the reference are the variant's own if it has one.
        columns: of the samples, `input_ids` and `labels` among them. `is_negative` is always read.
        fingerprint: of D_train, if the caller knows it; by default it is computed.

    Raises:
        InputError: selection or scores are missing, damaged, or belong to other tokens.
    """
    train = layout.train_file(run)
    columns = list(dict.fromkeys((*columns, "is_negative")))
    if variant is not None and fingerprint is None:
        fingerprint = SampleFile(train).fingerprint
    if scores:
        corpus = ScoredCorpus(run, fingerprint, own_scores(run, variant))
        sizes = corpus.shard_sizes
        found = ((shard.samples, shard.columns) for shard in corpus.scores(scores, columns))
    else:
        sizes = _part_sizes(len(SampleFile(train)))
        found = ((table, {}) for table in rows_in_parts(train, columns, sizes))
    if variant is None:
        for table, values in found:
            samples = Samples(table)
            learned = samples.per_response_token(~samples.is_negative)
            yield SelectedPart(samples, learned.astype(np.int8), values)
        return
    assert fingerprint is not None
    file = layout.polarity_file(layout.selection_dir(run, variant))
    check_fingerprint(file, fingerprint)
    chosen = rows_in_parts(file, ["polarity"], sizes)
    for (table, values), part in zip(found, chosen, strict=True):
        samples = Samples(table)
        polarity, starts = list_column(part, "polarity")
        if not np.array_equal(starts, samples.response_starts):
            raise InputError(f"{file} does not hold one polarity for each response token. {AGAIN}")
        yield SelectedPart(samples, polarity, values)


def _part_sizes(num_samples: int) -> list[int]:
    starts = range(0, num_samples, ROWS_PER_GROUP)
    return [min(ROWS_PER_GROUP, num_samples - start) for start in starts]
