"""Selects the tokens of one variant over a whole corpus. Memory use is one shard.

Input: D_train with its scores, shard by shard, and the settings of a selection. Output: a
Parquet file with the polarity of every response token, and a summary. Quality is computed once
and kept in a scratch file, which is walked as often as the exact cut needs; what grows with the
corpus in memory is a few numbers for each sample. Knows nothing of models or of the recipe's
other sections.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.config import SelectionSettings
from forgetting.errors import InputError
from forgetting.method import MEASURES
from forgetting.method.metrics import NoiseTally
from forgetting.method.mixture import Mixture
from forgetting.method.quantile import ALL
from forgetting.method.selection import (
    Chunk,
    Division,
    divide,
    divide_by_mixture,
    divide_by_posterior,
    mean_quality,
    spare_ends,
)
from forgetting.method.tally import SelectionTally
from forgetting.rundir.samples import (
    list_column,
    negative_column,
    num_response_tokens,
    response_mask,
)
from forgetting.rundir.scores import ScoredCorpus
from forgetting.rundir.selections import (
    ExtremeSample,
    KnownNoise,
    MixtureCurve,
    MixtureFit,
    MixtureSummary,
    NoiseKind,
    PolarityWriter,
    PositionSelection,
    QualityHistogram,
    SelectionSummary,
    SourceSelection,
)
from forgetting.stages.ties import check_ties

NUM_EXTREMES = 20
COLUMNS = ("labels", "noise", "noise_kind")


class MeasuredCorpus:
    """Quality of D_train's response tokens, on disk, and what is known about each sample.

    Args:
        corpus: the scores.
        name: the measure of quality.
        path: scratch file for the quality, written over.

    Raises:
        InputError: as `ScoredCorpus.scores`.
    """

    def __init__(self, corpus: ScoredCorpus, name: str, path: Path) -> None:
        measure = MEASURES[name]
        self._path = path
        self.shard_sizes = corpus.shard_sizes
        """Samples of each shard."""
        ids, lengths, sources = ([np.zeros(0, np.int64)] for _ in range(3))
        negatives = [np.zeros(0, bool)]
        means = [np.zeros(0)]
        number_of: dict[str, int] = {}
        self.low, self.high = np.inf, -np.inf
        """The smallest and the largest quality of a token."""
        num_above_zero = 0
        self.num_ranked = 0
        """Response tokens that are divided by their quality: those of samples to learn."""
        with path.open("wb") as file:
            for shard in corpus.scores(measure.columns, ["source", "is_negative"]):
                scores = (shard.columns[column] for column in measure.columns)
                quality = measure.compute(*scores).astype(np.float32, copy=False)
                quality.tofile(file)
                ids.append(shard.sample_ids)
                lengths.append(shard.lengths)
                sources.append(_numbered(shard.samples["source"], number_of))
                means.append(mean_quality(quality, shard.lengths))
                self.low = min(self.low, float(quality.min(initial=np.inf)))
                self.high = max(self.high, float(quality.max(initial=-np.inf)))
                negatives.append(negative_column(shard.samples))
                is_ranked = np.repeat(~negatives[-1], shard.lengths)
                num_above_zero += int(np.count_nonzero(quality[is_ranked] > 0))
                self.num_ranked += int(np.count_nonzero(is_ranked))
        self.sample_ids = np.concatenate(ids)
        self.lengths = np.concatenate(lengths)
        """Response tokens of each sample, shape (samples,)."""
        self.is_negative = np.concatenate(negatives)
        """Whether the data says that a sample is one to forget, shape (samples,)."""
        self.means = np.concatenate(means)
        """Mean quality of each sample, shape (samples,)."""
        self.source_names = sorted(number_of)
        place = np.argsort(np.argsort(list(number_of)))
        self.sources = place[np.concatenate(sources)]
        """Each sample's place in `source_names`, shape (samples,)."""
        self.num_tokens = int(self.lengths.sum())
        self.share_above_zero = num_above_zero / self.num_ranked if self.num_ranked else 0.0
        """Share of ranked tokens with quality above 0: the rho that `rho: auto` takes."""

    def quality(self) -> Iterator[NDArray[np.float32]]:
        """Quality of all response tokens, one shard at a time."""
        with self._path.open("rb") as file:
            for lengths in self.by_shard(self.lengths):
                yield np.fromfile(file, np.float32, int(lengths.sum()))

    def ranked(self, values: Iterator[NDArray]) -> Iterator[NDArray]:
        """Values of all response tokens without those of samples to forget, by shard."""
        for part, is_forgotten in zip(values, self._forgotten_tokens(), strict=True):
            yield part[~is_forgotten]

    def with_negatives(self, polarities: Iterator[NDArray[np.int8]]) -> Iterator[NDArray[np.int8]]:
        """Polarity of all response tokens from that of the ranked ones, by shard."""
        for polarity, is_forgotten in zip(polarities, self._forgotten_tokens(), strict=True):
            whole = np.full(is_forgotten.size, -1, np.int8)
            whole[~is_forgotten] = polarity
            yield whole

    def _forgotten_tokens(self) -> Iterator[NDArray[np.bool_]]:
        parts = (self.by_shard(self.is_negative), self.by_shard(self.lengths))
        return map(np.repeat, *parts)

    def by_shard(self, of_samples: NDArray) -> Iterator[NDArray]:
        """Values of the samples, one shard at a time."""
        begin = 0
        for size in self.shard_sizes:
            yield of_samples[begin : begin + size]
            begin += size

    def worst_and_best(self, number: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Indices of the samples with the lowest and highest mean quality, most extreme first."""
        order = np.argsort(self.means, kind="stable")
        order = order[self.lengths[order] > 0]
        return order[:number], order[::-1][:number]


def _numbered(names: pa.ChunkedArray, number_of: dict[str, int]) -> NDArray[np.int64]:
    """Numbers for names; new names are added to `number_of` in order of appearance."""
    encoded = names.combine_chunks().dictionary_encode()
    numbers = [
        number_of.setdefault(name, len(number_of)) for name in encoded.dictionary.to_pylist()
    ]
    return np.asarray(numbers, np.int64)[encoded.indices.to_numpy()]


def select_corpus(
    corpus: ScoredCorpus,
    settings: SelectionSettings,
    output: Path,
    *,
    variant: str = "",
    scratch: Path,
    seed: int,
    end_token_ids: Collection[int] = (),
    marks_nothing: bool = False,
    given: Iterator[NDArray[np.int8]] | None = None,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> SelectionSummary:
    """Select, and write the polarity of every response token.

    Samples that the data says to forget are negative whatever the settings, and no threshold
    depends on them.

    Args:
        corpus: D_train and its scores.
        settings: of the selection.
        output: Parquet file to write: sample_id, polarity; a row group for each shard.
        variant: name of the variant, for the summary.
        scratch: file for the quality, four bytes a token; stays.
        seed: of `by: random`.
        end_token_ids: tokens that are positive where they would be negative, or ignored in samples
            that the data says to forget.
        marks_nothing: make every token positive, because nothing is known about their quality.
        given: polarity of all response tokens, one shard at a time, if it is decided already.
        advance: called with the number of samples done since the last call.

    Returns:
        The summary.

    Raises:
        InputError: scores and samples do not fit together, or a score is not finite.
    """
    measured = MeasuredCorpus(corpus, settings.quality, scratch)
    if marks_nothing:
        division, mixture, polarities = _everything(settings, measured)
    elif given is not None:
        division, mixture, polarities = _undivided(settings, measured), None, given
    elif settings.by == "known":
        division, mixture, polarities = _known(settings, measured, corpus)
    else:
        division, mixture, polarities = _choose(settings, measured, seed)
    tally = SelectionTally(len(measured.source_names), measured.low, measured.high)
    noise: NoiseTally | None = NoiseTally()
    of_samples = (
        measured.sample_ids,
        measured.lengths,
        measured.sources,
        measured.is_negative,
    )
    walk = zip(
        corpus.samples(COLUMNS),
        measured.quality(),
        polarities,
        *map(measured.by_shard, of_samples),
        strict=True,
    )
    with PolarityWriter(output, corpus.fingerprint) as writer:
        for part, quality, polarity, sample_ids, lengths, sources, is_negative in walk:
            response_ids, starts = _responses(part)
            spare_ends(polarity, response_ids, np.repeat(is_negative, lengths), end_token_ids)
            writer.write(sample_ids, polarity, starts)
            tally.add(quality, polarity, lengths, sources)
            # The noise must be known for every sample, or it counts as unknown.
            if noise is not None and part["noise"].null_count == 0:
                _add_noise(noise, part, lengths, quality, polarity)
            else:
                noise = None
            advance(part.num_rows, "")
    return SelectionSummary(
        variant=variant,
        fingerprint=corpus.fingerprint,
        end_token_ids=sorted(end_token_ids),
        **_described(settings, measured, division, tally),
        **_counted(settings, measured, division, tally),
        mixture=_mixture_summary(mixture, settings.negative_from),
        noise=_noise_summary(noise) if noise is not None and measured.num_tokens else None,
    )


def _choose(
    settings: SelectionSettings, measured: MeasuredCorpus, seed: int
) -> tuple[Division, Mixture | str | None, Iterator[NDArray[np.int8]]]:
    """Divide the tokens by the settings.

    Returns:
        The division, the mixture or the reason why it could not be fitted (None if the settings
        need none), and the polarity of all response tokens, one shard at a time.
    """
    is_random = settings.by == "random"
    by_sample = settings.granularity == "sequence"
    is_balanced = settings.balance == "source"

    def values() -> Iterator[NDArray]:
        if not is_random:
            yield from measured.quality()
            return
        generator = np.random.default_rng(seed)
        for lengths in measured.by_shard(measured.lengths):
            yield generator.random(int(lengths.sum()))

    def tokens() -> Iterator[Chunk]:
        lengths, sources = measured.by_shard(measured.lengths), measured.by_shard(measured.sources)
        groups = measured.ranked(map(np.repeat, sources, lengths))
        for ranked, group in zip(measured.ranked(values()), groups, strict=True):
            yield ranked, group if is_balanced else None

    @functools.cache
    def whole_samples() -> list[Chunk]:
        parts = zip(values(), measured.by_shard(measured.lengths), strict=True)
        means = np.concatenate([mean_quality(value, lengths) for value, lengths in parts])
        is_ranked = ~measured.is_negative
        return [(means[is_ranked], measured.sources[is_ranked] if is_balanced else None)]

    chunks = whole_samples if by_sample else tokens
    rho, threshold = settings.rho, settings.threshold
    # Random numbers are never below zero, so the quality says how many tokens are positive.
    if is_random and (rho == "auto" or threshold == "zero"):
        rho, threshold = measured.share_above_zero, "quantile"
    mixture: Mixture | str | None = None
    if threshold == "mixture":
        division, mixture = divide_by_mixture(chunks, settings.negative_from)
    elif threshold == "posterior":
        division = divide_by_posterior(settings.negative_from)
    else:
        try:
            division = divide(
                chunks,
                rho,
                forget_rate=settings.forget_rate,
                threshold=threshold,
                num_groups=len(measured.source_names) if is_balanced else 1,
                dtype=np.float64 if by_sample or is_random else np.float32,
            )
        except ValueError as error:
            raise InputError(f"selection: {error}") from error
    if not is_random and threshold in ("quantile", "zero"):
        check_ties(division, "samples" if by_sample else "tokens")
    polarities = division.polarity(chunks())
    if by_sample:
        of_samples = np.full(len(measured.is_negative), -1, np.int8)
        of_samples[~measured.is_negative] = next(polarities)
        parts = measured.by_shard(of_samples), measured.by_shard(measured.lengths)
        return division, mixture, map(np.repeat, *parts)
    return division, mixture, measured.with_negatives(polarities)


def _everything(
    settings: SelectionSettings, measured: MeasuredCorpus
) -> tuple[Division, None, Iterator[NDArray[np.int8]]]:
    """As `_choose`: every ranked token is positive."""
    polarities = (np.ones(len(values), np.int8) for values in measured.ranked(measured.quality()))
    return _undivided(settings, measured), None, measured.with_negatives(polarities)


def _known(
    settings: SelectionSettings, measured: MeasuredCorpus, corpus: ScoredCorpus
) -> tuple[Division, None, Iterator[NDArray[np.int8]]]:
    """As `_choose`: the known noise is negative."""

    def known() -> Iterator[NDArray[np.int8]]:
        for part in corpus.samples(["noise"]):
            if part["noise"].null_count:
                raise InputError(
                    f"selection.by known: {part['noise'].null_count} samples of {corpus.path} do "
                    "not say which of their tokens are noise. Add noise_spans to every record, or "
                    "set selection.by to quality"
                )
            noise, _ = list_column(part, "noise")
            yield np.where(noise.astype(bool), -1, 1).astype(np.int8)

    polarities = measured.ranked(known())
    return _undivided(settings, measured), None, measured.with_negatives(polarities)


def _undivided(settings: SelectionSettings, measured: MeasuredCorpus) -> Division:
    """No quality decides."""
    num_groups = len(measured.source_names) if settings.balance == "source" else 1
    return Division((ALL,) * num_groups, (ALL,) * num_groups)


def _responses(part: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Ids of the response tokens of some samples, and where each sample starts among them."""
    labels, token_starts = list_column(part, "labels")
    mask = response_mask(labels, token_starts)
    return labels[mask], np.r_[0, np.cumsum(num_response_tokens(mask, token_starts))]


def _add_noise(
    noise: NoiseTally,
    part: pa.Table,
    lengths: NDArray[np.int64],
    quality: NDArray,
    polarity: NDArray[np.int8],
) -> None:
    flags, _ = list_column(part, "noise")
    kinds = np.asarray([kind or "" for kind in part["noise_kind"].to_pylist()])
    noise.add(quality, polarity, flags.astype(bool), np.repeat(kinds, lengths))


def _described(
    settings: SelectionSettings, measured: MeasuredCorpus, division: Division, tally: SelectionTally
) -> dict[str, Any]:
    rho = settings.rho
    if settings.threshold in ("mixture", "posterior") or settings.by == "known":
        rho = tally.total.num_positive / max(measured.num_ranked, 1)
    elif rho == "auto" or settings.threshold == "zero":
        rho = measured.share_above_zero
    return {
        "quality": settings.quality,
        "granularity": settings.granularity,
        "balance": settings.balance,
        "by": settings.by,
        "threshold_kind": settings.threshold,
        "rho": rho,
        "auto_rho": measured.share_above_zero,
        "forget_rate": settings.forget_rate,
        "threshold": None
        if settings.balance == "source" or not _cuts_tokens(settings)
        else division.threshold(),
    }


def _cuts_tokens(settings: SelectionSettings) -> bool:
    """Whether tokens are selected by a threshold on their quality."""
    return settings.by == "quality" and settings.granularity == "token"


def _counted(
    settings: SelectionSettings,
    measured: MeasuredCorpus,
    division: Division,
    tally: SelectionTally,
) -> dict[str, Any]:
    has_own = settings.balance == "source" and _cuts_tokens(settings)
    worst, best = measured.worst_and_best(NUM_EXTREMES)
    return {
        **asdict(tally.total),
        "by_source": [
            SourceSelection(
                source=name,
                threshold=division.threshold(number) if has_own else None,
                **asdict(tally.by_source[number]),
            )
            for number, name in enumerate(measured.source_names)
        ],
        "by_position": [
            PositionSelection(start=start, stop=stop, **asdict(counts))
            for start, stop, counts in tally.by_position
        ],
        "histogram": QualityHistogram(tally.edges.tolist(), tally.counts.tolist()),
        "worst": [_sample(measured, index) for index in worst],
        "best": [_sample(measured, index) for index in best],
    }


def _sample(measured: MeasuredCorpus, index: int) -> ExtremeSample:
    return ExtremeSample(
        sample_id=int(measured.sample_ids[index]),
        source=measured.source_names[measured.sources[index]],
        mean_quality=float(measured.means[index]),
        num_tokens=int(measured.lengths[index]),
    )


def _mixture_summary(mixture: Mixture | str | None, posterior: float) -> MixtureSummary | None:
    if mixture is None:
        return None
    if isinstance(mixture, str):
        return MixtureSummary(fit=None, reason=mixture)
    bad, good = mixture.densities()
    fit = MixtureFit(
        weight=mixture.weight,
        bad=mixture.bad,
        good=mixture.good,
        negative_below=_finite(mixture.threshold(posterior)),
        positive_from=_finite(mixture.threshold(0.5)),
        curve=MixtureCurve(
            quality=mixture.centers.tolist(),
            bad_density=bad.tolist(),
            good_density=good.tolist(),
            posterior=mixture.posterior.tolist(),
        ),
    )
    return MixtureSummary(fit=fit, reason=None)


def _finite(value: float) -> float | None:
    """JSON has no infinity: null is a threshold below all values."""
    return value if math.isfinite(value) else None


def _noise_summary(noise: NoiseTally) -> KnownNoise:
    kinds = noise.by_kind.items()
    return KnownNoise(
        **asdict(noise.detection),
        by_kind=[NoiseKind(kind, number, recall) for kind, (number, recall) in kinds],
    )
