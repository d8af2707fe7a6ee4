"""Turns what forward passes say about response tokens into a feature matrix.

Input: per-token statistics of two or four passes, and the number of response tokens of each
sample. Output: float32 features, one row for each token, and their names. Each feature looks at
the token, its neighbors or its sample, never at another sample, so a corpus can be computed shard
by shard (a shard is whole samples) with the same result. Knows nothing of labels or text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.method.columns import PASSES

Floats = NDArray[np.float64]

MODEL_FREE = (
    "tokens before",
    "tokens after",
    "place",
    "length",
    "sentence length",
    "sentence place",
    "sentence, tokens after",
)
"""Features that no model says anything about."""
# Centered windows of 2k + 1 tokens, and the tokens on one side only.
_HALF_WIDTHS = (1, 3, 7)
_SIDES = (4, 12)
_SPAN_WIDTHS = (8, 16)
_SMALLEST_STD = 0.05
_SMALLEST_MEAN_LOSS = 0.05
# A model may give a token no probability at all.
_LOWEST_LOG_PROB = -1e3


@dataclass(frozen=True)
class PassStatistics:
    """What one forward pass says about each response token; arrays of shape (response tokens,)."""

    log_probs: NDArray
    """Natural logarithm of the token's probability p."""
    entropy: NDArray
    """Entropy of the prediction, in nats."""
    surprise_std: NDArray
    """Standard deviation of -log p(v) over tokens v drawn from the prediction, in nats."""
    best_other_log_prob: NDArray
    """Largest log-probability among all tokens but this one."""
    rank: NDArray
    """Number of tokens that are more likely than this one."""
    sum_squares: NDArray
    """Sum of the squared probabilities of the prediction."""

    def __post_init__(self) -> None:
        sizes = {np.shape(getattr(self, field.name)) for field in fields(self)}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1:
            raise ValueError(f"statistics of one pass have different shapes: {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.log_probs)

    def take(self, index: NDArray | slice) -> PassStatistics:
        """The statistics of some tokens."""
        return PassStatistics(
            **{field.name: getattr(self, field.name)[index] for field in fields(self)}
        )


class Neighborhood:
    """The place of each response token in its sample.

    Args:
        lengths: response tokens of each sample, shape (samples,); zeros are allowed.
    """

    def __init__(self, lengths: ArrayLike) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        ends = np.cumsum(self.lengths)
        self.size = int(ends[-1]) if ends.size else 0
        self.first = np.repeat(ends - self.lengths, self.lengths)
        """Index of the first token of each token's sample, shape (tokens,)."""
        self.end = np.repeat(ends, self.lengths)
        """Index after the last token of each token's sample, shape (tokens,)."""
        self.index = np.arange(self.size)

    def mean(self, values: Floats, before: int, after: int) -> Floats:
        """Mean over tokens i - before ... i + after of the same sample. Where none of them
        exists, the value of the token itself. Either may be negative: (5, -1) is the five before.
        """
        low = np.clip(self.index - before, self.first, self.end)
        high = np.clip(self.index + after + 1, self.first, self.end)
        return self._mean_between(values, low, high)

    def sample_mean(self, values: Floats) -> Floats:
        """Mean over the token's sample."""
        return self._mean_between(values, self.first, self.end)

    def _mean_between(self, values: Floats, low: NDArray, high: NDArray) -> Floats:
        sums = np.r_[0.0, np.cumsum(values)]
        count = high - low
        return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), values)

    def shift(self, values: Floats, by: int) -> Floats:
        """The value `by` tokens later (earlier if negative); 0 outside the sample."""
        place = self.index + by
        inside = (place >= self.first) & (place < self.end)
        return np.where(inside, values[np.clip(place, 0, max(self.size - 1, 0))], 0.0)

    def lowest(self, values: Floats, before: int, after: int) -> Floats:
        """Minimum over tokens i - before ... i + after of the same sample; includes token i."""
        result = values.copy()
        for by in range(-before, after + 1):
            place = np.clip(self.index + by, self.first, self.end - 1)
            np.minimum(result, values[place], out=result)
        return result

    def lowest_span(self, values: Floats, width: int) -> Floats:
        """Smallest mean over the spans of `width` tokens that hold the token, within its sample;
        the sample's mean where it is shorter."""
        start = np.maximum(np.minimum(self.index, self.end - width), self.first)
        high = np.minimum(start + width, self.end)
        # The mean of the span that begins at a token, where a whole one still fits.
        means = self._mean_between(values, start, high)
        return self.lowest(means, width - 1, 0)


