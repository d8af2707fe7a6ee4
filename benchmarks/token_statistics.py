"""Cost of the statistics of a scoring pass, relative to log-probabilities alone. Prints one table.

    python benchmarks/token_statistics.py [--model 36m|135m|1b] [--vocab-size 128256]

Measures `score_samples` as a whole, backbone included, on a model with random weights and samples
of random tokens whose lengths are log-normal or those of a file of Alpaca records. One process; in
each turn every row runs once, and so do log-probabilities alone. `cost` is the median over the
turns of a row's seconds divided by those of log-probabilities alone in the same turn, followed by
the smallest and largest ratio.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from scoring import draw_pairs, pick_dtype, to_samples
from transformers import LlamaConfig, LlamaForCausalLM
from workload import MAX_LENGTH, SHAPES, draw_lengths, timed

from forgetting.models.loading import pick_device
from forgetting.models.token_statistics import STATISTICS
from forgetting.scoring import score_samples

ROWS = {
    **{name: (name,) for name in STATISTICS},
    "entropy and surprise_std": ("entropy", "surprise_std"),
    "all": STATISTICS,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--vocab-size", type=int, help="default: that of the model")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--lengths", type=Path, help="JSON list of Alpaca records")
    parser.add_argument("--device", default=pick_device().type)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure processor time, not wall time: for shared machines, with --threads 1",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    device = torch.device(arguments.device)
    dtype = pick_dtype(arguments.dtype, device)
    shape = dict(SHAPES[arguments.model])
    shape["vocab_size"] = arguments.vocab_size or shape["vocab_size"]
    config = LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=MAX_LENGTH)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    lengths = draw_lengths(arguments.samples, arguments.lengths, seed=0)
    samples = to_samples(draw_pairs(lengths, shape["vocab_size"]))
    seconds = {name: np.zeros(arguments.repeats) for name in ("log_probs", *arguments.rows)}
    for turn in range(-1, arguments.repeats):  # the first one warms up
        for name in seconds:
            seconds[name][turn], _ = timed(
                lambda n=name: score_samples(model, samples, statistics=ROWS.get(n, ())),
                device,
                clock,
            )
    print(
        f"{arguments.model}, vocabulary of {shape['vocab_size']}, "
        f"{str(dtype).removeprefix('torch.')}, {device}, {torch.get_num_threads()} threads, "
        f"{len(lengths)} samples of {int(lengths.sum())} tokens ({int(lengths[:, 1].sum())} of "
        f"responses), {arguments.repeats} turns{', processor time' if arguments.cpu_time else ''}; "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'':28}{'seconds':>9}{'tokens/s':>10}{'cost':>8}{'by turn':>14}")
    for name, values in seconds.items():
        median = float(np.median(values))
        ratios = values / seconds["log_probs"]
        print(
            f"{name:28}{median:>9.2f}{lengths.sum() / median:>10.0f}{np.median(ratios):>7.2f}x"
            f"{f'{ratios.min():.2f}-{ratios.max():.2f}':>14}"
        )


if __name__ == "__main__":
    main()
