"""Time and memory of the stage `prepare`, beside the tokenizer alone. Prints one table.

    python benchmarks/prepare.py [--records alpaca_data.json] [--model FOLDER] [--repeats 3]

The stage reads a JSON list of Alpaca records, cleans, splits and tokenises them and writes the
samples; it runs in a process of its own, whose peak memory is that of the whole process. Without
`--records`, 52,002 records of made-up words are written first, with lengths like those of Alpaca;
without `--model` the tokenizer is that of the demo. Beside it, in turns and on the same texts:

    (a)     the tokenizer, one record a call, as a `map` over records does
    (b)     the tokenizer, a thousand records a call, on all cores: what no way can do without

Both only make token ids: no reading, labels, cleaning or writing. The last row is the stage on a
tenth of the records, for its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from transformers import AutoTokenizer
from workload import draw_lengths

NUM_RECORDS = 52_002
BATCH = 1000
COMMAND = "from forgetting.cli import entry; entry()"


def made_up(number: int, seed: int) -> list[dict[str, str]]:
    """Records of the lengths of Alpaca's, each of other words."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(random.choice(letters, size)) for size in random.integers(2, 10, 5000)]
    records = []
    for index, (prompt, response) in enumerate(draw_lengths(number, None, seed)):
        picked = random.choice(words, prompt + response).tolist()
        question = f"{index} {' '.join(picked[:prompt])}"
        records.append({"instruction": question, "output": " ".join(picked[prompt:])})
    return records


def run_stage(records: Path, model: str, max_length: int, folder: Path) -> dict[str, Any]:
    """What the manifest and the summary say of one run of the stage."""
    number = len(json.loads(records.read_text(encoding="utf-8")))
    recipe = {
        "name": "prepare",
        "model": {"name_or_path": model},
        "data": {
            "sources": [str(records)],
            # All but a twentieth, which is for records that cannot be used.
            "num_reference": number // 6,
            "num_train": number - number // 6 - number // 10,
            "num_heldout": number // 20,
            "max_length": max_length,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as run:
        arguments = ["prepare", str(folder / "recipe.yaml"), "--run-dir", f"{run}/run", "--json"]
        subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True, capture_output=True)
        manifest = json.loads(Path(run, "run/manifest.json").read_text(encoding="utf-8"))
        summary = json.loads(Path(run, "run/data/summary.json").read_text(encoding="utf-8"))
    stage = manifest["stages"]["prepare"]
    (source,) = summary["sources"]
    return {
        "records": number,
        "seconds": stage["seconds"],
        "samples": source["used"],
        "tokens": source["tokens"],
        "memory": stage["peak_memory_bytes"] / 2**20,
    }


def tokenise(tokenizer: Any, texts: Sequence[str], batch_size: int) -> tuple[float, int]:
    """Seconds for, and number of, the tokens of all texts."""
    begin = time.perf_counter()
    tokens = 0
    for start in range(0, len(texts), batch_size):
        encoded = tokenizer(list(texts[start : start + batch_size]), verbose=False).input_ids
        tokens += sum(map(len, encoded))
    return time.perf_counter() - begin, tokens


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, help="JSON list of Alpaca records")
    parser.add_argument("--model", help="folder with a tokenizer and a config.json")
    parser.add_argument("--max-length", type=int, default=128, help="data.max_length")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = options.model or str(resources.files("forgetting") / "demo" / "base")
    tokenizer = AutoTokenizer.from_pretrained(model)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        records = options.records
        if records is None:
            records = folder / "records.json"
            records.write_text(json.dumps(made_up(NUM_RECORDS, 0)), encoding="utf-8")
        given = json.loads(records.read_text(encoding="utf-8"))
        tenth = folder / "tenth.json"
        tenth.write_text(json.dumps(given[::10]), encoding="utf-8")
        texts = [f"{r['instruction']}\n{r.get('input', '')}\n{r['output']}" for r in given]
        runs = []
        alone: dict[int, list[tuple[float, int]]] = {1: [], BATCH: []}
        for _ in range(options.repeats):
            runs.append(run_stage(records, model, options.max_length, folder))
            for batch_size, times in alone.items():
                times.append(tokenise(tokenizer, texts, batch_size))
        small = run_stage(tenth, model, options.max_length, folder)
    best = min(runs, key=lambda run: run["seconds"])
    print(f"{best['records']:,} records, {best['samples']:,} samples of {best['tokens']:,} tokens")
    print(f"{'':12}{'seconds':>9}{'records/s':>11}{'ratio':>7}{'peak MiB':>10}")
    rows = [("prepare", best["seconds"], best["records"], best["memory"])]
    names = {1: "(a) single", BATCH: "(b) batched"}
    rows += [(names[size], min(times)[0], len(texts), None) for size, times in alone.items()]
    rows += [("a tenth", small["seconds"], small["records"], small["memory"])]
    for name, seconds, number, memory in rows:
        ratio = f"{seconds / best['seconds']:.2f}" if number == best["records"] else ""
        peak = "" if memory is None else f"{memory:,.0f}"
        print(f"{name:12}{seconds:9.1f}{number / seconds:11,.0f}{ratio:>7}{peak:>10}")


if __name__ == "__main__":
    main()
