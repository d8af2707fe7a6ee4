"""What a run directory holds, as small frozen dataclasses.

Goes in: the directory of a run, finished or partly so. Comes out: results, training curves,
selections, counts of data, times, and scores with one number per response token. What is not
there yet is empty or None; what is there and cannot be read is an `InputError`. Judges nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from forgetting.config import Recipe
from forgetting.errors import InputError
from forgetting.method import MEASURES, QualityName

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]

VARIANT_ORDER = ("base", "full", "ignoring", "forgetting")
SPLITS = ("reference", "train", "heldout")
"""Parts of the corpus, by the names of their files."""


@dataclass(frozen=True)
class Metric:
    """One measured figure; `stderr` is None where it is unknown."""

    value: float
    stderr: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class Measurement:
    """The metrics of a task, or of one group of its items."""

    num_items: int
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class Evaluation:
    """One variant on one task."""

    variant: str
    task: str
    overall: Measurement
    groups: Mapping[str, Measurement]
    local: bool = False
    """Whether the items are a build from local files."""


@dataclass(frozen=True)
class Curve:
    """What a variant's training logged; arrays of shape (logged steps,), NaN where undefined."""

    steps: Floats
    positive_loss: Floats
    negative_loss: Floats
    lam: Floats
    grad_norm: Floats
    """Before any clipping."""
    negative_prob: Floats
    """Mean probability of the negative tokens."""


@dataclass(frozen=True)
class Noise:
    """How well low quality finds the known noise; None where a figure is undefined."""

    num_noisy: int
    share_noisy: float
    auroc: float | None
    average_precision: float | None
    precision: float | None
    recall: float | None
    precision_negative: float | None
    recall_by_kind: Mapping[str, float | None]
    tokens_by_kind: Mapping[str, int]


@dataclass(frozen=True)
class TokenCounts:
    """Response tokens by what is done with them."""

    num_tokens: int
    num_positive: int
    num_negative: int
    num_ignored: int


@dataclass(frozen=True)
class SampleQuality:
    """A sample by its mean quality."""

    sample_id: int
    source: str
    mean_quality: float
    num_tokens: int


@dataclass(frozen=True)
class MixtureFit:
    """Two components fitted to the quality; densities have shape (points,) and are weighted."""

    weight: float
    quality: Floats
    bad_density: Floats
    good_density: Floats
    negative_below: float | None
    positive_from: float | None


@dataclass(frozen=True)
class Selection:
    """What a variant learns and what it does not."""

    variant: str
    quality: QualityName
    """The measure of quality."""
    granularity: str
    balance: str
    by: str
    threshold_kind: str
    rho: float
    threshold: float | None
    auto_rho: float
    counts: TokenCounts
    by_source: Mapping[str, TokenCounts]
    by_position: Mapping[int, TokenCounts]
    """By the first position of each bin of positions in the response."""
    histogram_edges: Floats
    histogram_counts: Ints
    worst: Sequence[SampleQuality]
    best: Sequence[SampleQuality]
    mixture: MixtureFit | None
    no_mixture: str | None
    """Why no two components were found, where they were looked for."""
    noise: Noise | None

    @property
    def formula(self) -> str:
        """Of the measure of quality."""
        return MEASURES[self.quality].formula


@dataclass(frozen=True)
class Source:
    """What became of one source's records."""

    name: str
    num_read: int
    num_used: int
    num_duplicates: int
    """Near duplicates included."""
    num_prompt_too_long: int
    num_cut: int
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class Split:
    """One part of the corpus."""

    name: str
    num_samples: int
    num_tokens: int
    num_response_tokens: int


@dataclass(frozen=True)
class Data:
    """The corpus in numbers."""

    max_length: int
    sources: Sequence[Source]
    splits: Sequence[Split]


@dataclass(frozen=True)
class Stage:
    """What a finished stage cost."""

    name: str
    seconds: float
    num_tokens: int | None
    """That it read; None where it is not known."""
    peak_memory_bytes: int | None
    """Of the process."""
    peak_device_memory_bytes: int | None
    """Of the accelerators; None where there is none."""


@dataclass(frozen=True)
class Run:
    """Everything the report's main page shows."""

    name: str
    recipe_text: str
    recipe: Recipe | None
    """None where this version does not read it, which its text shows all the same."""
    evaluations: Sequence[Evaluation]
    curves: Mapping[str, Curve]
    selections: Mapping[str, Selection]
    data: Data | None
    stages: Sequence[Stage]


@dataclass(frozen=True)
class Scores:
    """D_train's scores, flat: sample i owns tokens offsets[i]:offsets[i + 1]."""

    sample_ids: Ints
    offsets: Ints
    base_log_probs: Floats
    reference_log_probs: Floats
    quality: Floats
    """By one measure; shape (tokens,)."""


