"""Samples of D_train token by token: which are shown, and the text of each token.

Goes in: scores, polarity, known noise and a `decode`. Comes out: a `TokenView`, samples cut into
context and response tokens with a level of colour each. Knows nothing of HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from forgetting.report.collect import (
    Floats,
    Ints,
    Selection,
    TokenSample,
    read_has_noise,
    read_samples,
    read_scores,
)

Decode = Callable[[Sequence[int]], str]

NUM_WORST, NUM_BEST, NUM_RANDOM = 12, 8, 20
# A page of whole 2,048-token samples would be tens of megabytes.
MAX_TOKENS_SHOWN = 512
LEVELS = 10
CLIP = (0.02, 0.98)


@dataclass(frozen=True)
class Token:
    """The scores of one response token."""

    token_id: int
    base_prob: float
    reference_prob: float
    quality: float
    polarity: int
    is_noisy: bool


@dataclass(frozen=True)
class Piece:
    """The shortest run of tokens that is whole characters; nearly always a single token.

    `level` is the mean quality on the scale of the page, -LEVELS (worst) to LEVELS (best).
    """

    text: str
    tokens: Sequence[Token]
    level: int

    @property
    def quality(self) -> float:
        """Mean over its tokens."""
        return sum(token.quality for token in self.tokens) / len(self.tokens)

    @property
    def polarity(self) -> int:
        """The lowest of its tokens: no negative token is hidden by its neighbour."""
        return min(token.polarity for token in self.tokens)

    @property
    def is_noisy(self) -> bool:
        """Whether any of its tokens is known to be noisy."""
        return any(token.is_noisy for token in self.tokens)


@dataclass(frozen=True)
class Block:
    """A stretch of a sample: context (`pieces` empty) or response (`context` empty)."""

    context: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class ShownSample:
    """One sample, ready to be laid out."""

    sample_id: int
    source: str
    noise_kind: str | None
    mean_quality: float
    share_not_learned: float
    num_noisy: int
    blocks: Sequence[Block]
    num_tokens_left_out: int


@dataclass(frozen=True)
class TokenView:
    """What the page shows; colours end at the qualities `low` (<= 0) and `high` (>= 0)."""

    variant: str
    quality: str
    """Name of the measure."""
    formula: str
    low: float
    high: float
    noise_known: bool
    parts: Sequence[tuple[str, Sequence[ShownSample]]]


def token_view(run_dir: Path, selection: Selection, decode: Decode, seed: int) -> TokenView | None:
    """The worst, the best and some random samples under one variant; None before scoring.

    `decode` turns token ids into text and must only ever add to the text when tokens are added,
    but for the bytes of a character that is not complete.

    Raises:
        InputError: data, scores and selection are not of the same corpus.
    """
    scores = read_scores(run_dir, selection.quality)
    if scores is None or len(scores.sample_ids) == 0:
        return None
    has_noise = read_has_noise(run_dir)
    quality_low, quality_high = np.quantile(scores.quality, CLIP)
    low, high = min(float(quality_low), 0.0), max(float(quality_high), 0.0)
    groups = choose_samples(scores.mean_quality, has_noise, seed)
    return TokenView(
        variant=selection.variant,
        quality=selection.quality,
        formula=selection.formula,
        low=low,
        high=high,
        noise_known=bool(has_noise.any()),
        parts=[
            (
                title,
                [
                    _shown(sample, decode, low, high)
                    for sample in read_samples(run_dir, selection.variant, scores, rows)
                ],
            )
            for title, rows in groups.items()
            if len(rows)
        ],
    )


def choose_samples(
    mean_quality: Floats, has_noise: npt.NDArray[np.bool_], seed: int
) -> dict[str, Ints]:
    """Rows of the worst, the best and random samples, no row twice.

    Where noise is known, half of the random ones hold noisy tokens, as far as there are any.
    """
    order = np.argsort(mean_quality, kind="stable")
    order = order[np.isfinite(mean_quality[order])]
    worst, rest = order[:NUM_WORST], order[NUM_WORST:]
    best, rest = rest[::-1][:NUM_BEST], rest[: max(len(rest) - NUM_BEST, 0)]
    shuffled = np.random.default_rng(seed).permutation(np.sort(rest))
    noisy, clean = shuffled[has_noise[shuffled]], shuffled[~has_noise[shuffled]]
    num_noisy = min(len(noisy), max(NUM_RANDOM // 2, NUM_RANDOM - len(clean)))
    random = np.sort(np.concatenate([noisy[:num_noisy], clean[: NUM_RANDOM - num_noisy]]))
    title = "Random samples, half of them with noise" if has_noise.any() else "Random samples"
    return {"Lowest mean quality": worst, "Highest mean quality": best, title: random}


def piece_spans(ids: Sequence[int], decode: Decode) -> list[tuple[int, int, str]]:
    """Cut `ids` into (start, stop, text) with whole characters; the texts join to the whole.

    Each piece is decoded after the piece before it, as tokenizers treat the first token apart.
    """
    spans: list[tuple[int, int, str]] = []
    before, start = 0, 0
    for stop in range(1, len(ids) + 1):
        known, text = decode(ids[before:start]), decode(ids[before:stop])
        is_last = stop == len(ids)
        if is_last or (text.startswith(known) and not text.endswith("\ufffd")):
            spans.append((start, stop, text[len(known) :]))
            before, start = start, stop
    return spans


def _shown(sample: TokenSample, decode: Decode, low: float, high: float) -> ShownSample:
    order = np.cumsum(sample.is_response) - 1  # position -> index among the response tokens
    end = len(sample.input_ids)
    left_out = max(len(sample.quality) - MAX_TOKENS_SHOWN, 0)
    if left_out:
        end = int(np.flatnonzero(sample.is_response)[MAX_TOKENS_SHOWN])
    blocks: list[Block] = []
    context: list[str] = []
    pieces: list[Piece] = []
    for start, stop, text in piece_spans(sample.input_ids[:end].tolist(), decode):
        inside = [order[i] for i in range(start, stop) if sample.is_response[i]]
        if inside:
            if context:
                blocks.append(Block("".join(context), ()))
                context = []
            quality = float(np.mean(sample.quality[inside]))
            ids = sample.input_ids[sample.is_response]
            pieces.append(
                Piece(
                    text, [_token(sample, ids, i) for i in inside], color_level(quality, low, high)
                )
            )
        else:
            if pieces:
                blocks.append(Block("", pieces))
                pieces = []
            context.append(text)
    if context or pieces:
        blocks.append(Block("".join(context), pieces))
    return ShownSample(
        sample_id=sample.sample_id,
        source=sample.source,
        noise_kind=sample.noise_kind,
        mean_quality=float(sample.quality.mean()),
        share_not_learned=float((sample.polarity != 1).mean()),
        num_noisy=0 if sample.noise is None else int(sample.noise.sum()),
        blocks=blocks,
        num_tokens_left_out=left_out,
    )


def _token(sample: TokenSample, ids: Ints, index: int) -> Token:
    return Token(
        token_id=int(ids[index]),
        base_prob=math.exp(sample.base_log_probs[index]),
        reference_prob=math.exp(sample.reference_log_probs[index]),
        quality=float(sample.quality[index]),
        polarity=int(sample.polarity[index]),
        is_noisy=sample.noise is not None and bool(sample.noise[index]),
    )


def color_level(quality: float, low: float, high: float) -> int:
    """Quality between `low` and 0, or 0 and `high`, in `LEVELS` even steps to each side."""
    end = high if quality > 0 else -low
    share = min(abs(quality) / end, 1.0) if end > 0 else float(quality != 0)
    return round(math.copysign(share * LEVELS, quality))
