"""How often the report's verdict names a good model: `python experiments/noise/verdicts.py`.

An ordinary run for every noise rate and seed, in the world of the noise benchmark. The verdict
compares the models on held-out samples that are as noisy as the corpus, without knowing which
tokens are bad. Here it is known: each model is measured on the clean held-out samples as well, and
the named model is compared with the best one and with `full`. Finished runs are skipped.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import forgetting
from experiments.known_noise import KnownNoise
from experiments.noise.design import RECIPE
from forgetting.console import quiet_frameworks, report_errors, setup_logging
from forgetting.report.verdict import run_verdict
from forgetting.rundir import layout
from forgetting.rundir.heldout_losses import read_heldout_hits
from forgetting.rundir.reader import RunReader
from forgetting.rundir.samples import Samples
from forgetting.studies import as_markdown

RATES = (0.0, 0.1, 0.2, 0.4)
SEEDS = (1, 2, 3)
FULL = "full"
VARIANTS = "{full: {}, weighted: {}, corrected: {}, dft: {objective: full, loss: dft}, "
VARIANTS += "ignoring: {selection: {rho: 0.5}}, forgetting: {}}"


@dataclass(frozen=True)
class Case:
    """What the verdict of a run says, next to what is true."""

    rate: float
    seed: int
    named: str
    best: str
    accuracy: dict[str, float]
    """Share of the clean held-out responses that are exact, by model."""
    gain: float
    """That of the named model minus that of `full`."""
    error: float
    """Standard error of the gain, paired over samples."""

    @property
    def is_best(self) -> bool:
        """Whether no model is more accurate than the named one."""
        return self.accuracy[self.named] == max(self.accuracy.values())


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("studies/verdicts"))
    output = parser.parse_args().output
    quiet_frameworks()
    setup_logging(True)
    return report_errors(lambda: run(output))


def run(output: Path) -> None:
    """Run every rate and seed, and print one line for each."""
    cases = [run_case(rate, seed, output) for rate in RATES for seed in SEEDS]
    print(table(cases))


def run_case(rate: float, seed: int, output: Path) -> Case:
    """One run, and what its verdict is worth."""
    path = output / f"{100 * rate:.0f}-{seed}"
    world = "{num_records: 1800, noise_rate: " + str(rate) + "}"
    overrides = [
        f"seed={seed}",
        f"data.sources=[{{world: {world}}}]",
        f"variants={VARIANTS}",
        "evaluation.num_answers=0",
    ]
    forgetting.run(forgetting.load_recipe(RECIPE, overrides), path)
    return judge(path, rate, seed)


def judge(path: Path, rate: float, seed: int) -> Case:
    """Compare the verdict of a finished run with the known noise."""
    reader = RunReader(path)
    verdict = run_verdict(reader)
    assert verdict is not None
    assert reader.recipe is not None
    noise = KnownNoise.read(path, "heldout")
    exact = {
        name: exact_matches(path, name, noise.samples)[noise.is_clean]
        for name in reader.recipe.variants
    }
    gains = exact[verdict.model].astype(float) - exact[FULL]
    accuracy = {name: float(values.mean()) for name, values in exact.items()}
    return Case(
        rate,
        seed,
        verdict.model,
        max(accuracy, key=accuracy.__getitem__),
        accuracy,
        float(gains.mean()),
        float(gains.std(ddof=1) / np.sqrt(len(gains))),
    )


def exact_matches(path: Path, name: str, samples: Samples) -> NDArray[np.bool_]:
    """Whether greedy decoding gives each held-out response; shape (samples,)."""
    ones = np.ones(int(samples.num_response_tokens.sum()))
    hits = read_heldout_hits(layout.evaluation_dir(path, name), samples, ones)
    assert hits is not None
    return hits == samples.num_response_tokens


def table(cases: list[Case]) -> str:
    """One line a run, and how often the verdict is right."""
    rows = [
        [
            f"{100 * case.rate:.0f} %",
            str(case.seed),
            case.named,
            case.best,
            *(f"{100 * case.accuracy[name]:.1f}" for name in (FULL, case.named, case.best)),
            f"{100 * case.gain:+.1f} ± {100 * case.error:.1f}",
        ]
        for case in cases
    ]
    header = [
        "noisy records", "seed", "named", "best", "full", "of the named", "of the best",
        "named minus full",
    ]  # fmt: skip
    harmful = sum(case.gain < -case.error for case in cases)
    text = f"Named the most accurate model, or one as accurate: {sum(c.is_best for c in cases)} of "
    text += f"{len(cases)}. Named one that is worse than full by more than its error: {harmful}."
    return f"{as_markdown(header, rows, 4)}\n\n{text}"


if __name__ == "__main__":
    sys.exit(main())