def compute_features(
    passes: Mapping[str, PassStatistics],
    lengths: ArrayLike,
    ends_segment: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Features of response tokens.

    Args:
        passes: statistics by pass. `base` and `base_empty` are required; `reference` and
            `reference_empty` add features.
        lengths: response tokens of each sample, in the order of the statistics, shape (samples,).
        ends_segment: whether a token ends a sentence or a line, shape (tokens,). It adds features
            of the whole sentence.

    Returns:
        The matrix, shape (tokens, features), float32 and finite; and the names of the features.

    Raises:
        ValueError: a pass is missing or unknown, or sizes do not agree.
    """
    near = Neighborhood(lengths)
    _check(passes, near.size, ends_segment)
    named: dict[str, Floats] = {}
    for name, values in _all_features(passes, near, ends_segment):
        named[name] = values
    matrix = np.empty((near.size, len(named)), dtype=np.float32)
    for column, values in enumerate(named.values()):
        matrix[:, column] = np.nan_to_num(np.clip(values, -1e6, 1e6))
    return matrix, tuple(named)


def _check(
    passes: Mapping[str, PassStatistics], size: int, ends_segment: NDArray[np.bool_] | None
) -> None:
    missing = [name for name in PASSES[:2] if name not in passes]
    unknown = [name for name in passes if name not in PASSES]
    if missing or unknown:
        raise ValueError(f"passes missing: {missing}, unknown: {unknown}")
    sizes = {name: len(statistics) for name, statistics in passes.items()}
    if ends_segment is not None:
        sizes["ends_segment"] = len(ends_segment)
    for name, found in sizes.items():
        if found != size:
            raise ValueError(f"{name} has {found} tokens, but the samples have {size}")


def _all_features(
    passes: Mapping[str, PassStatistics], near: Neighborhood, ends_segment: NDArray | None
) -> Iterator[tuple[str, Floats]]:
    signals: dict[str, Floats] = {}
    for name in PASSES:
        if name in passes:
            signals |= {f"{name} {key}": value for key, value in of_pass(passes[name]).items()}
    signals |= _between(signals, "base", "base_empty", "prompt")
    central = [
        "base loss",
        "base z",
        "base margin",
        "base rank",
        "base entropy",
        "base_empty loss",
        "base_empty z",
        "prompt gain",
        "prompt entropy gap",
    ]
    if "reference" in passes:
        signals |= _between(signals, "reference", "base", "influence")
        central += ["reference loss", "influence gain"]
    if "reference_empty" in passes and "reference" in passes:
        signals |= _between(signals, "reference", "reference_empty", "reference prompt")
        central += ["reference prompt gain"]
    yield from signals.items()
    for name in central:
        yield from _around(name, signals[name], near)
    for name in ("base loss", "base z", "base_empty loss", "prompt gain"):
        yield from _spans(name, signals[name], near)
    yield "loss ratio of sample", _loss_ratio(signals, near)
    yield from _position(near)
    if ends_segment is not None:
        yield from _segments(signals, near, np.asarray(ends_segment, dtype=bool))


def of_pass(statistics: PassStatistics) -> dict[str, Floats]:
    """What one pass says about each token by itself.

    With l = -log p of the token, H the entropy and s the standard deviation of the surprise:
    `loss` l; `z` (l - H) / s; `margin` log-probability of the best other token less that of this
    one; `rank` log(1 + rank); `entropy` H; `peak` log-probability of the most likely token;
    `error` sqrt(sum p(v)^2 - 2 p + 1), the norm of the gradient at the logits.
    """
    log_p = np.maximum(np.asarray(statistics.log_probs, dtype=np.float64), _LOWEST_LOG_PROB)
    entropy = np.asarray(statistics.entropy, dtype=np.float64)
    std = np.asarray(statistics.surprise_std, dtype=np.float64)
    other = np.asarray(statistics.best_other_log_prob, dtype=np.float64)
    other = np.maximum(other, _LOWEST_LOG_PROB)
    squares = np.asarray(statistics.sum_squares, dtype=np.float64)
    error = np.sqrt(np.maximum(squares - 2 * np.exp(log_p) + 1, 0))
    return {
        "loss": -log_p,
        "z": (-log_p - entropy) / np.maximum(std, _SMALLEST_STD),
        "margin": other - log_p,
        "rank": np.log1p(np.asarray(statistics.rank, dtype=np.float64)),
        "entropy": entropy,
        "peak": np.maximum(other, log_p),
        "error": error,
    }


def _between(signals: Mapping[str, Floats], one: str, other: str, name: str) -> dict[str, Floats]:
    """How pass `one` differs from pass `other`: `gain` is its log-probability less the other's."""
    return {
        f"{name} gain": signals[f"{other} loss"] - signals[f"{one} loss"],
        f"{name} entropy gap": signals[f"{other} entropy"] - signals[f"{one} entropy"],
        f"{name} z gap": signals[f"{other} z"] - signals[f"{one} z"],
        f"{name} rank gap": signals[f"{other} rank"] - signals[f"{one} rank"],
    }


def _loss_ratio(signals: Mapping[str, Floats], near: Neighborhood) -> Floats:
    """The sample's mean loss over that without its prompt, instruction-following difficulty (IFD,
    Li et al. 2023, arXiv 2308.12032): near 1 where the prompt does not help."""
    with_prompt, without = (near.sample_mean(signals[f"{p} loss"]) for p in PASSES[:2])
    return with_prompt / np.maximum(without, _SMALLEST_MEAN_LOSS)


def _around(name: str, values: Floats, near: Neighborhood) -> Iterator[tuple[str, Floats]]:
    """Neighbors, windows and the sample."""
    for half in _HALF_WIDTHS:
        yield f"{name}, mean of {2 * half + 1}", near.mean(values, half, half)
    yield f"{name}, mean of sample", near.sample_mean(values)
    for by in (-2, -1, 1, 2):
        yield f"{name}, {abs(by)} {'before' if by < 0 else 'after'}", near.shift(values, by)
    for side in _SIDES:
        yield f"{name}, mean of {side} before", near.mean(values, side, -1)
        yield f"{name}, mean of {side} after", near.mean(values, -1, side)


def _spans(name: str, values: Floats, near: Neighborhood) -> Iterator[tuple[str, Floats]]:
    """The most unusual span around a token, and how the token's side of a change differs."""
    for width in _SPAN_WIDTHS:
        yield f"{name}, lowest of {width}", near.lowest_span(values, width)
        yield f"{name}, highest of {width}", -near.lowest_span(-values, width)
    yield f"{name}, smallest of 5", near.lowest(values, 2, 2)
    yield f"{name}, largest of 5", -near.lowest(-values, 2, 2)
    before, after = near.mean(values, near.size, -1), near.mean(values, 0, near.size)
    yield f"{name}, mean of all before", before
    yield f"{name}, mean of all after", after
    spread = near.sample_mean(values**2) - near.sample_mean(values) ** 2
    yield f"{name}, deviation of sample", np.sqrt(np.maximum(spread, 0))


def _position(near: Neighborhood) -> Iterator[tuple[str, Floats]]:
    after = (near.end - near.index - 1).astype(np.float64)
    before = (near.index - near.first).astype(np.float64)
    yield "tokens before", before
    yield "tokens after", after
    yield "place", before / np.maximum(before + after, 1)
    yield "length", before + after + 1


def _segments(
    signals: Mapping[str, Floats], near: Neighborhood, ends: NDArray[np.bool_]
) -> Iterator[tuple[str, Floats]]:
    """A sentence as a whole, and how it differs from the sentences before and after it."""
    starts = near.index == near.first
    starts[1:] |= ends[:-1]
    number = np.cumsum(starts) - 1
    lengths = np.bincount(number) if near.size else np.zeros(0, dtype=np.int64)
    within = Neighborhood(lengths)
    before = np.maximum(within.first - 1, near.first)
    after = np.minimum(within.end, near.end - 1)
    yield "sentence length", (within.end - within.first).astype(np.float64)
    yield "sentence place", (within.index - within.first).astype(np.float64)
    yield "sentence, tokens after", (within.end - within.index - 1).astype(np.float64)
    for name in ("base loss", "base z", "base_empty loss", "base_empty z", "prompt gain"):
        values = signals[name]
        mean = within.sample_mean(values)
        yield f"{name}, mean of sentence", mean
        yield f"{name}, sentence less sample", mean - near.sample_mean(values)
        yield f"{name}, sentence before", np.where(before >= within.first, 0.0, mean[before])
        yield f"{name}, sentence after", np.where(after < within.end, 0.0, mean[after])
        yield f"{name}, start of sentence", values[within.first]
        so_far = within.mean(values, near.size, 0)
        yield f"{name}, sentence so far", so_far
