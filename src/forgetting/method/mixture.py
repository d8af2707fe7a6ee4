"""How many tokens are bad, estimated: two components fitted to the distribution of quality.

Input: quality of all response tokens, a chunk at a time. Output: whether the worst of them
are a population of their own, and the posterior of belonging to it, by quality. In the manner of
the literature on noisy labels (Arazo et al., arXiv 1904.11238; Li et al., arXiv 2002.07394),
which fits betas or Gaussians to losses; here a component may be skewed and heavy-tailed, as
losses of tokens are, and a distribution with one peak is never divided. The fit is made on a
sample of fixed size. Knows nothing of what quality measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SKETCH_SIZE = 1 << 20
NUM_BINS = 400
# The longest tails would leave the bins too wide; they are counted with their end of the range.
TAIL = 0.0005
MIN_TOKENS = 200
# The valley between the peaks must be at most so high as a share of the lower one,
MAX_VALLEY = 0.8
# and lower by so many standard errors of the difference.
MIN_SIGMAS = 4.0
MAX_WEIGHT = 0.5
# Of bad tokens, from which fits start.
START_SHARES = (0.03, 0.1, 0.3)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Sketch:
    """A sample of at most `SKETCH_SIZE` values that come in chunks.

    The choice depends only on their positions, by multiplicative hashing, so the sample is
    independent of the chunks.
    """

    def __init__(self) -> None:
        self._hashes = np.zeros(0, np.uint64)
        self._values = np.zeros(0)
        self._num_seen = 0
        self._level = 0

    def add(self, values: NDArray) -> None:
        """Add the next values."""
        places = np.arange(self._num_seen + 1, self._num_seen + 1 + values.size, dtype=np.uint64)
        self._num_seen += values.size
        hashes = places * MULTIPLIER
        kept = self._is_kept(hashes)
        self._hashes = np.concatenate([self._hashes, hashes[kept]])
        self._values = np.concatenate([self._values, values[kept].astype(np.float64)])
        while self._values.size > SKETCH_SIZE:
            self._level += 1
            kept = self._is_kept(self._hashes)
            self._hashes, self._values = self._hashes[kept], self._values[kept]

    @property
    def values(self) -> NDArray[np.float64]:
        """The sample, in order of position."""
        return self._values

    def _is_kept(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return hashes <= np.uint64((2**64 - 1) >> self._level)


@dataclass(frozen=True)
class Component:
    """A peak with a tail on either side.

    The density is `exp(-|(x - mode) / scale|^shape) * shape / ((left + right) * Gamma(1 / shape))`
    with the scale `left` below the mode and `right` above it: a normal distribution for shape 2
    and equal scales, Laplace's for shape 1, an exponential one where a scale is nearly 0.
    """

    mode: float
    left: float
    right: float
    shape: float

    def log_density(self, x: NDArray) -> NDArray[np.float64]:
        """Shape of `x`."""
        distance = np.abs(x - self.mode) / np.where(x < self.mode, self.left, self.right)
        norm = math.log(self.shape / (self.left + self.right)) - math.lgamma(1 / self.shape)
        return norm - distance**self.shape


@dataclass(frozen=True)
class Mixture:
    """Two components; `bad` is the one of lower quality."""

    weight: float
    """Weight of the bad component."""
    bad: Component
    good: Component
    centers: NDArray[np.float64]
    """Centers of the bins of the fit, shape (bins,)."""
    posterior: NDArray[np.float64]
    """Posterior probability of the bad component in each bin; never rises with quality."""

    def threshold(self, posterior: float) -> float:
        """The quality above which the posterior is below `posterior`."""
        above = int(np.count_nonzero(self.posterior >= posterior))
        half = (self.centers[1] - self.centers[0]) / 2
        if above == 0:
            return -math.inf
        return float(self.centers[above - 1] + half)

    def densities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weighted densities of the bad and the good component at the centers."""
        bad, good = (np.exp(c.log_density(self.centers)) for c in (self.bad, self.good))
        return self.weight * bad, (1 - self.weight) * good


def fit_mixture(values: NDArray) -> Mixture | str:
    """Fit two components, if there are two.

    One component, and two from several starts, are fitted by maximum likelihood to one half of the
    values. A fit with two is believed where (a) the bad component is the lower one and less than
    half of all, and lies below 0, its mode by more than the scale above it, (b) both have a peak of
    their own: the values themselves are rarer between the peaks than at either, by a fifth at least
    and beyond chance, and (c) it predicts the other half better than one component by more than the
    BIC charges for its parameters. Of those, the likeliest is taken. No skewed or heavy-tailed
    distribution with one peak passes (b).
    A peak at 0 is not bad: those are tokens that a model is sure of, or that the reference left
    as they were.

    Args:
        values: a sample, shape (any,), finite, in an order that has nothing to do with them; 0 for
            a token that nothing is wrong with, as every measure has it.

    Returns:
        The mixture, or in words why there is none.
    """
    if values.size < MIN_TOKENS:
        return f"{values.size} are too few to fit two components to"
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    if not low < high:
        return "all but a few are equal"
    inside = np.clip(values, low, high)
    edges = np.linspace(low, high, NUM_BINS + 1)
    centers = (edges[:-1] + edges[1:]) / 2
    fitted, held = (np.histogram(part, edges)[0] for part in (inside[::2], inside[1::2]))
    scale = high - low
    one = _fit(fitted, centers, [_start(inside, 0.0, 1.0, scale)], None)
    best, why = None, "two components describe it no better than one"
    for share in START_SHARES:
        starts = [_start(inside, 0.0, share, scale), _start(inside, share, 1.0, scale)]
        parameters = _fit(fitted, centers, starts, share)
        weight, bad, good = _unpack_two(parameters)
        if bad.mode > good.mode:
            weight, bad, good = 1 - weight, good, bad
        if weight >= MAX_WEIGHT:
            why = "the lower component would be more than half of all"
            continue
        if bad.mode + bad.right >= 0:
            why = "the lower component lies at 0 or above, where nothing is wrong with a token"
            continue
        if not _are_peaks(values, bad, good):
            why = "it has one peak, or two that are not clear of each other"
            continue
        gain = _log_likelihood(held, centers, parameters) - _log_likelihood(held, centers, one)
        if 2 * gain <= (len(parameters) - len(one)) * math.log(max(held.sum(), 2)):
            continue
        score = _log_likelihood(fitted, centers, parameters)
        if best is None or score > best[0]:
            best = (score, weight, bad, good)
    if best is None:
        return why
    _, weight, bad, good = best
    counts = fitted + held
    return Mixture(weight, bad, good, centers, _posterior(counts, centers, weight, bad, good))


