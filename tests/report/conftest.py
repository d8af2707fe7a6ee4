"""A small run directory with seeded numbers in place of models: only its form is real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from forgetting.rundir.samples import Samples, write_table

HOSTILE = "<script>alert(1)</script>\"'{{7*7}}\u202e$x_2$"
# Ids below 256 are bytes, so that a character can be split over tokens; the others are words.
WORDS = [" the", " answer", " is", " blue", " seven", "\n", "  ", HOSTILE, "é", "<|end|>"]
EOS = 256 + WORDS.index("<|end|>")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1200,900"
)
VARIANTS = ("full", "ignoring", "forgetting")


def decode(ids: Sequence[int]) -> str:
    parts = [bytes([i]) if i < 256 else WORDS[i - 256].encode() for i in ids]
    return b"".join(parts).decode("utf-8", errors="replace")


def metric(value: float, stderr: float | None, higher_is_better: bool = True) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "higher_is_better": higher_is_better}


def write_evaluation(
    run_dir: Path,
    variant: str,
    task: str,
    metrics: dict[str, Any],
    groups: dict[str, Any] | None = None,
) -> None:
    path = run_dir / "evaluation" / variant / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"variant": variant, "task": task, "num_items": 640, "local": True, "metrics": metrics}
    result["groups"] = {k: {"num_items": 160, "metrics": v} for k, v in (groups or {}).items()}
    path.write_text(json.dumps(result))


def write_run(
    run_dir: Path,
    *,
    source: str = "world",
    variants: Sequence[str] = VARIANTS,
    num_samples: int = 80,
) -> Path:
    """Every file of the contract that the report reads."""
    rng = np.random.default_rng(0)
    run_dir.mkdir(parents=True)
    recipe = {
        "name": "demo",
        "model": {"name_or_path": "tiny"},
        "data": {"sources": [{"path": "data.jsonl"}], "max_length": 128},
        "variants": {v: {"objective": v if v in VARIANTS else "forgetting"} for v in variants},
    }
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    corpus = _write_data(run_dir, rng, source, num_samples)
    for variant in variants:
        _write_training(run_dir, rng, variant)
        if variant != "full":
            _write_selection(
                run_dir, variant, corpus, source, 0.5 if variant == "ignoring" else 0.7
            )
    for variant, exact in {
        "base": 0.2,
        "full": 0.744,
        "ignoring": 0.75,
        "forgetting": 0.621,
    }.items():
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
    stages = [
        "prepare",
        "reference",
        "score",
        "select:forgetting",
        "train:full",
        "evaluate:full",
        "report",
    ]
    entry = {"fingerprint": "0", "outputs": {}, "finished": "2026-01-01T00:00:00Z"}
    manifest = {
        "version": 1,
        "name": "demo",
        "stages": {
            s: {
                **entry,
                "seconds": 61.5 * i,
                "peak_memory_bytes": 2**30 + i * 2**20,
                "details": {} if s == "evaluate:full" else {"tokens": 1000 * i},
            }
            for i, s in enumerate(stages)
        },
    }
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    return run_dir


def _write_data(
    run_dir: Path, rng: np.random.Generator, source: str, num: int
) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {
        "sample_id": [],
        "source": [],
        "input_ids": [],
        "labels": [],
        "noise": [],
    }
    scores: dict[str, list[Any]] = {
        "sample_id": [],
        "base_log_probs": [],
        "reference_log_probs": [],
    }
    for i in range(num):
        prompt = [*b"Question: what?", 256 + 5]
        response = list(rng.integers(256, 256 + len(WORDS) - 1, size=int(rng.integers(3, 12))))
        response += [*"naïve 日本 🙂".encode(), EOS]
        noise = (rng.random(len(response)) < (0.3 if i % 4 == 0 else 0)).astype(int)
        base = -rng.gamma(2, 1, len(response))
        scores["sample_id"].append(i)
        scores["base_log_probs"].append(base)
        scores["reference_log_probs"].append(
            np.minimum(base + rng.normal(0.4, 0.8, len(response)) - noise, 0)
        )
        rows["sample_id"].append(i)
        rows["source"].append(source if i % 3 else "addition")
        rows["input_ids"].append(prompt + response)
        rows["labels"].append([-100] * len(prompt) + response)
        rows["noise"].append(noise)
    kinds = ["wrong_answer" if n.any() else None for n in rows["noise"]]
    table = pa.table(
        {
            "sample_id": pa.array(rows["sample_id"], pa.int64()),
            "source": pa.array(rows["source"], pa.string()),
            "input_ids": pa.array(rows["input_ids"], pa.list_(pa.int32())),
            "labels": pa.array(rows["labels"], pa.list_(pa.int32())),
            "noise": pa.array(rows["noise"], pa.list_(pa.int8())),
            "noise_kind": pa.array(kinds, pa.string()),
        }
    )
    (run_dir / "data").mkdir()
    (run_dir / "scores").mkdir()
    for split in ("reference", "train", "heldout"):
        pq.write_table(table, run_dir / "data" / f"{split}.parquet")
    floats = pa.list_(pa.float32())
    scored = pa.table(
        {
            "sample_id": pa.array(scores["sample_id"], pa.int64()),
            "base_log_probs": pa.array(scores["base_log_probs"], floats),
            "reference_log_probs": pa.array(scores["reference_log_probs"], floats),
        }
    )
    for shard in range(2):
        path = run_dir / "scores" / f"scores-{shard:05}-of-00002.parquet"
        pq.write_table(scored.slice(shard * num // 2, num // 2), path)
    counts = {"samples": num, "tokens": 2400, "response_tokens": 1200}
    origin = {
        "name": source,
        "read": 300,
        "duplicates": 3,
        "near_duplicates": 4,
        "prompt_too_long": 2,
        "cut": 1,
        "used": 290,
    }
    summary = {
        "max_length": 128,
        "sources": [{**origin, "rejected": {"empty response": 4, HOSTILE: 1}}],
        "splits": dict.fromkeys(("reference", "train", "heldout"), counts),
    }
    (run_dir / "data" / "summary.json").write_text(json.dumps(summary))
    return {**rows, **scores}


def _write_selection(
    run_dir: Path, variant: str, corpus: dict[str, list[Any]], source: str, rho: float
) -> None:
    quality = [
        r - b for r, b in zip(corpus["reference_log_probs"], corpus["base_log_probs"], strict=True)
    ]
    flat = np.concatenate(quality)
    threshold = float(np.quantile(flat, 1 - rho))
    polarity = [np.where(q >= threshold, 1, -1) for q in quality]
    folder = run_dir / "selection" / variant
    folder.mkdir(parents=True)
    table = {
        "sample_id": pa.array(corpus["sample_id"], pa.int64()),
        "polarity": pa.array(polarity, pa.list_(pa.int8())),
    }
    fingerprint = Samples.read(run_dir / "data" / "train.parquet").fingerprint
    write_table(pa.table(table), folder / "polarity.parquet", fingerprint)
    counts, edges = np.histogram(flat, bins=60)
    positive = int((flat >= threshold).sum())
    numbers = {
        "num_tokens": len(flat),
        "num_positive": positive,
        "num_negative": len(flat) - positive,
        "num_ignored": 0,
    }
    sample = {"sample_id": 3, "source": source, "num_tokens": 17}
    summary = {
        "variant": variant,
        "quality": "influence",
        "granularity": "token",
        "balance": "none",
        "by": "quality",
        "threshold_kind": "quantile",
        "rho": rho,
        "threshold": threshold,
        "auto_rho": float((flat > 0).mean()),
        **numbers,
        "by_source": [{"source": source, **numbers}, {"source": "addition", **numbers}],
        "by_position": [{"start": 0, "stop": 1, **numbers}, {"start": 1, "stop": 2, **numbers}],
        "worst": [{**sample, "mean_quality": -1.25}],
        "best": [{**sample, "mean_quality": 2.5}],
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "mixture": None,
        "noise": {
            "num_noisy": 90,
            "share_noisy": 0.061,
            "auroc": 0.83,
            "average_precision": 0.3,
            "precision": 0.21,
            "recall": 0.72,
            "precision_negative": 0.34,
            "by_kind": [{"kind": "wrong_answer", "num_tokens": 90, "recall": 0.72}],
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def _write_training(run_dir: Path, rng: np.random.Generator, variant: str) -> None:
    folder = run_dir / "models" / variant
    folder.mkdir(parents=True)
    noise = rng.normal(0, 0.05, 40)
    lines = [
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
    ]
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="session", name="write_run")
def write_run_fixture() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run with the keywords of `write_run`, under a name of its own."""
    return lambda **settings: write_run(
        tmp_path / f"run-{len(list(tmp_path.iterdir()))}", **settings
    )


@pytest.fixture(scope="session", name="decode")
def decode_fixture() -> Callable[[Sequence[int]], str]:
    return decode


@pytest.fixture(scope="session")
def hostile() -> str:
    return HOSTILE


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One session of Chromium for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver_path):
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in OPTIONS.split():
        options.add_argument(option)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        yield driver
    finally:
        driver.quit()
