"""Learns from planted noise what bad tokens look like, and says which tokens of a corpus are bad.

Input: features of tokens with planted noise (`Probe`), then features of the corpus. Output:
how well the planted noise is found, and for the corpus a posterior for each
token, the likely kind, the share of bad tokens with an interval, and a verdict (`Findings`).
A detector is not stored, apart from the trees that explain its judgments (`Explainer`): the same
probe and seed make the same detector in seconds. Knows nothing of text, models or files.

The copies in the probe come from the corpus itself, so the tokens in which nothing was planted are
as noisy as the corpus. A classifier fitted on them learns that noise as clean. So there is a second
fit, in which an unplanted token counts as much as the first fit finds it clean (out of fold, with
shares of `forgetting.method.shares`). It loses sight of clean tokens that look bad, too: on five
corpora kept for such choices, its average precision was 0.10 below to 0.05 above that of the first.
The mean of both log-odds was at most 0.04 below the better one, so that is what a detector says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.method.calibration import (
    Calibration,
    calibrate,
    fit_calibration,
)
from forgetting.method.classifiers import (
    KIND_TREES,
    NUM_FOLDS,
    SMALLEST_AUROC,
    bin_edges,
    blindness,
    codes_of,
    draw_folds,
    fit_classifier,
    fit_folds,
    left_out_aurocs,
    probs_in_order,
)
from forgetting.method.corruptions import CLEAN
from forgetting.method.detector_report import DetectorReport, auroc_of, describe
from forgetting.method.evidence import CorpusSample, Evidence, Probe
from forgetting.method.explainer import Explainer, Trees, binned
from forgetting.method.presence import (
    LARGEST_P_RECORDS,
    SMALLEST_RECORDS_AUROC,
    Scored,
    is_sure,
    p_of_records,
)
from forgetting.method.shares import (
    Shares,
    WholeShare,
    estimate_shares,
    first_shares,
    kind_scores,
    normalized,
    posteriors,
    prior_odds,
    response_maxima,
    response_means,
    shifted,
    unmarked_noise,
    whole_share,
)

SMALLEST_NUM_SAMPLES = 50
SMALLEST_WHOLE_AUROC = 0.88
"""A detector that tells planted noise less well says nothing about whole responses, unless records
show noise: some clean ones look replaced by chance."""
SMALLEST_MEAN_LENGTH = 6
"""Nor do responses that have fewer tokens on average."""
CLEAR_SHARE = 0.02
"""An estimate below this is no sign of noise, unless whole responses show it."""


@dataclass(frozen=True)
class Findings:
    """What a detector found in a corpus."""

    found: bool
    """Whether noise was found that is worth acting on."""
    reason: str
    """The verdict in words."""
    posterior: NDArray[np.float32]
    """Probability that a token is bad; shape (tokens,)."""
    likely_kind: NDArray[np.int8]
    """Index into `kinds` of the kind that a token would be, were it bad; shape (tokens,)."""
    kinds: tuple[str, ...]
    shares: Shares | None
    """Share of bad tokens and bad samples, with intervals; None if nothing could be learned."""
    prior_odds: NDArray[np.float64] | None = None
    """See `forgetting.method.shares`, shape (kinds,); None if nothing was found."""

    def judge(self, evidence: Evidence) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Posterior and likely kind of tokens, of this corpus or of another one like it.

        Returns:
            The probability that each token is bad, 0 if nothing was found, shape (tokens,); and
            the place of its likeliest kind in `kinds`, shape (tokens,).
        """
        if not self.found or self.shares is None or self.prior_odds is None:
            nothing = _nothing(self.reason, evidence, self.kinds, None)
            return nothing.posterior, nothing.likely_kind
        by_kind = posteriors(
            evidence.log_odds,
            evidence.kind_probs,
            self.prior_odds,
            np.array(self.shares.priors),
        )
        posterior = shifted(evidence.log_odds, self.shares.shift)
        return posterior.astype(np.float32), by_kind.argmax(1).astype(np.int8)

    def expected_bad_tokens(self, lengths: ArrayLike) -> NDArray[np.float64]:
        """Sum of the posteriors of each sample; shape (samples,)."""
        return _sums(self.posterior, np.asarray(lengths))


