"""Time and memory of selecting from a scored corpus: `python benchmarks/selection.py`.

A synthetic run directory with as many response tokens as asked (default 1e8) is divided by

- forgetting: the stage `select` as it is, from the Parquet shards to polarity.parquet and the
  summary, memory bounded by a shard; and a part of it, what the exact cut takes by itself;
- partition: all scores read into memory, `np.partition` for the threshold, polarity written;
- tuples: a Python list of all (score, sample, position), sorted, as the published code of the
  paper does. It is run on a hundredth of the tokens and extrapolated by n log n.

Each runs in a process of its own, whose peak memory and processor time (of all its threads) are
measured; the first two are interleaved, and the best of the repetitions counts.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forgetting.config import SelectionSettings
from forgetting.method.selection import divide
from forgetting.rundir import layout
from forgetting.rundir.samples import (
    SAMPLE_SCHEMA,
    SampleFile,
    list_column,
    lists,
    read_table,
    write_table,
)
from forgetting.rundir.scores import ScoredCorpus
from forgetting.rundir.selections import SelectionSummary
from forgetting.stages.corpus_selection import select_corpus

RHO = 0.7
SAMPLES_PER_SHARD = 2000
PROMPT_LENGTH, RESPONSE_LENGTH = 60, 200
TUPLES_SHARE = 0.01


def write_run(run: Path, num_tokens: int) -> None:
    """A run directory that is scored: random tokens, scores with heavy tails."""
    (run / "data").mkdir(parents=True)
    (run / "scores").mkdir()
    random = np.random.default_rng(0)
    num_samples = max(1, num_tokens // RESPONSE_LENGTH)
    num_shards = math.ceil(num_samples / SAMPLES_PER_SHARD)
    train = run / "data" / "train.parquet"
    with pq.ParquetWriter(train, SAMPLE_SCHEMA, compression="zstd") as writer:
        for begin in range(0, num_samples, SAMPLES_PER_SHARD):
            writer.write_table(_samples(random, begin, min(begin + SAMPLES_PER_SHARD, num_samples)))
    fingerprint = SampleFile(train).fingerprint
    for shard, group in enumerate(pq.ParquetFile(train).iter_batches(SAMPLES_PER_SHARD)):
        starts = np.arange(len(group) + 1) * RESPONSE_LENGTH
        base = -random.gamma(0.5, 3.0, starts[-1]).astype(np.float32)
        tuned = np.minimum(base + random.laplace(0.1, 0.4, base.size).astype(np.float32), 0)
        table = pa.table(
            {
                "sample_id": group["sample_id"],
                "base_log_probs": lists(base, starts),
                "reference_log_probs": lists(tuned, starts),
            }
        )
        path = run / "scores" / f"scores-{shard:05d}-of-{num_shards:05d}.parquet"
        write_table(table, path, fingerprint)


def _samples(random: np.random.Generator, begin: int, end: int) -> pa.Table:
    length = PROMPT_LENGTH + RESPONSE_LENGTH
    ids = random.zipf(1.3, (end - begin, length)).clip(0, 31_999).astype(np.int32)
    labels = ids.copy()
    labels[:, :PROMPT_LENGTH] = -100
    starts = np.arange(end - begin + 1) * length
    return pa.table(
        {
            "sample_id": np.arange(begin, end),
            "source": [f"source-{index % 5}" for index in range(begin, end)],
            "input_ids": lists(ids.ravel(), starts),
            "labels": lists(labels.ravel(), starts),
            "noise": pa.nulls(end - begin, pa.list_(pa.int8())),
            "noise_kind": pa.nulls(end - begin, pa.string()),
            "weights": pa.nulls(end - begin, pa.list_(pa.float32())),
            "is_negative": pa.nulls(end - begin, pa.bool_()),
        },
        schema=SAMPLE_SCHEMA,
    )


def select(run: Path, folder: Path) -> SelectionSummary:
    """Select as the stage does; leaves the scratch file `quality.bin`."""
    return select_corpus(
        ScoredCorpus(run),
        SelectionSettings(rho=RHO),
        layout.polarity_file(folder),
        variant="forgetting",
        scratch=folder / "quality.bin",
        seed=0,
        end_token_ids=[2],
    )


def run_forgetting(run: Path, folder: Path) -> dict[str, float]:
    select(run, folder)
    scratch = folder / "quality.bin"
    start = time.perf_counter()

    def chunks() -> Any:
        with scratch.open("rb") as file:
            while (values := np.fromfile(file, np.float32, 1 << 20)).size:
                yield values, None

    divide(chunks, RHO)
    return {"cut": time.perf_counter() - start}


def run_partition(run: Path, folder: Path) -> dict[str, float]:
    files = sorted((run / "scores").glob("*.parquet"))
    tables = [read_table(file) for file in files]
    base, reference = (
        np.concatenate([list_column(table, name)[0] for table in tables])
        for name in ("base_log_probs", "reference_log_probs")
    )
    starts = np.r_[
        0, np.cumsum(np.concatenate([np.diff(list_column(t, "base_log_probs")[1]) for t in tables]))
    ]
    start = time.perf_counter()
    quality = reference - base
    num_positive = math.floor(RHO * quality.size + 0.5)
    edge = np.partition(quality, quality.size - num_positive)[quality.size - num_positive]
    cut = time.perf_counter() - start
    polarity = np.where(quality >= edge, 1, -1).astype(np.int8)
    pq.write_table(
        pa.table({"polarity": lists(polarity, starts)}),
        folder / "polarity.parquet",
        compression="zstd",
    )
    return {"cut": cut}


def run_tuples(run: Path, folder: Path) -> dict[str, float]:
    total = sum(pq.read_metadata(f).num_rows for f in (run / "scores").glob("*.parquet"))
    rows: list[list[float]] = []
    for file in sorted((run / "scores").glob("*.parquet")):
        table = read_table(file)
        quality = list_column(table, "reference_log_probs")[0]
        quality = quality - list_column(table, "base_log_probs")[0]
        rows += quality.reshape(-1, RESPONSE_LENGTH).tolist()
        if len(rows) >= TUPLES_SHARE * total:
            break
    rows = rows[: max(1, int(TUPLES_SHARE * total))]
    start = time.perf_counter()
    scored = [(score, i, j) for i, row in enumerate(rows) for j, score in enumerate(row)]
    scored.sort(reverse=True)
    positive = scored[: int(RHO * len(scored))]
    seconds = time.perf_counter() - start
    del folder
    return {"cut": seconds, "num_tokens": len(scored), "num_positive": len(positive)}


WAYS = {"forgetting": run_forgetting, "partition": run_partition, "tuples": run_tuples}


def measure(way: str, run: Path) -> dict[str, float]:
    """Seconds and peak memory of one way in a fresh process."""
    command = [sys.executable, __file__, "--only", way, "--run", str(run)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def report_one(way: str, run: Path) -> None:
    with tempfile.TemporaryDirectory(dir=run) as folder:
        start, processor_start = time.perf_counter(), time.process_time()
        figures = WAYS[way](run, Path(folder))
        figures["seconds"] = time.perf_counter() - start
        figures["processor"] = time.process_time() - processor_start
        if way == "forgetting":
            # The cut by itself is measured in addition.
            figures["seconds"] -= figures["cut"]
            figures["processor"] -= figures["cut"]
    # In KiB on Linux.
    figures["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=float, default=1e8)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--folder", help="for the synthetic run; it is removed at the end")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        report_one(arguments.only, arguments.run)
        return
    num_tokens = int(arguments.tokens)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = Path(folder) / "run"
        write_run(run, num_tokens)
        rounds = [
            {way: measure(way, run) for way in ("forgetting", "partition")}
            for _ in range(arguments.repeat)
        ]
        tuples = measure("tuples", run)
    best = {way: min((r[way] for r in rounds), key=lambda f: f["seconds"]) for way in rounds[0]}
    part = tuples["num_tokens"]
    growth = num_tokens * math.log(num_tokens) / (part * math.log(part))
    best["tuples*"] = {
        "seconds": tuples["cut"] * growth,
        "processor": tuples["cut"] * growth,
        "cut": tuples["cut"] * growth,
        "peak_bytes": tuples["peak_bytes"] * num_tokens / part,
    }
    print(f"{num_tokens:,} response tokens, rho {RHO}, best of {arguments.repeat}\n")
    print(f"{'':<12}{'seconds':>10}{'processor':>11}{'the cut':>10}{'peak GiB':>10}{'ratio':>8}")
    for way, figures in best.items():
        ratio = figures["seconds"] / best["forgetting"]["seconds"]
        print(
            f"{way:<12}{figures['seconds']:>10.2f}{figures['processor']:>11.2f}{figures['cut']:>10.2f}"
            f"{figures['peak_bytes'] / 2**30:>10.2f}{ratio:>8.2f}"
        )
    print(
        f"\n* the tuples and their sort alone, measured on {int(part):,} tokens and extrapolated: "
        "time by n log n, memory by n"
    )


if __name__ == "__main__":
    main()
