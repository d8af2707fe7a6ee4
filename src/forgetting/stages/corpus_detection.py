"""Finds the bad tokens of D_train with a detector that is fitted on planted noise.

Input: the scores of D_train, of held-out samples and of copies with planted noise. Output: the
posterior and the likely kind of each response token, on disk, and a summary. Features are computed
for some samples at a time. What grows with the corpus in memory is a few numbers for each sample;
what the detector says about each token waits in a scratch file. Of the detector, only the trees
are stored that explain its judgments; it is fitted again where it is needed, from the copies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forgetting.config import Recipe
from forgetting.method.columns import columns_of
from forgetting.method.corruptions import CLEAN, CORRUPTIONS
from forgetting.method.detector import Detector, Findings, fit_detector
from forgetting.method.detector_report import DetectorReport
from forgetting.method.evidence import CorpusSample, Evidence, Probe, join_evidence
from forgetting.method.shares import Shares
from forgetting.rundir import layout
from forgetting.rundir.explainer_files import save_explainer
from forgetting.rundir.findings import (
    CalibrationBin,
    DetectorSummary,
    KindFinding,
    PosteriorWriter,
    ProbeReport,
    ShareRange,
    SourceFinding,
)
from forgetting.rundir.planted import copies_of, planted_file, scored_copies, token_kinds
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.scores import ScoredCorpus, ScoredSamples
from forgetting.stages.corpus_features import features_of, segment_ends

SAMPLES_LOOKED_AT = 2000
"""Samples of the corpus that the detector is fitted with."""
TOKENS_JUDGED = 1_000_000
"""Response tokens that the share of bad tokens is estimated from; of more, samples are drawn."""
SMALLEST_LENGTH = 3
"""Response tokens that at least half of the samples must have."""
Advance = Callable[[int, str], None]


@dataclass(frozen=True)
class Copies:
    """The copies with planted noise."""

    probe: Probe
    kind_of_copy: list[str]
    """Kind of each copy, `clean` if nothing was planted."""


def read_copies(recipe: Recipe, run: Path, fingerprint: str, ends: NDArray[np.bool_]) -> Copies:
    """The copies of a run as the detector sees them.

    Args:
        fingerprint: of D_train.
        ends: see `segment_ends`.

    Raises:
        InputError: the copies or their scores are missing or damaged, or belong to other tokens.
    """
    passes = recipe.detector_passes
    samples = planted_file(layout.probe_dir(run), fingerprint)
    if not len(samples):
        nothing, none = np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
        return Copies(Probe(nothing, (), np.zeros(0, str), none, none), [])
    scored = scored_copies(run, fingerprint)
    features, lengths, kinds = [], [], []
    kind_of_copy: list[str] = []
    names: tuple[str, ...] = ()
    columns = ["labels", "noise", "noise_kind"]
    for shard in scored.scores(columns_of(passes), columns):
        kinds.append(token_kinds(shard.samples))
        kind_of_copy += [kind or CLEAN for kind in shard.samples["noise_kind"].to_pylist()]
        lengths.append(shard.lengths)
        for part in features_of(shard, passes, ends):
            features.append(part.features)
            names = part.names
    probe = Probe(
        np.concatenate(features),
        names,
        np.concatenate(kinds),
        np.concatenate(lengths),
        copies_of(samples),
    )
    return Copies(probe, kind_of_copy)


def sample_corpus(recipe: Recipe, corpus: ScoredCorpus, ends: NDArray[np.bool_]) -> CorpusSample:
    """The samples of the first shards, enough to see whether a corpus holds noise.

    Args:
        ends: as in `read_copies`.
    """
    passes = recipe.detector_passes
    features, lengths, records = [], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    parts = (
        (shard, part)
        for shard in corpus.scores(columns_of(passes), ["labels"])
        for part in features_of(shard, passes, ends)
    )
    num_left = SAMPLES_LOOKED_AT
    for shard, part in parts:
        start = part.samples.start
        own = slice(start, min(part.samples.stop, start + num_left))
        lengths.append(shard.lengths[own])
        records.append(shard.sample_ids[own])
        features.append(part.features[: int(shard.lengths[own].sum())])
        num_left -= own.stop - start
        if not num_left:
            break
    every = np.concatenate(features) if features else np.zeros((0, 0), np.float32)
    return CorpusSample(every, np.concatenate(lengths), np.concatenate(records))


class WeighedCorpus:
    """What a detector says about D_train's response tokens, on disk.

    Args:
        path: scratch file, written over.
        advance: called with the number of samples done since the last call.
        ends: as in `read_copies`.
    """

    def __init__(
        self,
        recipe: Recipe,
        corpus: ScoredCorpus,
        detector: Detector,
        path: Path,
        advance: Advance,
        ends: NDArray[np.bool_],
    ) -> None:
        self._path = path
        self._num_kinds = len(detector.kinds)
        passes = recipe.detector_passes
        lengths, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        self.sources: list[str] = []
        """Source of each sample."""
        with path.open("wb") as file:
            for shard in corpus.scores(columns_of(passes), ["labels", "source"]):
                for part in features_of(shard, passes, ends):
                    own = shard.lengths[part.samples]
                    evidence = detector.weigh(part.features, own, shard.sample_ids[part.samples])
                    table = np.c_[evidence.log_odds, evidence.kind_probs].astype(np.float32)
                    table.tofile(file)
                    advance(len(own), "")
                lengths.append(shard.lengths)
                ids.append(shard.sample_ids)
                self.sources += shard.samples["source"].to_pylist()
        self.shard_sizes = corpus.shard_sizes
        self.lengths = np.concatenate(lengths)
        """Response tokens of each sample, shape (samples,)."""
        self.sample_ids = np.concatenate(ids)

    def parts(self) -> Iterator[tuple[slice, Evidence]]:
        """Ranges of samples with the evidence on their tokens, as large as the shards."""
        begin = 0
        with self._path.open("rb") as file:
            for size in self.shard_sizes:
                samples = slice(begin, begin + size)
                num_tokens = int(self.lengths[samples].sum())
                table = np.fromfile(file, np.float32, num_tokens * (1 + self._num_kinds))
                table = table.reshape(num_tokens, 1 + self._num_kinds)
                yield samples, Evidence(table[:, 0], table[:, 1:])
                begin += size

    def drawn(self, seed: int) -> tuple[Evidence, NDArray[np.int64]]:
        """Evidence on whole samples of at most `TOKENS_JUDGED` tokens, and their lengths."""
        order = np.random.default_rng(seed).permutation(len(self.lengths))
        is_drawn = np.zeros(len(order), dtype=bool)
        is_drawn[order[np.cumsum(self.lengths[order]) <= TOKENS_JUDGED]] = True
        parts = []
        for samples, evidence in self.parts():
            tokens = np.repeat(is_drawn[samples], self.lengths[samples])
            parts.append(Evidence(evidence.log_odds[tokens], evidence.kind_probs[tokens]))
        return join_evidence(parts), self.lengths[is_drawn]


def detect(
    recipe: Recipe,
    run: Path,
    corpus: ScoredCorpus,
    output: Path,
    scratch: Path,
    advance: Advance = lambda amount, note: None,
) -> DetectorSummary:
    """Fit the detector, and write the posterior of every response token of D_train, of the
    held-out samples if the recipe has them scored, and the trees that explain it.

    Args:
        corpus: D_train and its scores.
        output: folder for the posterior.
        scratch: folder for a file of some bytes a token; it stays.
        advance: called with the number of samples done since the last call.

    Returns:
        The summary.

    Raises:
        InputError: scores or copies are missing or damaged, or belong to other tokens.
    """
    ends = segment_ends(recipe.model)
    copies = read_copies(recipe, run, corpus.fingerprint, ends)
    some = sample_corpus(recipe, corpus, ends)
    detector = fit_detector(copies.probe, recipe.seed, corpus=some)
    weighed = WeighedCorpus(recipe, corpus, detector, scratch / "evidence.bin", advance, ends)
    detector.problem = _too_short(weighed.lengths) or detector.problem
    findings = detector.judge(*weighed.drawn(recipe.seed), seed=recipe.seed)
    by_source: dict[str, SourceFinding] = {}
    with PosteriorWriter(layout.posterior_file(output), corpus.fingerprint) as writer:
        for samples, evidence in weighed.parts():
            lengths = weighed.lengths[samples]
            posterior, kind = _judged(findings, evidence)
            writer.write(weighed.sample_ids[samples], lengths, posterior, kind)
            _add(by_source, weighed.sources[samples], lengths, posterior)
    if (explainer := detector.explainer) is not None:
        save_explainer(output, explainer, corpus.fingerprint)
    if recipe.scores_heldout:
        _judge_heldout(recipe, run, detector, findings, output, ends)
    return DetectorSummary(
        fingerprint=corpus.fingerprint,
        found=findings.found,
        verdict=findings.reason,
        passes=recipe.detector_passes,
        num_copies=len(copies.kind_of_copy),
        num_clean_copies=copies.kind_of_copy.count(CLEAN),
        report=_probe_report(recipe, copies.probe, detector.report),
        kinds=_kinds(copies, detector, findings.shares),
        by_source=[by_source[name] for name in sorted(by_source)],
        **_ranges(findings.shares),
    )


def _judge_heldout(
    recipe: Recipe,
    run: Path,
    detector: Detector,
    findings: Findings,
    output: Path,
    ends: NDArray[np.bool_],
) -> None:
    """Write the posterior of the held-out samples. They come from the corpus too, so as many of
    their tokens are bad as of D_train's."""
    file = layout.split_file(layout.data_dir(run), "heldout")
    folder = layout.heldout_scores_dir(layout.scores_dir(run))
    scored = ScoredSamples(file, folder, SampleFile(file).fingerprint, "score")
    target = layout.heldout_posterior_file(output)
    with PosteriorWriter(target, scored.fingerprint) as writer:
        for shard in scored.scores(columns_of(recipe.detector_passes), ["labels"]):
            for part in features_of(shard, recipe.detector_passes, ends):
                ids, lengths = shard.sample_ids[part.samples], shard.lengths[part.samples]
                evidence = detector.weigh(part.features, lengths, ids)
                writer.write(ids, lengths, *_judged(findings, evidence))