@dataclass
class Detector:
    """One classifier for each fold of records and each fit; see `fit_detector`."""

    names: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    problem: str | None = None
    """Why nothing could be learned that says something about tokens; None if something was."""
    report: DetectorReport | None = None
    _edges: list[NDArray] = field(default_factory=list, repr=False)
    _fits: list[list[Any]] = field(default_factory=list, repr=False)
    _kind_models: list[Any] = field(default_factory=list, repr=False)
    _fold_of_record: dict[int, int] = field(default_factory=dict, repr=False)
    _calibration: Calibration = (1.0, 1.0, 0.0)
    _clean_medians: NDArray | None = field(default=None, repr=False)
    _prior_odds: NDArray | None = field(default=None, repr=False)
    _first_shares: NDArray | None = field(default=None, repr=False)
    _whole: WholeShare = field(default_factory=WholeShare, repr=False)
    _sure: bool = field(default=False, repr=False)

    def weigh(
        self, features: NDArray[np.float32], lengths: ArrayLike, records: ArrayLike
    ) -> Evidence:
        """Evidence for the tokens of some samples; call it shard by shard.

        Args:
            features: shape (tokens, features), as in the probe.
            lengths: response tokens of each sample, shape (samples,).
            records: the record of each sample, as numbered in `Probe.records`, shape (samples,).
                A record with copies in the probe is judged by the classifiers that have not seen
                them, any other by those of one fold. Not by all: their mean is less extreme than
                what was measured out of fold, and shares would come out too small.
        """
        features = np.asarray(features, dtype=np.float32)
        if not self._fits or not len(features):
            empty = np.zeros((len(features), len(self.kinds)), np.float32)
            return Evidence(np.full(len(features), -np.inf, np.float32), empty)
        folds = self._folds_of(np.asarray(records), np.asarray(lengths))
        features = binned(features, self._edges)
        return Evidence(self._log_odds(features, folds), self._kind_probs(features, folds))

    def _folds_of(self, records: NDArray, lengths: NDArray) -> NDArray[np.int64]:
        """Which classifier judges each token; shape (tokens,)."""
        folds = [self._fold_of_record.get(int(r), int(r) % NUM_FOLDS) for r in records]
        return np.repeat(np.array(folds, dtype=np.int64), lengths)

    def _log_odds(self, features: NDArray, folds: NDArray) -> NDArray[np.float32]:
        """Calibrated, of tokens whose features are binned; the mean over the fits."""
        log_odds = np.zeros(len(features))
        for fold, models in enumerate(zip(*self._fits, strict=True)):
            chosen = folds == fold
            if chosen.any():
                of_fits = [model.decision_function(features[chosen]) for model in models]
                log_odds[chosen] = np.mean(of_fits, axis=0)
        return calibrate(log_odds, self._calibration).astype(np.float32)

    def _kind_probs(self, features: NDArray, folds: NDArray) -> NDArray[np.float32]:
        """Probability of each kind for tokens whose features are binned."""
        kind_probs = np.zeros((len(features), len(self.kinds)))
        for fold, model in enumerate(self._kind_models):
            chosen = folds == fold
            if chosen.any():
                kind_probs[chosen] = probs_in_order(model, features[chosen], self.kinds)
        return kind_probs.astype(np.float32)

    def judge(self, evidence: Evidence, lengths: ArrayLike, seed: int = 0) -> Findings:
        """The verdict on a corpus, from the evidence on all its tokens.

        Args:
            evidence: of all shards; see `join_evidence`.
            lengths: response tokens of each sample, shape (samples,).
            seed: of the bootstrap.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        problem = self.problem
        if problem is None and (lengths > 0).sum() < SMALLEST_NUM_SAMPLES:
            problem = (
                f"The corpus has {int((lengths > 0).sum())} samples with a response; fewer than "
                f"{SMALLEST_NUM_SAMPLES} say nothing."
            )
        if problem or self.report is None or self._prior_odds is None:
            return _nothing(f"Nothing found. {problem}", evidence, self.kinds, None)
        assert self._first_shares is not None
        shares = estimate_shares(
            evidence.log_odds,
            evidence.kind_probs,
            lengths,
            self._prior_odds,
            self._first_shares,
            self._whole,
            sure=self._sure,
            seed=seed,
        )
        found, reason = _verdict(self.report, shares, self._whole)
        if not found:
            return _nothing(reason, evidence, self.kinds, shares)
        return Findings(
            True,
            reason,
            shares.posterior,
            shares.likely_kind,
            self.kinds,
            shares,
            self._prior_odds,
        )

    @property
    def explainer(self) -> Explainer | None:
        """Names what speaks for a token being bad; None if nothing could be learned."""
        if self._clean_medians is None:
            return None
        return Explainer(
            self.names,
            tuple(self._edges),
            self._clean_medians,
            tuple(Trees.of_classifier(model) for fit in self._fits for model in fit),
        )


def fit_detector(
    probe: Probe,
    seed: int = 0,
    *,
    corpus: CorpusSample | None = None,
    leave_kinds_out: bool = True,
) -> Detector:
    """Fit a detector on planted noise.

    Two classifiers for each of five folds of records: bad against clean over all tokens, and the
    kind over the bad ones. Together they are one classifier over all kinds at a fraction of the
    trees. If the corpus seems to hold noise, that of bad tokens is fitted twice, and the log-odds
    are the mean. They are calibrated on what was predicted out of fold.

    Args:
        probe: copies with planted noise.
        seed: of the folds and the trees.
        corpus: some of its samples, the more the surer; 2,000 are enough. They show whether it
            holds noise. Default: the copies in which nothing was planted.
        leave_kinds_out: whether to measure how each kind is found by a detector that never saw
            it; this takes about as long as the fit itself.

    Returns:
        A detector. One that could not learn has a `problem`, no report, and finds nothing. One that
        learned nothing but lengths has a `problem` and a report, and finds nothing.
    """
    problem = _problem(probe)
    if problem:
        return Detector(probe.names, problem=problem)
    kinds = tuple(sorted(set(probe.kinds.tolist()) - {CLEAN}))
    bad = probe.kinds != CLEAN
    fold_of_record = draw_folds(probe.records, np.random.default_rng(seed))
    folds = np.array([fold_of_record[record] for record in probe.of_records.tolist()])
    edges = bin_edges(probe.features)
    features = binned(probe.features, edges)
    kind_models = [
        fit_classifier(features[used], probe.kinds[used], KIND_TREES, seed + fold)
        for fold in range(NUM_FOLDS)
        for used in [(folds != fold) & bad]
    ]
    detector = Detector(
        probe.names,
        kinds,
        _edges=edges,
        _kind_models=kind_models,
        _fold_of_record=fold_of_record,
        _clean_medians=np.median(probe.features[~bad], axis=0),
    )
    weights = np.ones(len(bad))
    detector._fits = [fit_folds(features, bad, weights, folds, seed)]
    kind_probs = detector._kind_probs(features, folds)
    log_odds = detector._log_odds(features, folds)
    first_calibration = fit_calibration(log_odds, bad)
    first_log_odds = calibrate(log_odds, first_calibration)
    codes = codes_of(probe.kinds, kinds)
    detector._first_shares = np.zeros(len(kinds))
    # Weights would make a blind detector look good: they take away the tokens on which it errs.
    first_auroc = auroc_of(bad, first_log_odds, weights) or 0.5
    detector.problem = blindness(probe.names, features, bad, folds, seed, first_auroc)
    if first_auroc >= SMALLEST_AUROC:
        alone = _left_alone(detector, probe, bad, log_odds, corpus)
        has_noisy_records = first_auroc >= SMALLEST_RECORDS_AUROC and (
            p_of_records(_planted_maxima(probe, bad, log_odds), response_maxima(*alone))
            <= LARGEST_P_RECORDS
        )
        if first_auroc >= SMALLEST_WHOLE_AUROC or has_noisy_records:
            detector._whole = _whole_share(detector, probe, bad, log_odds, alone, seed)
        detector._first_shares = first_shares(first_log_odds, kind_probs, codes, detector._whole)
        detector._sure = (
            has_noisy_records
            or detector._whole.is_clear
            or _is_sure(
                detector,
                probe,
                codes,
                first_log_odds,
                kind_probs,
                first_calibration,
                corpus,
                alone[0],
                seed,
            )
        )
    if detector._first_shares.any():
        unmarked = unmarked_noise(first_log_odds, kind_probs, codes, detector._first_shares)
        weights = 1 - unmarked
        detector._fits.append(fit_folds(features, bad, weights, folds, seed))
        log_odds = detector._log_odds(features, folds)
    scaled = np.empty(len(bad))
    for fold in range(NUM_FOLDS):
        held = folds == fold
        calibration = fit_calibration(log_odds[~held], bad[~held], weights[~held])
        scaled[held] = calibrate(log_odds[held], calibration)
    detector._calibration = fit_calibration(log_odds, bad, weights)
    detector._prior_odds = normalized(
        calibrate(log_odds[~bad], detector._calibration),
        kind_probs[~bad],
        prior_odds(codes, len(kinds), weights),
        weights[~bad],
    )
    left_out = (
        left_out_aurocs(features, probe.kinds, kinds, weights, folds, seed)
        if leave_kinds_out
        else {}
    )
    detector.report = describe(probe.kinds, kinds, scaled, kind_probs, weights, left_out)
    return detector


def _left_alone(
    detector: Detector,
    probe: Probe,
    bad: NDArray[np.bool_],
    log_odds: NDArray,
    corpus: CorpusSample | None,
) -> tuple[NDArray, NDArray[np.int64]]:
    """Log-odds of the responses in which nothing was planted, and their lengths, by the first fit.

    Args:
        bad: where noise was planted, shape (tokens of the copies,).
        log_odds: of the copies, out of fold, before calibration; the same shape.
        corpus: these responses; None: the copies that were left alone.
    """
    if corpus is not None:
        folds = detector._folds_of(corpus.records, corpus.lengths)
        return detector._log_odds(binned(corpus.features, detector._edges), folds), corpus.lengths
    lengths = probe.lengths[probe.lengths > 0]
    is_alone = response_maxima(bad, lengths) == 0
    return log_odds[np.repeat(is_alone, lengths)], lengths[is_alone]


def _planted_maxima(probe: Probe, bad: NDArray[np.bool_], log_odds: NDArray) -> NDArray[np.float64]:
    """Highest log-odds of each copy in which noise was planted; arguments as in `_left_alone`."""
    is_planted = response_maxima(bad, probe.lengths) > 0
    return response_maxima(log_odds, probe.lengths)[is_planted]


def _whole_share(
    detector: Detector,
    probe: Probe,
    bad: NDArray[np.bool_],
    log_odds: NDArray,
    alone: tuple[NDArray, NDArray[np.int64]],
    seed: int,
) -> WholeShare:
    """What whole responses say, by the first fit.

    Args:
        bad: where noise was planted, shape (tokens of the copies,).
        log_odds: of the copies, out of fold, before calibration; the same shape.
        alone: see `_left_alone`.
    """
    if np.mean(probe.lengths[probe.lengths > 0]) < SMALLEST_MEAN_LENGTH:
        return WholeShare()
    means, share_bad = (response_means(of, probe.lengths) for of in (log_odds, bad))
    replaced = means[share_bad == 1]
    if len(replaced):
        # Kinds look different. That of most of these responses has the surest share.
        ends = np.cumsum(probe.lengths)[probe.lengths > 0]
        kinds = codes_of(probe.kinds[ends - 1][share_bad == 1], detector.kinds)
        replaced = replaced[kinds == np.bincount(kinds).argmax()]
    return whole_share(replaced, response_means(*alone), seed=seed)


def _is_sure(
    detector: Detector,
    probe: Probe,
    codes: NDArray[np.int64],
    log_odds: NDArray,
    kind_probs: NDArray,
    calibration: Calibration,
    corpus: CorpusSample | None,
    alone: NDArray,
    seed: int,
) -> bool:
    """Whether the corpus looks like one of the kinds beyond chance, by the first fit.

    Args:
        codes: index of the planted kind of each token of the copies, -1 where there is none.
        log_odds: of the copies, out of fold, calibrated.
        kind_probs: of the copies.
        calibration: of the first fit.
        alone: log-odds of `_left_alone`.
    """
    of_copies, first = probe.of_records, detector._first_shares
    if first is None or not first.any():
        return False
    if corpus is None:
        unmarked = codes < 0
        others, other_probs = log_odds[unmarked], kind_probs[unmarked]
        of_others = of_copies[unmarked]
    else:
        features = binned(corpus.features, detector._edges)
        folds = detector._folds_of(corpus.records, corpus.lengths)
        others = calibrate(alone, calibration)
        other_probs = detector._kind_probs(features, folds)
        of_others = np.repeat(corpus.records, corpus.lengths)
    numbers = np.unique(np.r_[of_copies, of_others], return_inverse=True)[1]
    of_copies, of_others = numbers[: len(of_copies)], numbers[len(of_copies) :]
    for kind in np.flatnonzero(first):
        own = codes == kind
        planted = Scored(kind_scores(log_odds[own], kind_probs[own, kind]), of_copies[own])
        rest = Scored(kind_scores(others, other_probs[:, kind]), of_others)
        if is_sure(planted, rest, len(detector.kinds), seed=seed):
            return True
    return False


def _problem(probe: Probe) -> str | None:
    """Why nothing can be learned from a probe."""
    num_samples = int((probe.lengths > 0).sum())
    num_records = len(np.unique(probe.records[probe.lengths > 0]))
    bad = probe.kinds != CLEAN
    if min(num_samples, num_records) < SMALLEST_NUM_SAMPLES:
        return (
            f"Noise could be planted into copies of {num_records} "
            f"{'record' if num_records == 1 else 'records'}; at least {SMALLEST_NUM_SAMPLES} are "
            "needed."
        )
    of_bad = len(np.unique(probe.of_records[bad]))
    of_clean = len(np.unique(probe.of_records[~bad]))
    if min(of_bad, of_clean) < 2 * NUM_FOLDS:
        return (
            f"The copies hold noise in {of_bad} records and clean tokens in {of_clean}; both need "
            f"at least {2 * NUM_FOLDS}."
        )
    if not len(probe.features) or np.ptp(probe.features, axis=0).max(initial=0) == 0:
        return "The models say the same of every token."
    return None


def _nothing(
    reason: str, evidence: Evidence, kinds: tuple[str, ...], shares: Shares | None
) -> Findings:
    """Findings by which no token is bad."""
    size = len(evidence.log_odds)
    likely = evidence.kind_probs.argmax(1) if kinds else np.zeros(size)
    nothing = np.zeros(size, np.float32)
    return Findings(False, reason, nothing, likely.astype(np.int8), kinds, shares)


def _verdict(report: DetectorReport, shares: Shares, whole: WholeShare) -> tuple[bool, str]:
    low, high = shares.interval
    if report.auroc < SMALLEST_AUROC:
        return False, (
            "Nothing found. Planted noise cannot be told from the corpus with these models: AUROC "
            f"{report.auroc:.2f}, at least {SMALLEST_AUROC:.2f} is needed."
        )
    if low <= 0 and shares.share >= CLEAR_SHARE:
        return False, (
            f"Nothing found. Planted noise is found (AUROC {report.auroc:.2f}), but not clearly "
            f"enough to say that the corpus holds any (0 to {high:.0%} of the tokens)."
        )
    if low <= 0 and report.auroc < SMALLEST_WHOLE_AUROC:
        return False, (
            "Nothing found, and not much could be: planted noise is found only in part (AUROC "
            f"{report.auroc:.2f}). By what is found, at most {high:.1%} of the tokens look bad."
        )
    if low <= 0 or (shares.share < CLEAR_SHARE and not whole.is_clear):
        return False, (
            f"Nothing found. Planted noise is found well (AUROC {report.auroc:.2f}), and this "
            f"corpus has no clear sign of it: at most {high:.1%} of the tokens look bad."
        )
    return True, (
        f"About {shares.share:.1%} of the tokens look bad ({low:.1%} to {high:.1%}). Planted noise "
        f"is found with an AUROC of {report.auroc:.2f}."
    )


def _sums(values: NDArray, lengths: NDArray) -> NDArray[np.float64]:
    ends = np.cumsum(lengths)
    sums = np.r_[0.0, np.cumsum(values, dtype=np.float64)]
    return sums[ends] - sums[ends - lengths]
