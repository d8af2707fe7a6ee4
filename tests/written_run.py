"""A small run directory with seeded numbers in the place of models, written as the stages do.

Only its form is real. `write_run` writes every artifact that report and inspector read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from forgetting.rundir import layout
from forgetting.rundir.answer_sheets import Answer, AnswerSheet, write_answer_sheet
from forgetting.rundir.heldout_losses import write_heldout
from forgetting.rundir.manifest import Manifest, StageEntry
from forgetting.rundir.results import Group, Metric, TaskResult, write_result
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, write_table
from forgetting.rundir.selections import (
    ExtremeSample,
    KnownNoise,
    NoiseKind,
    PolarityWriter,
    PositionSelection,
    QualityHistogram,
    SelectionSummary,
    SourceSelection,
)
from forgetting.rundir.stats import DataSummary, SourceCounts, SplitCounts, write_training_log
from forgetting.rundir.storage import write_atomically
from tests.conftest import all_scores, write_shards

HOSTILE = "<script>alert(1)</script>\"'{{7*7}}\u202e$x_2$"
# Ids below 256 are bytes, so that a character can be split over tokens; the others are words.
WORDS = [" the", " answer", " is", " blue", " seven", "\n", "  ", HOSTILE, "é", "<|end|>"]
EOS = 256 + WORDS.index("<|end|>")
VARIANTS = ("full", "ignoring", "forgetting")


def decode(ids: Sequence[int]) -> str:
    parts = [bytes([i]) if i < 256 else WORDS[i - 256].encode() for i in ids]
    return b"".join(parts).decode("utf-8", errors="replace")


def metric(value: float, stderr: float | None, higher_is_better: bool = True) -> Metric:
    return Metric(value=value, stderr=stderr, higher_is_better=higher_is_better)


def write_recipe(run_dir: Path, variants: Mapping[str, Any], name: str = "demo") -> None:
    """Write the recipe of a run with these variants."""
    recipe = {
        "name": name,
        "model": {"name_or_path": "tiny"},
        "data": {"sources": [{"path": "data.jsonl"}], "max_length": 128},
        "variants": variants,
    }
    # As a person writes it: names that a recipe may not have are among what is tested.
    layout.recipe_file(run_dir).write_text(yaml.safe_dump(recipe), encoding="utf-8")


def write_evaluation(
    run_dir: Path,
    variant: str,
    task: str,
    metrics: dict[str, Metric],
    groups: dict[str, dict[str, Metric]] | None = None,
) -> None:
    folder = layout.evaluation_dir(run_dir, variant)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {k: Group(num_items=160, metrics=v) for k, v in (groups or {}).items()}
    result = TaskResult(task=task, num_items=640, local=True, metrics=metrics, groups=parts)
    write_result(folder, variant, result)


def write_run(
    run_dir: Path,
    *,
    source: str = "world",
    variants: Sequence[str] = VARIANTS,
    num_samples: int = 80,
) -> Path:
    """Write a finished run.

    Args:
        source: name of one of the two sources.
        variants: names; one that is not known is a variant that forgets.
    """
    rng = np.random.default_rng(0)
    run_dir.mkdir(parents=True)
    write_recipe(
        run_dir, {v: {"objective": v if v in VARIANTS else "forgetting"} for v in variants}
    )
    samples, quality = _write_data(run_dir, rng, source, num_samples)
    for variant in variants:
        _write_training(run_dir, rng, variant)
        if variant != "full":
            rho = 0.5 if variant == "ignoring" else 0.7
            write_selection(run_dir, variant, samples, quality, source, rho)
    exact_matches = {"base": 0.2, "full": 0.744, "ignoring": 0.75, "forgetting": 0.621}
    for variant, exact in exact_matches.items():
        if variant == "base" or variant in variants:
            groups = {
                g: {
                    "exact_match": metric(exact - 0.1 * i, 0.03),
                    "loss": metric(1 - exact, 0.02, False),
                }
                for i, g in enumerate(["fact", "addition", source])
            }
            heldout = {
                "exact_match": metric(exact, 0.018),
                "loss": metric(1 - exact, 0.01, False),
                "perplexity": metric(float(np.exp(1 - exact)), 0.02, False),
            }
            write_evaluation(run_dir, variant, "heldout", heldout, groups)
            write_evaluation(run_dir, variant, "boolq", {"acc,none": metric(0.5 + exact / 9, 0.02)})
            _write_heldout(run_dir, variant, samples, exact)
            _write_answers(run_dir, variant, source)
    _write_manifest(run_dir)
    return run_dir


def _write_heldout(run_dir: Path, variant: str, samples: Samples, exact: float) -> None:
    """The right answers of a better model include those of a worse one. Without losses, so that no
    model is chosen."""
    is_right = np.arange(len(samples)) < round(exact * len(samples))
    is_greedy = samples.per_response_token(is_right)
    log_probs = np.full(len(is_greedy), np.nan)
    write_heldout(layout.evaluation_dir(run_dir, variant), samples, log_probs, is_greedy)


def _write_answers(run_dir: Path, variant: str, source: str) -> None:
    answers = [
        Answer(
            sample_id=sample_id,
            source=source,
            prompt=f"Question {sample_id}?\n{HOSTILE}",
            expected=f"{HOSTILE} is blue",
            answer=f"{variant} says {HOSTILE} to {sample_id}",
            exact_match=sample_id == 7,
            chrf=0.625,
            is_cut=variant == "base",
        )
        for sample_id in (3, 7, 11, 20)
    ]
    write_answer_sheet(layout.evaluation_dir(run_dir, variant), AnswerSheet(answers=answers))


def _write_manifest(run_dir: Path) -> None:
    plan = ("prepare", "reference", "score", "select:forgetting", "train:full", "evaluate:full")
    stages = {
        stage: StageEntry(
            fingerprint="0",
            outputs={},
            finished="2026-01-01T00:00:00Z",
            seconds=61.5 * place,
            peak_memory_bytes=2**30 + place * 2**20,
            details={} if stage == "evaluate:full" else {"tokens": 1000 * place},
        )
        for place, stage in enumerate((*plan, "report"))
    }
    text = Manifest(name="demo", stages=stages).model_dump_json()
    write_atomically(layout.manifest_file(run_dir), text)


def _write_data(
    run_dir: Path, rng: np.random.Generator, source: str, num: int
) -> tuple[Samples, npt.NDArray[np.float32]]:
    rows = []
    bases, references = [], []
    for i in range(num):
        prompt = [*b"Question: what?", 256 + 5]
        response = rng.integers(256, 256 + len(WORDS) - 1, size=int(rng.integers(3, 12))).tolist()
        response += [*"naïve 日本 🙂".encode(), EOS]
        noise = (rng.random(len(response)) < (0.3 if i % 4 == 0 else 0)).astype(int)
        base = -rng.gamma(2, 1, len(response))
        bases.append(base)
        references.append(np.minimum(base + rng.normal(0.4, 0.8, len(response)) - noise, 0))
        rows.append(
            {
                "sample_id": i,
                "source": source if i % 3 else "addition",
                "input_ids": prompt + response,
                "labels": [-100] * len(prompt) + response,
                "noise": noise.tolist(),
                "noise_kind": "wrong_answer" if noise.any() else None,
            }
        )
    samples = Samples(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    data = layout.data_dir(run_dir)
    data.mkdir()
    for split in layout.SPLITS:
        write_table(samples.table, layout.split_file(data, split))
    base, reference = (np.concatenate(x).astype(np.float32) for x in (bases, references))
    columns = {"base_log_probs": base, "reference_log_probs": reference}
    write_shards(run_dir, samples, columns, (num // 2, num - num // 2))
    counts = SourceCounts(
        name=source,
        read=300,
        rejected={"empty response": 4, HOSTILE: 1},
        duplicates=3,
        near_duplicates=4,
        prompt_too_long=2,
        cut=1,
        used=290,
    )
    splits = dict.fromkeys(layout.SPLITS, SplitCounts(num, 2400, 1200))
    DataSummary(max_length=128, sources=[counts], splits=splits, end_token_ids=[]).save(data)
    return samples, reference - base


def write_selection(
    run_dir: Path,
    variant: str,
    samples: Samples,
    quality: npt.NDArray[np.float32],
    source: str,
    rho: float,
    **changes: Any,
) -> None:
    """Write the selection of a variant.

    Args:
        changes: fields of the summary.
    """
    threshold = float(np.quantile(quality, 1 - rho))
    polarity = np.where(quality >= threshold, 1, -1).astype(np.int8)
    folder = layout.selection_dir(run_dir, variant)
    folder.mkdir(parents=True, exist_ok=True)
    with PolarityWriter(layout.polarity_file(folder), samples.fingerprint) as writer:
        writer.write(samples.sample_ids, polarity, samples.response_starts)
    counts, edges = np.histogram(quality, bins=60)
    positive = int((polarity > 0).sum())
    numbers = {
        "num_tokens": len(quality),
        "num_positive": positive,
        "num_negative": len(quality) - positive,
        "num_ignored": 0,
    }
    summary = {
        "variant": variant,
        "fingerprint": samples.fingerprint,
        "quality": "influence",
        "granularity": "token",
        "balance": "none",
        "by": "quality",
        "threshold_kind": "quantile",
        "rho": rho,
        "threshold": threshold,
        "auto_rho": float((quality > 0).mean()),
        "forget_rate": None,
        "end_token_ids": [],
        **numbers,
        "by_source": [
            SourceSelection(source=name, threshold=None, **numbers) for name in (source, "addition")
        ],
        "by_position": [
            PositionSelection(start=start, stop=start + 1, **numbers) for start in (0, 1)
        ],
        "worst": [ExtremeSample(3, source, -1.25, 17)],
        "best": [ExtremeSample(3, source, 2.5, 17)],
        "histogram": QualityHistogram(edges.tolist(), counts.tolist()),
        "mixture": None,
        "noise": KnownNoise(
            num_noisy=90,
            share_noisy=0.061,
            auroc=0.83,
            average_precision=0.3,
            precision=0.21,
            recall=0.72,
            precision_negative=0.34,
            recall_negative=0.72,
            by_kind=[NoiseKind("wrong_answer", 90, 0.72)],
        ),
    }
    SelectionSummary(**{**summary, **changes}).save(folder)


def change_selection(run_dir: Path, variant: str = "forgetting", **changes: Any) -> None:
    """Change fields of a summary."""
    folder = layout.selection_dir(run_dir, variant)
    SelectionSummary.load(folder).model_copy(update=changes).save(folder)


def replace_samples(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Replace D_train by samples with as many response tokens, and write scores and selections
    again that belong to them."""
    scores = all_scores(run_dir)
    samples = Samples(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    write_table(samples.table, layout.train_file(run_dir))
    write_shards(run_dir, samples, scores, (len(rows),))
    quality = scores["reference_log_probs"] - scores["base_log_probs"]
    for folder in layout.selection_dir(run_dir).iterdir():
        write_selection(run_dir, folder.name, samples, quality, "world", 0.7)


def _write_training(run_dir: Path, rng: np.random.Generator, variant: str) -> None:
    folder = layout.model_dir(run_dir, variant)
    folder.mkdir(parents=True)
    noise = rng.normal(0, 0.05, 40)
    write_training_log(
        folder,
        (
            {
                "step": 10 * step,
                "positive_loss": 3 * np.exp(-step / 10) + 0.4 + noise[step],
                "negative_loss": None
                if variant == "full"
                else 2 + (0.08 * step if variant == "forgetting" else 0),
                "lambda": 0.25 * step / 40 if variant == "forgetting" else 0.0,
                "grad_norm": 2 + abs(noise[step]),
                "negative_prob": None if variant == "full" else 0.3 - 0.005 * step,
            }
            for step in range(40)
        ),
    )