def _too_short(lengths: NDArray[np.int64]) -> str | None:
    """Why responses of these lengths cannot be judged."""
    median = float(np.median(lengths[lengths > 0])) if (lengths > 0).any() else 0.0
    if median >= SMALLEST_LENGTH:
        return None
    return (
        f"Half of the responses have at most {median:.0f} tokens, the end token included. "
        f"A token without neighbors says too little: at least {SMALLEST_LENGTH} are needed."
    )


def _judged(findings: Findings, evidence: Evidence) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Posterior and likely kind of some tokens; no token is bad if nothing was found."""
    if not findings.kinds:
        size = len(evidence.log_odds)
        return np.zeros(size, np.float32), np.full(size, -1, np.int8)
    return findings.judge(evidence)


def _add(
    by_source: dict[str, SourceFinding],
    sources: Sequence[str],
    lengths: NDArray[np.int64],
    posterior: NDArray[np.float32],
) -> None:
    """Add some samples to the counts of their sources."""
    ends = np.cumsum(lengths)
    sums = np.r_[0.0, np.cumsum(posterior, dtype=np.float64)]
    marked = np.r_[0, np.cumsum(posterior >= 0.5)]
    bad_tokens = sums[ends] - sums[ends - lengths]
    is_bad = marked[ends] > marked[ends - lengths]
    names = np.asarray(sources, dtype=str)
    for name in np.unique(names).tolist():
        own = names == name
        before = by_source.get(name, SourceFinding(name, 0, 0, 0.0, 0))
        by_source[name] = SourceFinding(
            name,
            before.num_samples + int(own.sum()),
            before.num_tokens + int(lengths[own].sum()),
            before.num_bad_tokens + float(bad_tokens[own].sum()),
            before.num_bad_samples + int(is_bad[own].sum()),
        )


def _probe_report(
    recipe: Recipe, probe: Probe, report: DetectorReport | None
) -> ProbeReport | None:
    if report is None:
        return None
    alone = _without_reference(recipe, probe)
    return ProbeReport(
        num_tokens=report.num_tokens,
        share_planted=report.share_planted,
        auroc=report.auroc,
        average_precision=report.average_precision,
        precision=report.precision,
        recall=report.recall,
        calibration_error=report.calibration_error,
        calibration=[CalibrationBin(*each) for each in report.calibration],
        auroc_without_reference=None if alone is None else alone.auroc,
        average_precision_without_reference=None if alone is None else alone.average_precision,
    )


def _without_reference(recipe: Recipe, probe: Probe) -> DetectorReport | None:
    """What a detector finds that does not see the reference model; None if there is none."""
    is_base = [not re.match(r"reference|influence", name) for name in probe.names]
    if all(is_base):
        return None
    own = Probe(
        probe.features[:, is_base],
        tuple(name for name, keep in zip(probe.names, is_base, strict=True) if keep),
        probe.kinds,
        probe.lengths,
        probe.records,
    )
    return fit_detector(own, recipe.seed, leave_kinds_out=False).report


def _kinds(copies: Copies, detector: Detector, shares: Shares | None) -> list[KindFinding]:
    """The kinds in the detector's order; without a detector, those that were planted."""
    num_copies = Counter(copies.kind_of_copy)
    num_tokens = Counter(copies.probe.kinds.tolist())
    names = detector.kinds or sorted(set(num_copies) - {CLEAN})
    reports = {} if detector.report is None else detector.report.kinds
    found = []
    for place, name in enumerate(names):
        report = reports.get(name)
        found.append(
            KindFinding(
                kind=name,
                words=CORRUPTIONS[name].words,
                num_copies=num_copies[name],
                num_tokens=num_tokens[name],
                auroc=None if report is None else report.auroc,
                recall=None if report is None else report.recall,
                auroc_left_out=None if report is None else report.auroc_left_out,
                share=None if shares is None else shares.by_kind[place],
                precision=None if report is None else report.precision,
            )
        )
    return found


def _ranges(shares: Shares | None) -> dict[str, ShareRange | None]:
    if shares is None:
        return {"tokens": None, "samples": None}
    return {
        "tokens": ShareRange(shares.share, *shares.interval),
        "samples": ShareRange(shares.share_samples, *shares.interval_samples),
    }


def fitted_detector(
    recipe: Recipe, run: Path, fingerprint: str, ends: NDArray[np.bool_]
) -> Detector:
    """The detector of a run, fitted again from its copies: the same as the one that judged.

    Args:
        fingerprint: of D_train.
        ends: as in `read_copies`.

    Raises:
        InputError: as `read_copies`.
    """
    copies = read_copies(recipe, run, fingerprint, ends)
    some = sample_corpus(recipe, ScoredCorpus(run), ends)
    return fit_detector(copies.probe, recipe.seed, corpus=some, leave_kinds_out=False)