def read_run(run_dir: Path) -> Run:
    """Read all but the tokens.

    Raises:
        InputError: no recipe there, or a file that cannot be read.
    """
    recipe_text, recipe = _read_recipe(run_dir)
    try:
        known = Recipe.model_validate(recipe)
    except ValidationError:
        known = None
    return Run(
        name=str(recipe.get("name", run_dir.name)),
        recipe_text=recipe_text,
        recipe=known,
        evaluations=read_evaluations(run_dir),
        curves={
            name: _read_curve(path)
            for name in _variants_in(run_dir, "models")
            if (path := run_dir / "models" / name / "training.jsonl").is_file()
        },
        selections={
            name: _read_selection(name, path)
            for name in _variants_in(run_dir, "selection")
            if (path := run_dir / "selection" / name / "summary.json").is_file()
        },
        data=_read_data(run_dir),
        stages=_read_stages(run_dir),
    )


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """All results, by variant (`base`, `full`, `ignoring`, `forgetting`, then by name) and task.

    Raises:
        InputError: no recipe there, or a file that cannot be read.
    """
    return [
        _read_evaluation(variant, path)
        for variant in _variants_in(run_dir, "evaluation")
        for path in sorted((run_dir / "evaluation" / variant).glob("*.json"))
    ]


def read_scores(run_dir: Path, quality: QualityName) -> Scores | None:
    """The scores of all shards in D_train's order, and the quality by a measure; None before the
    stage `score`."""
    shards = sorted((run_dir / "scores").glob("scores-*.parquet"))
    if not shards:
        return None
    measure = MEASURES[quality]
    names = sorted({"base_log_probs", "reference_log_probs", *measure.columns})
    with _readable(run_dir / "scores"):
        table = pa.concat_tables(
            [pq.read_table(shard, columns=["sample_id", *names]) for shard in shards]
        )
        columns = {}
        _, lengths = _flat(table["base_log_probs"])
        for name in names:
            columns[name], found = _flat(table[name])
            if not np.array_equal(lengths, found):
                raise ValueError(f"{name} differs in length from base_log_probs")
        return Scores(
            table["sample_id"].to_numpy(),
            np.concatenate([[0], np.cumsum(lengths)]),
            columns["base_log_probs"],
            columns["reference_log_probs"],
            measure.compute(*(columns[name] for name in measure.columns)),
        )


def in_order(variants: Iterable[str]) -> list[str]:
    """The known variants first, then the others by name."""
    return sorted(
        variants,
        key=lambda name: (
            VARIANT_ORDER.index(name) if name in VARIANT_ORDER else len(VARIANT_ORDER),
            name,
        ),
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into one message that names the file."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Run its stage again."
        ) from error


def _read_recipe(run_dir: Path) -> tuple[str, dict[str, Any]]:
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        raise InputError(f"{run_dir} is not a run directory: it has no recipe.yaml.")
    with _readable(path):
        text = path.read_text(encoding="utf-8")
        try:
            recipe = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    return text, recipe if isinstance(recipe, dict) else {}


def _variants_in(run_dir: Path, part: str) -> list[str]:
    """Variants with a folder in `part`; those that the recipe no longer asks for are left out."""
    asked = _read_recipe(run_dir)[1].get("variants")
    folder = run_dir / part
    found = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if isinstance(asked, dict):
        found = [name for name in found if name == "base" or name in asked]
    return in_order(found)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _number(value: float | None) -> float:
    """JSON has no NaN: null stands for it."""
    return math.nan if value is None else float(value)


def _read_evaluation(variant: str, path: Path) -> Evaluation:
    with _readable(path):
        result = _read_json(path)
        groups = result.get("groups") or {}
        return Evaluation(
            variant=variant,
            task=str(result["task"]),
            overall=_measurement(result),
            groups={str(name): _measurement(group) for name, group in groups.items()},
            local=bool(result.get("local", False)),
        )


def _measurement(result: Mapping[str, Any]) -> Measurement:
    return Measurement(
        num_items=int(result["num_items"]),
        metrics={
            str(name): Metric(
                value=_number(metric["value"]),
                stderr=None if metric["stderr"] is None else float(metric["stderr"]),
                higher_is_better=bool(metric["higher_is_better"]),
            )
            for name, metric in result["metrics"].items()
        },
    )


def _read_curve(path: Path) -> Curve:
    with _readable(path):
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]

        def column(key: str) -> Floats:
            return np.array([_number(row.get(key)) for row in rows], dtype=float)

        return Curve(
            steps=column("step"),
            positive_loss=column("positive_loss"),
            negative_loss=column("negative_loss"),
            lam=column("lambda"),
            grad_norm=column("grad_norm"),
            negative_prob=column("negative_prob"),
        )


