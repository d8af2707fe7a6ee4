"""All samples and tokens of a scored run in memory, and the questions that are asked of them.

Goes in: a run directory after `select`, and a `decode`. Comes out: pages of a filtered, sorted
list of samples, single samples cut into pieces with their numbers, and what holds for the whole
corpus. Numbers are arrays over all samples or tokens; text is decoded when it is asked for.
Knows nothing of HTML or HTTP; this is the only module of the inspector that reads the run.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from forgetting.errors import InputError
from forgetting.inspector.pieces import Decode, piece_spans
from forgetting.inspector.rule import (
    NUM_LEVELS,
    NoiseCurve,
    Rule,
    forget_level,
    level_of,
    noise_curve,
    thresholds,
)
from forgetting.method import MEASURES
from forgetting.report.collect import Run, Selection, read_run, read_scores
from forgetting.report.escaping import visible
from forgetting.rundir.samples import Samples, list_column

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

PREFERRED = "forgetting"
COLOR_LEVELS = 10
CLIP = (0.02, 0.98)
PREVIEW_TOKENS = 32
UNKNOWN = -1
Sort = Literal["worst", "best", "position"]


@dataclass(frozen=True)
class Query:
    """Which samples are listed, in which order."""

    rho: float | None = None
    """At which share of positive tokens; None: as the run selected."""
    source: int | None = None
    """Place in `Inspection.sources`; None: all."""
    text: str = ""
    """Searched in prompt and response, upper and lower case alike."""
    min_negative: float = 0.0
    """Least share of a sample's response tokens that is negative."""
    sort: Sort = "worst"
    """By mean quality, lowest or highest first, or by place in D_train."""
    offset: int = 0
    limit: int = 50


@dataclass(frozen=True)
class Scale:
    """The ends and the middle of the colours, in units of quality."""

    low: float
    center: float
    high: float

    def share(self, quality: float) -> float:
        """-1 (at `low` or below) to 1 (at `high` or above), 0 in the middle.

        The root of the distance: of the tokens, most lie near the middle of a long range.
        """
        distance = quality - self.center
        end = self.high - self.center if distance > 0 else self.center - self.low
        share = min(abs(distance) / end, 1.0) if end > 0 else float(distance != 0)
        return math.copysign(math.sqrt(share), distance)


