"""All samples and tokens of a scored run in memory, and the questions that the views ask.

Input: samples with their scores, how they are divided, what the detector found in them, and a
`decode`. Output: pages of a filtered and sorted list of samples, single samples cut into pieces
with their numbers. Numbers are arrays over all samples or tokens;
text is decoded on request. Knows nothing of files, HTML or HTTP.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from forgetting.escaping import visible
from forgetting.inspector.colors import Scale
from forgetting.inspector.expected import ExpectedTokens
from forgetting.inspector.pieces import Decode, piece_spans
from forgetting.inspector.posteriors import (
    PosteriorCounts,
    highest_of,
    likely_kinds,
    worst_spans,
)
from forgetting.inspector.queries import Query
from forgetting.inspector.record_texts import RecordTexts
from forgetting.inspector.search import TextIndex
from forgetting.inspector.shown import Explain, Judgment, ShownRun, ShownSelection
from forgetting.inspector.thresholds import (
    RHOS,
    UNKNOWN,
    Bools,
    Floats,
    Ints,
    NoiseCurve,
    Thresholds,
    decimals,
    known_noise,
    step_of,
)
from forgetting.method.measures import Measure
from forgetting.rundir.samples import Samples
from forgetting.rundir.scores import LOG_PROBS

PREVIEW_TOKENS = 32
LIKELY_BAD = 0.5
"""Posterior from which a token is flagged, unless the page asks for another."""


class Inspection:
    """A scored corpus that is selected from or judged by the detector, ready to be browsed.

    Args:
        run: what the page says of the run.
        samples: D_train.
        selection: how the tokens are divided.
        columns: `quality` and `polarity` of all response tokens, and `base_log_probs` and
            `reference_log_probs` if the run has them, each of shape (response tokens,).
        decode: text of token ids.
        judgment: what the detector found; None if it has not run.
        explain: names the features that speak for a token being bad; None if nothing can.
        texts: the records behind the samples; None if the run does not store them.
        expected: what the model expected in place of tokens; None if the run does not store it.
        measures: measures of quality that the scores allow, by name.
        compute: quality of all response tokens by one of `measures`.
    """

    def __init__(
        self,
        run: ShownRun,
        samples: Samples,
        selection: ShownSelection,
        columns: dict[str, npt.NDArray[Any]],
        decode: Decode,
        judgment: Judgment | None = None,
        explain: Explain | None = None,
        texts: RecordTexts | None = None,
        expected: ExpectedTokens | None = None,
        measures: Mapping[str, Measure] | None = None,
        compute: Callable[[Measure], Floats] | None = None,
    ) -> None:
        self.run = run
        self.texts = texts
        self.expected = expected
        self.measures = measures if measures is not None and compute is not None else {}
        self._compute = compute
        self.selection = selection
        self.columns = columns
        self.judgment = judgment
        self.explain = explain
        self.by_sample = selection.granularity == "sequence"
        """Whether whole samples are selected, by their mean quality."""
        self.by_source = selection.balance == "source"
        """Whether rho is a share of each source."""
        self._decode = decode
        self._decoding = threading.Lock()
        self._table = samples.table.select(["sample_id", "source", "noise_kind"])
        self.sample_ids = samples.sample_ids
        self.input_ids = samples.input_ids
        self.token_starts = samples.token_starts
        self.is_response = samples.is_response
        self.starts = samples.response_starts
        """Sample i's response tokens are [starts[i], starts[i + 1])."""
        names = np.asarray(samples.table["source"].to_pylist())
        self.sources, self.source_of = np.unique(names, return_inverse=True)
        self.source_names = [visible(str(name)) for name in self.sources]
        self.noise = known_noise(samples)
        """Per response token: 1 noisy, 0 clean, -1 not known; shape (response tokens,)."""
        self.num_noisy = self._per_sample(self.noise > 0)
        posterior = np.zeros(len(self.noise)) if judgment is None else judgment.posterior
        self.expected_bad: Floats = self._per_sample(posterior)
        """Expected bad tokens of each sample, 0 without the detector; shape (samples,)."""
        self.highest: Floats = highest_of(posterior, self.starts)
        """The highest posterior of each sample, shape (samples,)."""
        self.worst_span: Floats = worst_spans(posterior, self._begins(), self.starts, LIKELY_BAD)
        """Expected bad tokens of each sample's worst span, shape (samples,)."""
        kinds = [] if judgment is None else judgment.kinds
        token_kinds = np.full(len(self.noise), -1) if judgment is None else judgment.kind
        self.kind_of = likely_kinds(posterior, token_kinds, self.starts, len(kinds))
        """Likely kind of each sample, or -1; shape (samples,)."""
        self.counts = PosteriorCounts.of(posterior, self.highest)
        self.is_end = np.isin(samples.response_ids, selection.end_token_ids)
        """Tokens that are never negative, shape (response tokens,)."""
        self._group_of = self.source_of if self.by_source else np.zeros(len(self), np.int64)
        self.has_base, self.has_reference = (name in columns for name in LOG_PROBS)
        """Whether the corpus was scored by the base, and by another model as the reference."""
        if self.has_base and self.has_reference:
            base, reference = (columns[name] for name in LOG_PROBS)
            self.has_reference = not np.array_equal(base, reference)
        self._measure()
        self._position = np.argsort(self._orders["position"])
        self._texts = TextIndex(len(self), self._text)
        self._own_negatives = self._per_sample(self.polarity < 0)

    def _measure(self) -> None:
        """Compute all that follows from the quality."""
        means = self._per_sample(self.quality) / np.maximum(self.lengths, 1)
        self.mean_quality: Floats = np.where(self.lengths > 0, means, np.nan)
        self._sorted_quality = np.sort(self.quality)
        self.thresholds = self._thresholds()
        """One per source if `by_source`, else one."""
        self.scale = Scale.of(self.quality, has_zero=self.selection.measure.has_zero)
        self.curve = self._curve()
        self._orders = self._sorted()
        self._negatives: tuple[int, Ints] | None = None

    def measured_by(self, name: str) -> Inspection:
        """The same corpus with another measure of quality. Shares all but what depends on it.

        Args:
            name: one of `measures`.

        Raises:
            KeyError: the scores do not allow this measure.
            InputError: the scores are missing or damaged.
        """
        if name == self.selection.quality:
            return self
        measure = self.measures[name]
        assert self._compute is not None
        other = copy.copy(self)
        other.selection = replace(self.selection, quality=name, measure=measure)
        other.columns = {**self.columns, "quality": self._compute(measure)}
        other._measure()
        return other

    def __len__(self) -> int:
        return len(self.token_starts) - 1

    def _begins(self) -> Bools:
        """Response tokens that do not follow another one, shape (response tokens,)."""
        places = np.flatnonzero(self.is_response)
        begins = np.diff(places, prepend=-2) != 1
        begins[self.starts[:-1][self.lengths > 0]] = True
        return begins

    @property
    def lengths(self) -> Ints:
        """Response tokens of each sample, shape (samples,)."""
        return np.diff(self.starts)

    @property
    def quality(self) -> Floats:
        """Shape (response tokens,)."""
        return self.columns["quality"]

    @property
    def polarity(self) -> Ints:
        """As the run selected, shape (response tokens,)."""
        return self.columns["polarity"]

    def _per_sample(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sum over each sample's response tokens."""
        kind = np.float64 if values.dtype.kind == "f" else np.int64
        # One value more, where samples without tokens at the end begin.
        sums = np.add.reduceat(np.append(values, kind(0)), self.starts[:-1], dtype=kind)
        return np.where(self.lengths > 0, sums, 0)  # reduceat gives an empty slice its neighbor

    def _thresholds(self) -> list[Thresholds]:
        if self.by_sample:
            known = self.lengths > 0
            values, groups = self.mean_quality[known], self._group_of[known]
        else:
            values, groups = self.quality, np.repeat(self._group_of, self.lengths)
        num_groups = len(self.sources) if self.by_source else 1
        rate = self.selection.forget_rate
        return [Thresholds.of(values[groups == group], rate) for group in range(num_groups)]

    def _curve(self) -> NoiseCurve | None:
        known = self.noise != UNKNOWN
        if not (self.noise > 0).any():
            return None
        values = np.repeat(self.mean_quality, self.lengths) if self.by_sample else self.quality
        groups = np.repeat(self._group_of, self.lengths)
        zeros = np.zeros(len(RHOS), np.int64)
        total = NoiseCurve(zeros, zeros)
        for group, at in enumerate(self.thresholds):
            chosen = known & (groups == group)
            total += NoiseCurve.of(values[chosen], self.noise[chosen] > 0, self.is_end[chosen], at)
        return total

    def _sorted(self) -> dict[str, Ints]:
        worst = np.argsort(self.mean_quality, kind="stable")
        known = np.isfinite(self.mean_quality[worst])
        best = np.concatenate([worst[known][::-1], worst[~known]])
        orders = {"worst": worst, "best": best, "position": np.arange(len(self))}
        if self.texts is not None and self.selection.variant is None:
            orders["position"] = np.array(self.texts.order())
        if self.judgment is not None:
            orders["bad"] = np.argsort(-self.expected_bad, kind="stable")
            orders["span"] = np.argsort(-self.worst_span, kind="stable")
        if self.has_base:
            orders["loss"] = np.argsort(-self.mean_loss, kind="stable")
        return orders

    @property
    def mean_loss(self) -> Floats:
        """Mean loss under the base model in nats, 0 without tokens or scores; shape (samples,)."""
        log_probs = self.columns.get("base_log_probs", np.zeros(len(self.noise)))
        return -self._per_sample(log_probs) / np.maximum(self.lengths, 1)

    def num_negative(self, rho: float | None) -> Ints:
        """Negative tokens of each sample at a rho (None: as the run selected), shape (samples,)."""
        if rho is None:
            return self._own_negatives
        step = step_of(rho)
        known = self._negatives
        if known is not None and known[0] == step:
            return known[1]
        below = np.array([at.negative[step] for at in self.thresholds])[self._group_of]
        if self.by_sample:
            negative = np.repeat(self.mean_quality < below, self.lengths)
        else:
            negative = self.quality < np.repeat(below, self.lengths)
        counts = self._per_sample(negative & ~self.is_end)
        self._negatives = (step, counts)
        return counts

    def find(self, query: Query) -> tuple[Ints, int]:
        """Rows of D_train that match a query, in its order, and how many texts were searched.

        Until all texts are decoded, a search for text knows only the first of them.
        """
        mask = np.ones(len(self), dtype=bool)
        if query.source is not None:
            mask &= self.source_of == query.source
        if query.kind is not None:
            mask &= self.kind_of == query.kind
        if query.least is not None:
            mask &= self.highest >= np.float32(query.least)
        if query.only is not None:
            mask &= np.isin(self.sample_ids, query.only)
        if query.without:
            mask &= ~np.isin(self.sample_ids, query.without)
        if query.min_negative > 0:
            least = query.min_negative * self.lengths - 1e-9
            mask &= (self.num_negative(query.rho) >= least) & (self.lengths > 0)
        num_searched = len(self)
        if query.text:
            matches, num_searched = self._texts.search(query.text)
            mask &= matches
        order = self._orders[query.sort]
        return order[mask[order]], num_searched

    def page(self, query: Query) -> dict[str, Any]:
        """A page of the list that a query asks for, as the page reads it."""
        rows, num_searched = self.find(query)
        offset = query.offset
        if query.row is not None and (at := np.flatnonzero(rows == query.row)).size:
            offset = int(at[0]) // query.limit * query.limit
        shown = rows[offset : offset + query.limit]
        negatives = self.num_negative(query.rho)
        return {
            "total": len(rows),
            "offset": offset,
            "num_searched": num_searched,
            "rows": [self.summary(int(row), int(negatives[row])) for row in shown],
        }

    def summary(self, row: int, num_negative: int) -> dict[str, Any]:
        """A line of the list."""
        mean = float(self.mean_quality[row])
        return {
            "row": row,
            "position": int(self._position[row]),
            "id": self._table["sample_id"][row].as_py(),
            "source": int(self.source_of[row]),
            "mean": mean if np.isfinite(mean) else None,
            "num_tokens": int(self.lengths[row]),
            "num_negative": num_negative,
            "num_noisy": int(self.num_noisy[row]),
            "num_bad": None if self.judgment is None else float(self.expected_bad[row]),
            "highest": decimals(self.highest[row : row + 1])[0],
            "span": float(self.worst_span[row]),
            "kind_of_all": int(self.kind_of[row]),
            "loss": float(self.mean_loss[row]) if self.has_base else None,
            "origin": None if self.texts is None else self.texts.origin(row),
            "preview": self._preview(row),
        }

    def _preview(self, row: int) -> str:
        tokens = slice(self.token_starts[row], self.token_starts[row + 1])
        ids = self.input_ids[tokens][self.is_response[tokens]]
        last = int(self.starts[row]) + len(ids) - 1
        # The mark of the chat template at the end is not part of the answer.
        ids = ids[:-1] if len(ids) and self.is_end[last] else ids
        ids = ids[:PREVIEW_TOKENS]
        return visible(" ".join(self.decode(ids.tolist()).replace("\ufffd", "").split()))

    def sample(self, row: int, max_tokens: int) -> dict[str, Any]:
        """One sample with all of its numbers, as the page reads it.

        Args:
            row: index in D_train.
            max_tokens: response tokens that are shown; the others are counted in `num_left_out`.
        """
        tokens = slice(int(self.token_starts[row]), int(self.token_starts[row + 1]))
        ids, is_response = self.input_ids[tokens], self.is_response[tokens]
        end, length = len(ids), int(self.lengths[row])
        if length > max_tokens:
            end = int(np.flatnonzero(is_response)[max_tokens])
        shown = slice(int(self.starts[row]), int(self.starts[row]) + min(length, max_tokens))
        ranks = np.searchsorted(self._sorted_quality, self.quality[shown]) + 1
        noise, judged = self.noise[shown], self.judgment
        return {
            **self.summary(row, int(self._own_negatives[row])),
            "noise_kind": visible(self._table["noise_kind"][row].as_py() or ""),
            "num_left_out": max(length - max_tokens, 0),
            "blocks": self._blocks(ids[:end], is_response[:end]),
            "ids": ids[:end][is_response[:end]].tolist(),
            "base": self._probabilities("base_log_probs", shown),
            "reference": self._probabilities("reference_log_probs", shown),
            "quality": decimals(self.quality[shown]),
            "polarity": self.polarity[shown].tolist(),
            "noise": (noise > 0).astype(int).tolist() if (noise > 0).any() else None,
            "rank": ranks.tolist(),
            "posterior": None if judged is None else decimals(judged.posterior[shown]),
            "kind": None if judged is None else judged.kind[shown].tolist(),
            "expected": {} if self.expected is None else self.expected(row),
            **({} if self.texts is None else self.texts.shown(row, min(length, max_tokens))),
        }

    def telling(self, row: int, tokens: Sequence[int]) -> list[list[tuple[str, float]]]:
        """Features that speak most for some tokens of a sample being bad, see `Explain`.

        Raises:
            ValueError: the response has no such token.
        """
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.lengths[row]:
            raise ValueError(tokens)
        return [[] for _ in tokens] if self.explain is None else self.explain(row, tokens)

    def _probabilities(self, column: str, shown: slice) -> list[float] | None:
        """Probabilities of some tokens under a model; None if it did not score them."""
        log_probs = self.columns.get(column)
        return None if log_probs is None else decimals(np.exp(log_probs[shown]))

    def _blocks(self, ids: Ints, is_response: Bools) -> list[Any]:
        """Context as text; a response as a list of (text, number of its tokens)."""
        blocks: list[Any] = []
        for start, stop, text in piece_spans(ids.tolist(), self.decode):
            inside = int(is_response[start:stop].sum())
            text = visible(text)
            if inside:
                if not blocks or isinstance(blocks[-1], str):
                    blocks.append([])
                blocks[-1].append([text, inside])
            elif blocks and isinstance(blocks[-1], str):
                blocks[-1] += text
            else:
                blocks.append(text)
        return blocks

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids. Thread-safe."""
        with self._decoding:
            return self._decode(ids)

    def _text(self, row: int) -> str:
        if self.texts is not None:
            return self.texts.text(row)
        return self.decode(
            self.input_ids[self.token_starts[row] : self.token_starts[row + 1]].tolist()
        )