def _read_selection(variant: str, path: Path) -> Selection:
    with _readable(path):
        summary = _read_json(path)
        noise = summary["noise"]
        return Selection(
            variant=variant,
            quality=_measure_name(summary["quality"]),
            granularity=str(summary["granularity"]),
            balance=str(summary["balance"]),
            by=str(summary["by"]),
            threshold_kind=str(summary["threshold_kind"]),
            rho=float(summary["rho"]),
            threshold=None if summary["threshold"] is None else float(summary["threshold"]),
            auto_rho=float(summary["auto_rho"]),
            counts=_token_counts(summary),
            by_source={str(row["source"]): _token_counts(row) for row in summary["by_source"]},
            by_position={int(row["start"]): _token_counts(row) for row in summary["by_position"]},
            histogram_edges=np.asarray(summary["histogram"]["edges"], dtype=float),
            histogram_counts=np.asarray(summary["histogram"]["counts"], dtype=int),
            worst=[_sample_quality(row) for row in summary["worst"]],
            best=[_sample_quality(row) for row in summary["best"]],
            mixture=_mixture_fit(summary["mixture"]),
            no_mixture=summary["mixture"] and summary["mixture"]["reason"],
            noise=None
            if noise is None
            else Noise(
                num_noisy=int(noise["num_noisy"]),
                share_noisy=float(noise["share_noisy"]),
                auroc=noise["auroc"],
                average_precision=noise["average_precision"],
                precision=noise["precision"],
                recall=noise["recall"],
                precision_negative=noise["precision_negative"],
                recall_by_kind={str(row["kind"]): row["recall"] for row in noise["by_kind"]},
                tokens_by_kind={
                    str(row["kind"]): int(row["num_tokens"]) for row in noise["by_kind"]
                },
            ),
        )


def _measure_name(name: str) -> QualityName:
    if name not in MEASURES:
        raise ValueError(f"unknown measure of quality {name!r}")
    return name


def _mixture_fit(mixture: Mapping[str, Any] | None) -> MixtureFit | None:
    fit = mixture and mixture["fit"]
    if not fit:
        return None
    curve = {name: np.asarray(values, dtype=float) for name, values in fit["curve"].items()}
    return MixtureFit(
        weight=float(fit["weight"]),
        quality=curve["quality"],
        bad_density=curve["bad_density"],
        good_density=curve["good_density"],
        negative_below=fit["negative_below"],
        positive_from=fit["positive_from"],
    )


def _sample_quality(row: Mapping[str, Any]) -> SampleQuality:
    return SampleQuality(
        int(row["sample_id"]),
        str(row["source"]),
        float(row["mean_quality"]),
        int(row["num_tokens"]),
    )


def _token_counts(row: Mapping[str, Any]) -> TokenCounts:
    return TokenCounts(
        int(row["num_tokens"]),
        int(row["num_positive"]),
        int(row["num_negative"]),
        int(row["num_ignored"]),
    )


def _read_data(run_dir: Path) -> Data | None:
    path = run_dir / "data" / "summary.json"
    if not path.is_file():
        return None
    with _readable(path):
        summary = _read_json(path)
        return Data(
            max_length=int(summary["max_length"]),
            sources=[
                Source(
                    name=str(source["name"]),
                    num_read=int(source["read"]),
                    num_used=int(source["used"]),
                    num_duplicates=int(source["duplicates"]) + int(source["near_duplicates"]),
                    num_prompt_too_long=int(source["prompt_too_long"]),
                    num_cut=int(source["cut"]),
                    rejected={str(reason): int(n) for reason, n in source["rejected"].items()},
                )
                for source in summary["sources"]
            ],
            splits=[
                Split(
                    name=name,
                    num_samples=int(split["samples"]),
                    num_tokens=int(split["tokens"]),
                    num_response_tokens=int(split["response_tokens"]),
                )
                for name in SPLITS
                if (split := summary["splits"].get(name)) is not None
            ],
        )


def _read_stages(run_dir: Path) -> list[Stage]:
    """The finished stages in the order of the run, which is that of the manifest.

    The report is left out: it cannot know its own cost.
    """
    path = run_dir / "manifest.json"
    if not path.is_file():
        return []
    with _readable(path):
        return [
            Stage(
                name=str(name),
                seconds=float(entry["seconds"]),
                num_tokens=entry.get("details", {}).get("tokens"),
                peak_memory_bytes=entry.get("peak_memory_bytes"),
                peak_device_memory_bytes=entry.get("peak_device_memory_bytes"),
            )
            for name, entry in _read_json(path)["stages"].items()
            if name != "report"
        ]


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], Ints]:
    """A list column's values, shape (tokens,), and its lengths, shape (rows,); null counts 0."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    return lists.flatten().to_numpy(zero_copy_only=False), lengths.to_numpy(zero_copy_only=False)