class Inspection:
    """A scored and selected corpus, ready to be looked at.

    Args:
        name: of the run.
        samples: D_train.
        selection: summary of the variant that is looked at.
        rule: how that variant selects.
        columns: `base_log_probs`, `reference_log_probs`, `quality` and `polarity` of all response
            tokens, each of shape (response tokens,).
        end_token_ids: of the tokenizer.
        decode: text of token ids.
    """

    def __init__(
        self,
        name: str,
        samples: Samples,
        selection: Selection,
        rule: Rule,
        columns: dict[str, npt.NDArray[Any]],
        end_token_ids: Sequence[int],
        decode: Decode,
    ) -> None:
        self.name = name
        self.selection = selection
        self.rule = rule
        self.columns = columns
        self.end_token_ids = sorted(end_token_ids) if rule.keep_ends else []
        self._decode = decode
        self._decoding = threading.Lock()
        self._table = samples.table.select(["sample_id", "source", "noise_kind"])
        self.input_ids = samples.input_ids
        self.token_starts = samples.token_starts
        self.is_response = samples.is_response
        self.starts = samples.response_starts
        """Sample i's response tokens are [starts[i], starts[i + 1])."""
        names = np.asarray(samples.table["source"].to_pylist())
        self.sources, self.source_of = np.unique(names, return_inverse=True)
        self.source_names = [visible(str(name)) for name in self.sources]
        self.noise = _known_noise(samples)
        """Per response token: 1 noisy, 0 clean, -1 not known; shape (response tokens,)."""
        means = self._per_sample(columns["quality"]) / np.maximum(self.lengths, 1)
        self.mean_quality: Floats = np.where(self.lengths > 0, means, np.nan)
        self.num_noisy = self._per_sample(self.noise > 0)
        self.is_end = np.isin(samples.response_ids, self.end_token_ids)
        self._sorted_quality = np.sort(columns["quality"])
        self._group_of = self.source_of if rule.by_source else np.zeros(len(self), np.int64)
        base, reference = (columns[f"{name}_log_probs"] for name in ("base", "reference"))
        self.has_reference = not np.array_equal(base, reference)
        """False where the corpus was scored by the base alone, which then stands in for both."""
        self.sketches = self._sketches()
        self.scale = self._scale()
        self.curve = self._curve()
        self._orders = self._sorted()
        self._texts = _TextIndex(self)
        self._own_negatives = self._per_sample(self.polarity < 0)
        self._negatives: tuple[float, Ints] | None = None

    def __len__(self) -> int:
        return len(self.token_starts) - 1

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
        if not len(values):
            return np.zeros(len(self), kind)
        sums = np.add.reduceat(values, np.minimum(self.starts[:-1], len(values) - 1), dtype=kind)
        return np.where(self.lengths > 0, sums, 0)  # reduceat gives an empty slice its neighbour

    def _sketches(self) -> list[Floats]:
        if self.rule.by_sample:
            known = self.lengths > 0
            values, groups = self.mean_quality[known], self._group_of[known]
        elif not self.rule.by_source:
            return [thresholds(self._sorted_quality)]
        else:
            values, groups = self.quality, np.repeat(self._group_of, self.lengths)
        num_groups = len(self.sources) if self.rule.by_source else 1
        return [thresholds(np.sort(values[groups == group])) for group in range(num_groups)]

    def _scale(self) -> Scale:
        if not len(self.quality):
            return Scale(0.0, 0.0, 0.0)
        low, high = (float(q) for q in np.quantile(self.quality, CLIP))
        # A measure that is never above 0 has no natural middle.
        has_zero = MEASURES[self.selection.quality].has_zero
        center = 0.0 if has_zero else float(np.median(self.quality))
        return Scale(min(low, center), center, max(high, center))

    def _curve(self) -> NoiseCurve | None:
        known = self.noise != UNKNOWN
        if not (self.noise > 0).any():
            return None
        values = self.quality
        if self.rule.by_sample:
            values = np.repeat(self.mean_quality, self.lengths)
        groups = np.repeat(self._group_of, self.lengths)
        parts = []
        for group, sketch in enumerate(self.sketches):
            chosen = known & (groups == group)
            part = (values[chosen], self.noise[chosen] > 0, self.is_end[chosen])
            parts.append(noise_curve(*part, sketch, self.rule))
        return NoiseCurve(
            np.sum([part.num_not_positive for part in parts], axis=0),
            np.sum([part.num_found for part in parts], axis=0),
        )

    def _sorted(self) -> dict[str, Ints]:
        worst = np.argsort(self.mean_quality, kind="stable")
        known = np.isfinite(self.mean_quality[worst])
        best = np.concatenate([worst[known][::-1], worst[~known]])
        return {"worst": worst, "best": best, "position": np.arange(len(self))}

    def num_negative(self, rho: float | None) -> Ints:
        """Negative tokens of each sample at a rho (None: as the run selected), shape (samples,)."""
        if rho is None:
            return self._own_negatives
        known = self._negatives
        if known is not None and known[0] == rho:
            return known[1]
        level = forget_level(self.rule, level_of(rho))
        below = np.array([sketch[level] for sketch in self.sketches])[self._group_of]
        if self.rule.by_sample:
            negative = np.repeat(self.mean_quality < below, self.lengths)
        else:
            negative = self.quality < np.repeat(below, self.lengths)
        counts = self._per_sample(negative & ~self.is_end)
        self._negatives = (rho, counts)
        return counts

    def find(self, query: Query) -> tuple[Ints, int]:
        """Rows of D_train that a query asks for, in its order, and how many texts were searched.

        The texts are decoded once, in the background; until that is done, a search for text
        knows only the first of them.
        """
        mask = np.ones(len(self), dtype=bool)
        if query.source is not None:
            mask &= self.source_of == query.source
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
        """A page of the list that a query asks for, as the front end reads it."""
        rows, num_searched = self.find(query)
        shown = rows[query.offset : query.offset + query.limit]
        negatives = self.num_negative(query.rho)
        return {
            "total": len(rows),
            "num_searched": num_searched,
            "rows": [self.summary(int(row), int(negatives[row])) for row in shown],
        }

    def summary(self, row: int, num_negative: int) -> dict[str, Any]:
        """A line of the list."""
        mean = float(self.mean_quality[row])
        return {
            "row": row,
            "id": self._table["sample_id"][row].as_py(),
            "source": int(self.source_of[row]),
            "mean": mean if np.isfinite(mean) else None,
            "num_tokens": int(self.lengths[row]),
            "num_negative": num_negative,
            "num_noisy": int(self.num_noisy[row]),
            "preview": self._preview(row),
        }

    def _preview(self, row: int) -> str:
        tokens = slice(self.token_starts[row], self.token_starts[row + 1])
        ids = self.input_ids[tokens][self.is_response[tokens]][:PREVIEW_TOKENS]
        return visible(" ".join(self.decode(ids.tolist()).replace("\ufffd", "").split()))

    def sample(self, row: int, max_tokens: int) -> dict[str, Any]:
        """One sample with all of its numbers, as the front end reads it.

        Args:
            row: place in D_train.
            max_tokens: response tokens that are shown; the rest is counted in `num_left_out`.
        """
        tokens = slice(int(self.token_starts[row]), int(self.token_starts[row + 1]))
        ids, is_response = self.input_ids[tokens], self.is_response[tokens]
        end, length = len(ids), int(self.lengths[row])
        if length > max_tokens:
            end = int(np.flatnonzero(is_response)[max_tokens])
        shown = slice(int(self.starts[row]), int(self.starts[row]) + min(length, max_tokens))
        ranks = np.searchsorted(self._sorted_quality, self.quality[shown]) + 1
        noise = self.noise[shown]
        return {
            **self.summary(row, int(self._own_negatives[row])),
            "noise_kind": visible(self._table["noise_kind"][row].as_py() or ""),
            "num_left_out": max(length - max_tokens, 0),
            "blocks": self._blocks(ids[:end], is_response[:end]),
            "ids": ids[:end][is_response[:end]].tolist(),
            "base": _decimals(np.exp(self.columns["base_log_probs"][shown])),
            "reference": _decimals(np.exp(self.columns["reference_log_probs"][shown])),
            "quality": _decimals(self.quality[shown]),
            "polarity": self.polarity[shown].tolist(),
            "noise": (noise > 0).astype(int).tolist() if (noise > 0).any() else None,
            "rank": ranks.tolist(),
        }

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
        """Text of token ids; from one thread at a time."""
        with self._decoding:
            return self._decode(ids)

    def whole(self) -> dict[str, Any]:
        """What holds for the corpus, as the front end reads it."""
        known = self.noise != UNKNOWN
        not_positive = (self.polarity != 1) & known
        noisy = self.noise > 0
        selection = self.selection
        return {
            "name": visible(self.name),
            "about": (
                f"{len(self):,} samples with {len(self.quality):,} response tokens, as the variant "
                f"{visible(selection.variant)} selects them. Quality ({selection.quality}): "
                f"{selection.formula}, l being the loss of a token in nats."
            ),
            "has_reference": self.has_reference,
            "num_samples": len(self),
            "num_tokens": len(self.quality),
            "sources": self.source_names,
            "rho": selection.rho,
            "num_levels": NUM_LEVELS,
            "sketches": [_decimals(sketch) for sketch in self.sketches],
            "by_sample": self.rule.by_sample,
            "by_source": self.rule.by_source,
            "forget_rate": self.rule.forget_rate,
            "end_ids": self.end_token_ids,
            "own_negative": int((self.polarity < 0).sum()),
            "scale": [self.scale.low, self.scale.center, self.scale.high],
            "color_levels": COLOR_LEVELS,
            "noise": None
            if self.curve is None
            else {
                "num_noisy": int(noisy.sum()),
                "num_known": int(known.sum()),
                "own": [int(not_positive.sum()), int((not_positive & noisy).sum())],
                "num_not_positive": self.curve.num_not_positive.tolist(),
                "num_found": self.curve.num_found.tolist(),
            },
        }


