"""Learns from planted noise what bad tokens look like, and says which tokens of a corpus are bad.

Goes in: features of tokens with planted noise (`Probe`), then features of the corpus. Comes out:
how well the planted noise is found (`DetectorReport`), and for the corpus a posterior for each
token, the likely kind, the share of bad tokens with an interval, and a verdict (`Findings`).
A detector is not stored: the same probe and seed make the same detector in seconds. Knows nothing
of text, models or files.

The copies in the probe come from the corpus itself, so their unplanted tokens are as noisy as the
corpus. A classifier therefore learns the ratio of *planted noise* to *the corpus as it is*, and
its usual correction for another prior (`em_prior_shift`) would find no noise in any corpus. What
the ratio does tell: if the corpus holds a share `a` of tokens that look like kind k, no region has
less than `a` times the density of kind k. `forgetting.method.shares` turns that into shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.method.shares import Shares, auroc, estimate_shares

CLEAN = "clean"
NUM_FOLDS = 5
SMALLEST_NUM_SAMPLES = 50
SMALLEST_AUROC = 0.7
# Tokens of a kind below which a figure about it would be chance.
SMALLEST_KIND = 10

_TREES = {
    "learning_rate": 0.06,
    "max_iter": 150,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 30,
    "l2_regularization": 5.0,
    "max_features": 0.2,
    # It would stop on tokens of samples that it has seen.
    "early_stopping": False,
}
_KIND_TREES = _TREES | {"max_iter": 40, "learning_rate": 0.1, "max_leaf_nodes": 8}


@dataclass(frozen=True)
class Probe:
    """Tokens of copies with planted noise."""

    features: NDArray[np.float32]
    """Shape (tokens, features)."""
    names: tuple[str, ...]
    """Of the features."""
    kinds: NDArray[np.str_]
    """Kind of noise of each token, "clean" if it has none; shape (tokens,)."""
    lengths: NDArray[np.int64]
    """Response tokens of each copy; shape (copies,)."""
    records: NDArray[np.int64]
    """The record that each copy was made from; shape (copies,)."""

    def __post_init__(self) -> None:
        tokens = int(np.sum(self.lengths))
        if self.features.shape != (tokens, len(self.names)) or len(self.kinds) != tokens:
            raise ValueError(
                f"{tokens} tokens, but features of shape {self.features.shape}, "
                f"{len(self.names)} names and {len(self.kinds)} kinds"
            )
        if len(self.lengths) != len(self.records):
            raise ValueError(f"{len(self.lengths)} copies, but {len(self.records)} records")

    @property
    def of_records(self) -> NDArray[np.int64]:
        """The record of each token; shape (tokens,)."""
        return np.repeat(self.records, self.lengths)


@dataclass(frozen=True)
class KindReport:
    """How well one kind of planted noise is found."""

    num_tokens: int
    auroc: float | None
    """Against clean tokens; None below 10 tokens."""
    recall: float | None
    """Share of its tokens with a posterior of at least 0.5 in the probe."""
    auroc_left_out: float | None
    """The same as `auroc`, by a detector that never saw this kind."""


@dataclass(frozen=True)
class DetectorReport:
    """How well planted noise is found, out of fold."""

    num_tokens: int
    share_planted: float
    auroc: float
    average_precision: float
    precision: float | None
    """At a posterior of 0.5; None if no token reaches it."""
    recall: float
    calibration_error: float
    """Expected calibration error over 15 bins of equal width."""
    calibration: tuple[tuple[float, float, int], ...]
    """(mean posterior, share of bad tokens, tokens) of each bin that is not empty."""
    kinds: dict[str, KindReport]


@dataclass(frozen=True)
class Evidence:
    """What a detector says about tokens, before it is known how much of the corpus is bad."""

    log_odds: NDArray[np.float32]
    """Planted against not planted, at the prior of the probe; shape (tokens,)."""
    kind_probs: NDArray[np.float32]
    """Probability of each kind if the token is bad; shape (tokens, kinds)."""


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

    def expected_bad_tokens(self, lengths: ArrayLike) -> NDArray[np.float64]:
        """Sum of the posteriors of each sample; shape (samples,)."""
        return _sums(self.posterior, np.asarray(lengths))


@dataclass
class Detector:
    """One classifier for each fold of records; see `fit_detector`."""

    names: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    problem: str | None = None
    """Why nothing could be learned; None if something was."""
    report: DetectorReport | None = None
    _models: list[Any] = field(default_factory=list, repr=False)
    _kind_models: list[Any] = field(default_factory=list, repr=False)
    _fold_of_record: dict[int, int] = field(default_factory=dict, repr=False)
    _calibration: Calibration = (1.0, 1.0, 0.0)
    _clean_medians: NDArray | None = field(default=None, repr=False)
    _probe_evidence: Evidence | None = field(default=None, repr=False)
    _probe: Probe | None = field(default=None, repr=False)

    def weigh(
        self, features: NDArray[np.float32], lengths: ArrayLike, records: ArrayLike
    ) -> Evidence:
        """Evidence for the tokens of some samples; call it shard by shard.

        Args:
            features: shape (tokens, features), as in the probe.
            lengths: response tokens of each sample, shape (samples,).
            records: the record of each sample, as numbered in `Probe.records`, shape (samples,).
                A record with copies in the probe is judged only by the classifier that has not
                seen them, any other by the mean of all.
        """
        features = np.asarray(features, dtype=np.float32)
        if not self._models or not len(features):
            empty = np.zeros((len(features), len(self.kinds)), np.float32)
            return Evidence(np.full(len(features), -np.inf, np.float32), empty)
        folds = np.array([self._fold_of_record.get(int(r), -1) for r in np.asarray(records)])
        return self._evidence(features, np.repeat(folds, np.asarray(lengths)))

    def _evidence(self, features: NDArray, folds: NDArray) -> Evidence:
        log_odds = np.zeros(len(features))
        kind_probs = np.zeros((len(features), len(self.kinds)))
        for fold, (model, kind_model) in enumerate(
            zip(self._models, self._kind_models, strict=True)
        ):
            for chosen, weight in ((folds == fold, 1.0), (folds < 0, 1 / len(self._models))):
                if chosen.any():
                    log_odds[chosen] += weight * model.decision_function(features[chosen])
                    kind_probs[chosen] += weight * _kind_probs(
                        kind_model, features[chosen], self.kinds
                    )
        return Evidence(
            calibrate(log_odds, self._calibration).astype(np.float32),
            kind_probs.astype(np.float32),
        )

    def judge(self, evidence: Evidence, lengths: ArrayLike, seed: int = 0) -> Findings:
        """The verdict on a corpus, from the evidence on all its tokens.

        Args:
            evidence: of all shards; see `join_evidence`.
            lengths: response tokens of each sample, shape (samples,).
            seed: of the bootstrap.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        likely = (
            evidence.kind_probs.argmax(1).astype(np.int8)
            if self.kinds
            else np.zeros(len(evidence.log_odds), np.int8)
        )
        problem = self.problem
        if problem is None and (lengths > 0).sum() < SMALLEST_NUM_SAMPLES:
            problem = (
                f"The corpus has {int((lengths > 0).sum())} samples with a response; fewer than "
                f"{SMALLEST_NUM_SAMPLES} say nothing."
            )
        if problem or self._probe is None or self._probe_evidence is None or self.report is None:
            nothing = np.zeros(len(evidence.log_odds), np.float32)
            return Findings(False, f"Nothing found. {problem}", nothing, likely, self.kinds, None)
        shares = estimate_shares(
            self._probe_evidence.log_odds,
            self._probe_evidence.kind_probs,
            _codes(self._probe.kinds, self.kinds),
            self._probe.lengths,
            evidence.log_odds,
            evidence.kind_probs,
            lengths,
            seed=seed,
        )
        found, reason = _verdict(self.report, shares)
        return Findings(found, reason, shares.posterior, likely, self.kinds, shares)

    def telling_features(
        self, features: NDArray[np.float32], count: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The features that speak most for a token being bad.

        Each feature is replaced by its median over clean tokens in turn; what the log-odds lose is
        its part. Costs as much as `features.shape[1]` predictions a token, so pass the tokens that
        someone looks at, not the corpus.

        Args:
            features: of those tokens, shape (tokens, features).
            count: how many features to name.

        Returns:
            For each token, (name, loss of log-odds), largest first; only losses above 0.
        """
        if self._clean_medians is None:
            return [[] for _ in features]
        answer = []
        for row in np.asarray(features, dtype=np.float32):
            rows = np.repeat(row[None], len(row) + 1, axis=0)
            np.fill_diagonal(rows[1:], self._clean_medians)
            log_odds = np.mean([model.decision_function(rows) for model in self._models], axis=0)
            losses = log_odds[0] - log_odds[1:]
            best = np.argsort(-losses, kind="stable")[:count]
            answer.append([(self.names[i], float(losses[i])) for i in best if losses[i] > 0])
        return answer


def join_evidence(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of all shards, in their order."""
    return Evidence(
        np.concatenate([part.log_odds for part in parts]),
        np.concatenate([part.kind_probs for part in parts]),
    )


def fit_detector(probe: Probe, seed: int = 0, *, leave_kinds_out: bool = True) -> Detector:
    """Fit a detector on planted noise.

    Two classifiers for each of five folds of records: bad against clean over all tokens, and the
    kind over the bad ones. Together they are one classifier over all kinds at a fraction of the
    trees. The log-odds are calibrated on what was predicted out of fold.

    Args:
        probe: copies with planted noise.
        seed: of the folds and the trees.
        leave_kinds_out: whether to measure how each kind is found by a detector that never saw
            it; this takes about as long as the fit itself.

    Returns:
        A detector. One that could not learn has a `problem`, no report, and finds nothing.
    """
    problem = _problem(probe)
    if problem:
        return Detector(probe.names, problem=problem)
    kinds = tuple(sorted(set(probe.kinds.tolist()) - {CLEAN}))
    bad = probe.kinds != CLEAN
    fold_of_record = _folds(probe.records, np.random.default_rng(seed))
    folds = np.array([fold_of_record[record] for record in probe.of_records.tolist()])
    models, kind_models = [], []
    for fold in range(NUM_FOLDS):
        used = folds != fold
        models.append(_classifier(probe.features[used], bad[used], _TREES, seed + fold))
        used &= bad
        kind_models.append(
            _classifier(probe.features[used], probe.kinds[used], _KIND_TREES, seed + fold)
        )
    detector = Detector(
        probe.names,
        kinds,
        _models=models,
        _kind_models=kind_models,
        _fold_of_record=fold_of_record,
        _clean_medians=np.median(probe.features[~bad], axis=0),
        _probe=probe,
    )
    raw = detector._evidence(probe.features, folds)
    scaled = np.empty(len(bad))
    for fold in range(NUM_FOLDS):
        held = folds == fold
        scaled[held] = calibrate(
            raw.log_odds[held], fit_calibration(raw.log_odds[~held], bad[~held])
        )
    detector._calibration = fit_calibration(raw.log_odds, bad)
    detector._probe_evidence = Evidence(scaled.astype(np.float32), raw.kind_probs)
    left_out = _leave_kinds_out(probe, kinds, folds, seed) if leave_kinds_out else {}
    detector.report = _report(probe, kinds, scaled, left_out)
    return detector


def _problem(probe: Probe) -> str | None:
    """Why nothing can be learned from a probe."""
    num_samples = int((probe.lengths > 0).sum())
    num_records = len(np.unique(probe.records[probe.lengths > 0]))
    bad = probe.kinds != CLEAN
    if min(num_samples, num_records) < SMALLEST_NUM_SAMPLES:
        return (
            f"Noise could be planted into copies of {num_records} records; at least "
            f"{SMALLEST_NUM_SAMPLES} are needed."
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


def _folds(records: NDArray, rng: np.random.Generator) -> dict[int, int]:
    """Fold of each record; all copies of one record are in one fold."""
    distinct = np.unique(records)
    order = rng.permutation(len(distinct))
    return {int(record): int(place) % NUM_FOLDS for record, place in zip(distinct, order)}  # noqa: B905


class _Constant:
    """Stands in for a classifier where all tokens of a fold's training set are of one class."""

    def __init__(self, name: Any) -> None:
        self.classes_ = np.array([name])

    def predict_proba(self, features: NDArray) -> NDArray:
        return np.ones((len(features), 1))

    def decision_function(self, features: NDArray) -> NDArray:
        return np.full(len(features), 0.0)


def _classifier(features: NDArray, target: NDArray, trees: dict[str, Any], seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    classes = np.unique(target)
    if len(classes) < 2:
        return _Constant(classes[0] if len(classes) else "")
    return HistGradientBoostingClassifier(random_state=seed, **trees).fit(features, target)


def _kind_probs(model: Any, features: NDArray, kinds: tuple[str, ...]) -> NDArray:
    """Probabilities in the order of `kinds`; a kind that the model never saw has 0."""
    probs = np.zeros((len(features), len(kinds)))
    found = model.predict_proba(features)
    for column, name in enumerate(model.classes_):
        if name in kinds:
            probs[:, kinds.index(name)] = found[:, column]
    return probs


def _codes(names: NDArray, kinds: tuple[str, ...]) -> NDArray[np.int64]:
    """Index into `kinds`, -1 for clean; shape of `names`."""
    place = {name: index for index, name in enumerate(kinds)}
    return np.array([place.get(name, -1) for name in names.tolist()], dtype=np.int64)


Calibration = tuple[float, float, float]
"""Weights of log s and -log(1 - s), and the offset; (1, 1, 0) changes nothing."""


def fit_calibration(log_odds: NDArray, bad: NDArray[np.bool_]) -> Calibration:
    """Beta calibration (Kull et al. 2017): logistic regression on log s and -log(1 - s).

    By Newton's method, with the smoothed targets of Platt (1999).
    Unmarked noise keeps the true posterior of planted noise well below 1, where scaling the
    log-odds alone cannot follow.

    Args:
        log_odds: of s, shape (tokens,), finite.
        bad: the truth, shape (tokens,).

    Returns:
        Both weights are at least 0, so the order of tokens stays. They are 0 if the log-odds say
        nothing.
    """
    parts = _log_parts(log_odds)
    num_bad = int(np.sum(bad))
    high, low = (num_bad + 1) / (num_bad + 2), 1 / (len(parts) - num_bad + 2)
    target = np.where(bad, high, low)
    for used in ([0, 1], [0], [1], []):
        design = np.concatenate([parts[:, used], np.ones((len(parts), 1))], axis=1)
        beta = _logistic_regression(design, target)
        if np.isfinite(beta).all() and (beta[:-1] >= 0).all():
            break
    weights = np.zeros(3)
    weights[[*used, 2]] = beta
    return float(weights[0]), float(weights[1]), float(weights[2])


def calibrate(log_odds: NDArray, calibration: Calibration) -> NDArray[np.float64]:
    """Calibrated log-odds; shape (tokens,)."""
    return _log_parts(log_odds) @ np.array(calibration[:2]) + calibration[2]


def _log_parts(log_odds: NDArray) -> NDArray[np.float64]:
    """log s and -log(1 - s): shape (tokens, 2). Their sum is the log-odds."""
    x = np.asarray(log_odds, dtype=np.float64)
    return np.stack([-np.logaddexp(0, -x), np.logaddexp(0, x)], axis=1)


def _logistic_regression(design: NDArray, target: NDArray) -> NDArray[np.float64]:
    """Coefficients, from 0 on; steps are cut to 2, and a small ridge keeps them finite."""
    beta = np.zeros(design.shape[1])
    for _ in range(100):
        prob = sigmoid(design @ beta)
        weight = np.maximum(prob * (1 - prob), 1e-9)
        hessian = design.T @ (design * weight[:, None]) + 1e-6 * np.eye(len(beta))
        step = np.linalg.solve(hessian, design.T @ (target - prob) - 1e-6 * beta)
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return beta


def sigmoid(x: NDArray) -> NDArray:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(np.asarray(x) >= 0, 1 / (1 + small), small / (1 + small))


def calibration_table(
    posterior: NDArray, bad: NDArray[np.bool_], num_bins: int = 15
) -> tuple[tuple[float, float, int], ...]:
    """(mean posterior, share of bad tokens, tokens) of each bin of equal width with tokens."""
    bins = np.minimum((posterior * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    said = np.bincount(bins, posterior, minlength=num_bins)
    true = np.bincount(bins, bad, minlength=num_bins)
    return tuple(
        (float(said[i] / counts[i]), float(true[i] / counts[i]), int(counts[i]))
        for i in np.flatnonzero(counts)
    )


def calibration_error(table: Sequence[tuple[float, float, int]]) -> float:
    """Expected calibration error: mean distance of the two shares, weighted by tokens."""
    total = sum(count for _, _, count in table)
    return sum(abs(said - true) * count for said, true, count in table) / total if total else 0.0


def _auroc(bad: NDArray[np.bool_], score: NDArray) -> float | None:
    if bad.sum() < SMALLEST_KIND or (~bad).sum() < SMALLEST_KIND:
        return None
    return auroc(score[bad], score[~bad])


def _leave_kinds_out(
    probe: Probe, kinds: tuple[str, ...], folds: NDArray, seed: int
) -> dict[str, float | None]:
    """AUROC of each kind against clean tokens by a classifier that never saw the kind: fitted on
    three of the five folds, measured on the other two."""
    found: dict[str, float | None] = {}
    fitted = folds < NUM_FOLDS - 2
    clean = probe.kinds == CLEAN
    for kind in kinds:
        of_kind = probe.kinds == kind
        used = fitted & ~of_kind
        measured = ~fitted & (clean | of_kind)
        model = _classifier(probe.features[used], ~clean[used], _TREES, seed)
        score = model.decision_function(probe.features[measured])
        found[kind] = _auroc(of_kind[measured], score)
    return found


def _report(
    probe: Probe, kinds: tuple[str, ...], log_odds: NDArray, left_out: dict[str, float | None]
) -> DetectorReport:
    from sklearn.metrics import average_precision_score

    bad = probe.kinds != CLEAN
    posterior = sigmoid(log_odds)
    marked = posterior >= 0.5
    by_kind = {}
    for kind in kinds:
        of_kind = probe.kinds == kind
        both = of_kind | ~bad
        by_kind[kind] = KindReport(
            int(of_kind.sum()),
            _auroc(of_kind[both], log_odds[both]),
            float(marked[of_kind].mean()) if of_kind.any() else None,
            left_out.get(kind),
        )
    table = calibration_table(posterior, bad)
    return DetectorReport(
        num_tokens=len(bad),
        share_planted=float(bad.mean()),
        auroc=_auroc(bad, log_odds) or 0.5,
        average_precision=float(average_precision_score(bad, log_odds)),
        precision=float(bad[marked].mean()) if marked.any() else None,
        recall=float(marked[bad].mean()),
        calibration_error=calibration_error(table),
        calibration=table,
        kinds=by_kind,
    )


def _verdict(report: DetectorReport, shares: Shares) -> tuple[bool, str]:
    low, high = shares.interval
    if report.auroc < SMALLEST_AUROC:
        return False, (
            "Nothing found. Planted noise cannot be told from the corpus with these models: AUROC "
            f"{report.auroc:.2f}, at least {SMALLEST_AUROC:.2f} is needed."
        )
    if low <= 0:
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