def _start(values: NDArray, begin: float, end: float, scale: float) -> list[float]:
    """Parameters for the values between two quantiles: mode, log left, log right, log shape."""
    first, middle, last = np.quantile(
        values, [begin + 0.1 * (end - begin), (begin + end) / 2, end - 0.1 * (end - begin)]
    )
    floor = scale / NUM_BINS
    left, right = max(middle - first, floor), max(last - middle, floor)
    return [float(middle), math.log(left), math.log(right), math.log(1.5)]


def _fit(
    counts: NDArray, centers: NDArray, starts: Sequence[list[float]], share: float | None
) -> NDArray[np.float64]:
    """Maximum likelihood from a start; one component, or two and the logit of the bad share."""
    # Imported here: it takes a while, and only this threshold needs it.
    from scipy.optimize import minimize

    start = [value for parameters in starts for value in parameters]
    width = centers[1] - centers[0]
    span = centers[-1] - centers[0]
    scales = (math.log(width / 2), math.log(2 * span))
    bounds = [(centers[0], centers[-1]), scales, scales, (math.log(0.5), math.log(6.0))]
    bounds = bounds * len(starts)
    if share is not None:
        start.append(math.log(share / (1 - share)))
        bounds.append((-9.0, 9.0))
    total = counts.sum()

    def loss(parameters: NDArray) -> float:
        return -_log_likelihood(counts, centers, parameters) / total

    clipped = [min(max(value, low), high) for value, (low, high) in zip(start, bounds, strict=True)]
    return np.asarray(minimize(loss, clipped, method="L-BFGS-B", bounds=bounds).x)


def _component(parameters: NDArray) -> Component:
    mode, left, right, shape = parameters
    return Component(float(mode), math.exp(left), math.exp(right), math.exp(shape))


def _unpack_two(parameters: NDArray) -> tuple[float, Component, Component]:
    weight = 1 / (1 + math.exp(-parameters[8]))
    return weight, _component(parameters[:4]), _component(parameters[4:8])


def _log_likelihood(counts: NDArray, centers: NDArray, parameters: NDArray) -> float:
    if len(parameters) == 4:
        return float(counts @ _component(parameters).log_density(centers))
    weight, bad, good = _unpack_two(parameters)
    densities = np.logaddexp(
        math.log(weight) + bad.log_density(centers), math.log1p(-weight) + good.log_density(centers)
    )
    return float(counts @ densities)


def _are_peaks(values: NDArray, bad: Component, good: Component) -> bool:
    """Whether the values themselves are rarer somewhere between the two modes than at either.

    Looks at windows a quarter of the distance between the modes wide: around each mode, and the
    emptiest of those between them.
    """
    width = (good.mode - bad.mode) / 4
    if width <= 0:
        return False
    ordered = np.sort(values)

    def count(centers: NDArray) -> NDArray[np.int64]:
        begin = np.searchsorted(ordered, centers - width / 2, side="left")
        return np.searchsorted(ordered, centers + width / 2, side="right") - begin

    peak = int(count(np.array([bad.mode, good.mode])).min())
    valley = int(count(np.linspace(bad.mode + width, good.mode - width, 50)).min())
    return valley <= MAX_VALLEY * peak and peak - valley > MIN_SIGMAS * math.sqrt(peak + valley)


def _posterior(
    counts: NDArray, centers: NDArray, weight: float, bad: Component, good: Component
) -> NDArray[np.float64]:
    """Probability of being bad in each bin: Bayes' rule, made to fall with quality.

    Where there are more values than the fit and chance explain, what is too many counts as good.
    """
    from sklearn.isotonic import isotonic_regression

    size = counts.sum() * (centers[1] - centers[0])
    bad_counts = size * weight * np.exp(bad.log_density(centers))
    expected = bad_counts + size * (1 - weight) * np.exp(good.log_density(centers))
    excess = np.maximum(counts - expected - 2 * np.sqrt(expected), 0)
    share = bad_counts / np.maximum(expected + excess, np.finfo(float).tiny)
    weights = np.maximum(counts, 1e-3)
    return np.asarray(isotonic_regression(share, sample_weight=weights, increasing=False))
