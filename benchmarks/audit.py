"""Speed of the scoring pass of an audit, compared with a plain loop. Prints one table.

    forgetting audit alpaca_data.json --limit 1000 --output AUDIT
    python benchmarks/audit.py AUDIT

Scores some records of the audit with the model that judged, on one thread, and measures processor
time, so that other programs disturb little. The plain loop calls transformers for one record after
the other and takes `log_softmax` over all logits. In each turn every way runs once; the ratio is
the median over the turns of a way's tokens per second divided by those of the plain loop in the
same turn, followed by the smallest and largest ratio.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from workload import timed

from forgetting import score_dataset
from forgetting.auditing import open_audit
from forgetting.models.gguf import with_folder
from forgetting.models.loading import load_base_model, pick_dtype
from forgetting.models.token_statistics import STATISTICS
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples, list_column

Column = list[list[int]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audit", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def draw(samples: Samples, number: int) -> tuple[Column, Column]:
    """Token ids and labels of samples at random."""
    chosen = np.random.default_rng(0).permutation(len(samples))[:number]
    found = []
    for name in ("input_ids", "labels"):
        values, starts = list_column(samples.table, name)
        found.append([values[starts[i] : starts[i + 1]].tolist() for i in chosen])
    return found[0], found[1]


@torch.inference_mode()
def plain_loop(model: Any, input_ids: Column, labels: Column) -> list[np.ndarray]:
    """Log-probabilities of the labeled tokens, one sample after the other."""
    found = []
    for ids, own in zip(input_ids, labels, strict=True):
        tokens = torch.tensor([ids])
        log_probs = model(tokens).logits[0, :-1].log_softmax(-1)
        of_tokens = log_probs.gather(1, tokens[0, 1:, None])[:, 0]
        found.append(of_tokens[torch.tensor(own[1:]) != -100].float().numpy())
    return found


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    audit = open_audit(arguments.audit)
    settings = with_folder(audit.recipe.model)
    model = load_base_model(settings, pick_dtype(settings)).to(cpu)
    data = draw(Samples.read(layout.train_file(audit.run)), arguments.samples)
    ways: dict[str, Callable[[], Any]] = {
        "plain loop": lambda: plain_loop(model, *data),
        "ours, log-probs alone": lambda: score_dataset(model, *data),
        "ours, all statistics": lambda: score_dataset(model, *data, statistics=STATISTICS),
    }
    seconds = {name: np.zeros(arguments.repeats) for name in ways}
    for turn in range(-1, arguments.repeats):  # the first one warms up
        for name, way in ways.items():
            seconds[name][turn], _ = timed(way, cpu, time.process_time)
    num_tokens = sum(map(len, data[0]))
    print(
        f"{audit.model_name}, {str(model.dtype).removeprefix('torch.')}, one thread, processor "
        f"time, {len(data[0])} samples of {num_tokens:,} tokens, {arguments.repeats} turns; load "
        f"{os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'':24}{'tokens/s':>10}{'ratio':>8}{'by turn':>14}")
    for name, values in seconds.items():
        ratios = seconds["plain loop"] / values
        print(
            f"{name:24}{num_tokens / np.median(values):>10,.0f}{np.median(ratios):>7.2f}x"
            f"{f'{ratios.min():.2f}-{ratios.max():.2f}':>14}"
        )


if __name__ == "__main__":
    main()