class _TextIndex:
    """The text of every sample for searching; decoded in the background from the first search."""

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self._texts: list[str] = []
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def search(self, text: str) -> tuple[Bools, int]:
        """Which samples hold the text, among those decoded so far, and how many these are."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._decode_all, daemon=True)
                self._thread.start()
        # A small corpus is searched at once; a large one need not keep a page waiting.
        self._thread.join(timeout=0.3)
        num_searched = len(self._texts)
        wanted = text.casefold()
        matches = np.zeros(len(self._inspection), dtype=bool)
        matches[:num_searched] = [wanted in known for known in self._texts[:num_searched]]
        return matches, num_searched

    def _decode_all(self) -> None:
        starts, ids = self._inspection.token_starts, self._inspection.input_ids
        for row in range(len(self._inspection)):
            text = self._inspection.decode(ids[starts[row] : starts[row + 1]].tolist())
            self._texts.append(text.casefold())


def _known_noise(samples: Samples) -> npt.NDArray[np.int8]:
    """Known noise of each response token, or UNKNOWN."""
    is_known = samples.table["noise"].is_valid().to_numpy()
    flags, starts = list_column(samples.table, "noise")
    if not np.array_equal(np.diff(starts)[is_known], samples.num_response_tokens[is_known]):
        raise InputError(
            "data/train.parquet does not hold one mark of noise for each response token. "
            "Prepare the run again."
        )
    noise = np.full(len(samples.response_ids), UNKNOWN, dtype=np.int8)
    noise[np.repeat(is_known, samples.num_response_tokens)] = flags
    return noise


def _decimals(values: Floats) -> list[float]:
    """The shortest decimals that are these numbers in float32."""
    return [float(str(value)) for value in values.astype(np.float32)]


def preferred(run: Run) -> Selection | None:
    """The variant that is looked at where nobody says: `forgetting`, or the first."""
    return run.selections.get(PREFERRED) or next(iter(run.selections.values()), None)


def open_inspection(run_dir: Path, decode: Decode, variant: str | None = None) -> Inspection | None:
    """Read a run for inspection.

    Args:
        run_dir: a run, at least up to `select`.
        decode: text of token ids, special tokens included.
        variant: whose selection is looked at; default: `forgetting`, or the first.

    Returns:
        None where nothing is scored and selected yet, or D_train is empty.

    Raises:
        InputError: no run there, no such variant, or data, scores and selection do not belong
            together.
    """
    run = read_run(run_dir)
    if variant is not None and variant not in run.selections:
        known = ", ".join(run.selections) or "none"
        raise InputError(f"{run_dir} has no selection of a variant {variant}. It has: {known}")
    selection = run.selections[variant] if variant is not None else preferred(run)
    scores = None if selection is None else read_scores(run_dir, selection.quality)
    if selection is None or scores is None or len(scores.sample_ids) == 0:
        return None
    train_path = run_dir / "data" / "train.parquet"
    polarity_path = run_dir / "selection" / selection.variant / "polarity.parquet"
    samples = Samples.read(train_path)
    try:
        table = pq.read_table(polarity_path)
        polarity, starts = list_column(table, "polarity")
        ids = table["sample_id"].to_numpy()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{polarity_path} cannot be read: {error}. Select again.") from error
    for path, found, found_starts in (
        (train_path, samples.sample_ids, samples.response_starts),
        (polarity_path, ids, starts),
    ):
        if not np.array_equal(found, scores.sample_ids):
            raise InputError(
                f"{path} and the scores are of different samples. Score the run again."
            )
        if not np.array_equal(found_starts, scores.offsets):
            row = int(np.flatnonzero(np.diff(found_starts) != np.diff(scores.offsets))[0])
            raise InputError(
                f"sample {found[row]} has different numbers of response tokens in {path} and in "
                "the scores. Score the run again."
            )
    columns = {
        "base_log_probs": scores.base_log_probs,
        "reference_log_probs": scores.reference_log_probs,
        "quality": scores.quality,
        "polarity": polarity,
    }
    rule = Rule.from_recipe(_selection_settings(run.recipe_text, selection.variant))
    return Inspection(run.name, samples, selection, rule, columns, _end_token_ids(run_dir), decode)


def _selection_settings(recipe_text: str, variant: str) -> dict[str, Any]:
    recipe = yaml.safe_load(recipe_text)
    try:
        return dict(recipe["variants"][variant]["selection"])
    except (KeyError, TypeError):
        return {}


def _end_token_ids(run_dir: Path) -> list[int]:
    path = run_dir / "data" / "summary.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8")).get("end_token_ids", []))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Prepare the run again.") from error
