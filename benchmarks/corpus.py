"""Memory over the size of the corpus: `python benchmarks/corpus.py`.

A synthetic run directory, and one ten times as large, is scored and selected; then

- train: the stage `train` as it is, up to its first optimizer steps;
- held: the same trainer with all columns as arrays in memory, as it was given them before;
- export: `forgetting export` of the corpus with its selection, as Parquet.

Each runs in a process of its own. The model is so small that the corpus would show.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch
from selection import PROMPT_LENGTH, RESPONSE_LENGTH, select, write_run
from transformers import LlamaConfig, LlamaForCausalLM
from workload import peak_bytes, word_tokenizer

from forgetting.config import Recipe, load_recipe
from forgetting.export.folder import write_rows
from forgetting.export.tokens import COLUMNS, token_tables
from forgetting.models import loading
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.selections import selected_parts
from forgetting.rundir.stats import DataSummary
from forgetting.stages.train import TRAIN
from forgetting.training.dataset import trainer_columns

STEPS = 2
BATCH_SIZE = 24


def make_run(run: Path, num_samples: int) -> None:
    """Scored, and selected for `forgetting`."""
    write_run(run, num_samples * RESPONSE_LENGTH)
    folder = layout.selection_dir(run, "forgetting")
    folder.mkdir(parents=True)
    select(run, folder).save(folder)
    (folder / "quality.bin").unlink()
    summary = DataSummary(max_length=2048, sources=[], splits={}, end_token_ids=[2])
    summary.save(layout.data_dir(run))


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **sizes, **heads)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def small_recipe(run: Path) -> Recipe:
    num_samples = len(SampleFile(run / "data" / "train.parquet"))
    epochs = (STEPS - 0.5) * BATCH_SIZE / num_samples
    settings = [f"training.epochs={epochs:.10f}", "training.gradient_checkpointing=false"]
    return load_recipe(
        "forgetting",
        [f"model.name_or_path={run.parent / 'model'}", "model.dtype=float32", *settings],
    )


def run_train(run: Path, folder: Path) -> None:
    work = Work(folder)
    work.output.mkdir()
    TRAIN.step(small_recipe(run), "forgetting").execute(run, work)


def run_held(run: Path, folder: Path) -> None:
    import datasets

    parts = selected_parts(run, "forgetting")
    tables = [pa.table(trainer_columns(part.samples, part.polarity)) for part in parts]
    whole = datasets.Dataset(pa.concat_tables(tables).combine_chunks())
    from_file = datasets.Dataset.from_file
    datasets.Dataset.from_file = lambda path: whole  # type: ignore[method-assign]
    try:
        run_train(run, folder)
    finally:
        datasets.Dataset.from_file = from_file  # type: ignore[method-assign]


def run_export(run: Path, folder: Path) -> None:
    decode = loading.decoder(small_recipe(run).model)
    columns = [name for name in COLUMNS if not name.startswith("noise")]
    tables = token_tables(run, "forgetting", "influence", decode, columns)
    write_rows(tables, folder / "train.parquet", "parquet")


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "train": run_train,
    "held": run_held,
    "export": run_export,
}


def measure(way: str, run: Path) -> dict[str, float]:
    """Seconds and peak memory of one way in a fresh process."""
    command = [sys.executable, __file__, "--only", way, "--run", str(run)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report_one(way: str, run: Path) -> None:
    with tempfile.TemporaryDirectory(dir=run) as folder:
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            WAYS[way](run, Path(folder))
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": peak_bytes(torch.device("cpu"))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000, help="of the smaller corpus")
    parser.add_argument("--folder", help="for the synthetic runs; they are removed at the end")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        report_one(arguments.only, arguments.run)
        return
    sizes = (arguments.samples, 10 * arguments.samples)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_model(Path(folder) / "model")
        figures = {}
        for size in sizes:
            run = Path(folder) / f"run-{size}"
            make_run(run, size)
            figures[size] = {way: measure(way, run) for way in WAYS}
    print(f"peak MiB and seconds, samples of {PROMPT_LENGTH + RESPONSE_LENGTH} tokens\n")
    print(f"{'':<8}" + "".join(f"{size:>12,} samples" for size in sizes))
    for way in WAYS:
        cells = (figures[size][way] for size in sizes)
        texts = (f"{cell['peak'] / 2**20:>10,.0f} {cell['seconds']:>7.1f} s" for cell in cells)
        print(f"{way:<8}" + " ".join(texts))


if __name__ == "__main__":
    main()
