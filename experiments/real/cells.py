"""The cells of the evidence: which corpus, how much noise, which recipe.

In: a seed and sizes. Out: `Cell`s, each with a corpus to write and a recipe to run. Runs nothing.

Settings were not chosen by results: learning rate, rank and batch size are common ones, and the
rest is the product's default, or the paper's where a variant is the paper's.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.real.noise import MARKED_KIND, Noisy, first_sentences, inject
from experiments.real.records import CORPORA, MARKED, MIXED, load_records
from forgetting import Recipe
from forgetting.studies import measures

RATES = (0.15, 0.3, 0.05, 0.0)
TRAINED_RATES = (0.2, 0.4, 0.0)
SEEDS = (1, 2, 3)
TASKS = ("boolq", "arc_challenge", "asdiv", "truthfulqa_mc1")
ITEMS_PER_TASK = 200
OUTSIDE = 500
"""Records at the end of a corpus whose responses are swapped in; of a small one, a tenth."""
LOOKED_AT = 1000
"""Records at the start of the large corpora: faults of the detector were found on some of them, so
none is measured."""
SHORT = 160
"""Characters of a prompt and a response in the corpora that models are trained on."""
MODEL = {"name_or_path": "embedded", "dtype": "bfloat16"}
SHARDS = {"samples_per_shard": 64}

Task = Literal["finding", "training", "paper"]


@dataclass(frozen=True)
class Cell:
    """One corpus with noise, and what is done with it."""

    task: Task
    corpus: str
    rate: float
    """Share of the records that are noisy."""
    seed: int = 1
    reference: bool = False
    """Whether a reference model is trained and the detector uses it; finding only."""
    num_train: int = 400
    num_reference: int = 0
    num_heldout: int = 0
    has_tasks: bool = False
    """Whether the trained models answer benchmarks."""
    is_large: bool = False
    """Whether records of any length are trained on, in a number that asks for a GPU."""

    @property
    def name(self) -> str:
        parts = [self.task, self.corpus, f"{100 * self.rate:.0f}", str(self.seed)]
        return "-".join(parts + ["reference"] * self.reference + ["large"] * self.is_large)

    @property
    def num_records(self) -> int:
        return self.num_train + self.num_reference + self.num_heldout


def all_cells() -> list[Cell]:
    """Every cell, those that matter most first."""
    found = [Cell("finding", corpus, rate) for rate in RATES for corpus in CORPORA]
    marked = Cell("finding", MARKED, 0.0)
    mixed = [Cell("finding", MIXED, rate, num_train=1500) for rate in (0.25, 0.0)]
    with_reference = [
        Cell("finding", corpus, 0.15, reference=True, num_reference=200)
        for corpus in CORPORA
        # Too few records to be split.
        if corpus != "oasst"
    ]
    trained = [
        Cell(
            "training",
            "alpaca",
            rate,
            seed,
            num_train=1000,
            num_reference=300,
            num_heldout=300,
            # The benchmarks take longer than the training.
            has_tasks=(rate, seed) == (TRAINED_RATES[0], SEEDS[0]),
        )
        for seed in SEEDS
        for rate in TRAINED_RATES
    ]
    paper = Cell(
        "paper", "alpaca", 0.0, num_train=1000, num_reference=500, num_heldout=200, has_tasks=True
    )
    return [
        *mixed[:1],
        *found[:4],
        marked,
        *trained[:3],
        *with_reference,
        paper,
        *found[4:],
        *mixed[1:],
        *trained[3:],
    ]


def large_cells() -> list[Cell]:
    """Trainings on ten times as many records, of any length."""
    training = Cell(
        "training",
        "alpaca",
        TRAINED_RATES[0],
        num_train=10_000,
        num_reference=3000,
        num_heldout=500,
        is_large=True,
    )
    return [replace(training, task="paper", rate=0.0, has_tasks=True), training]


def quick_cells() -> list[Cell]:
    """One small cell of each task."""
    trained = Cell("training", "alpaca", 0.4, num_train=60, num_reference=30, num_heldout=40)
    return [
        Cell("finding", "alpaca", 0.3, num_train=100),
        trained,
        replace(trained, task="paper", rate=0.0),
    ]


def write_corpus(cell: Cell, data_dir: Path, file: Path) -> None:
    """Write the records of a cell, as the product reads them.

    Raises:
        InputError: the corpus is missing.
    """
    records = load_records(data_dir, cell.corpus)
    if cell.task != "finding" and not cell.is_large:
        records = [r for r in records if max(len(r.prompt), len(r.response)) <= SHORT]
    first_outside = len(records) - min(OUTSIDE, max(1, len(records) // 10))
    begin = LOOKED_AT if first_outside >= LOOKED_AT + cell.num_records else 0
    if cell.corpus == MARKED:
        chosen = records[begin : begin + cell.num_records]
        noisy = [Noisy(r.prompt, r.response, MARKED_KIND, r.spans) for r in chosen]
    else:
        seed = zlib.crc32(f"{cell.corpus} {cell.rate} {cell.seed}".encode())
        noisy = inject(
            records[begin : min(begin + cell.num_records, first_outside)],
            [record.response for record in records[first_outside:]],
            first_sentences(load_records(data_dir, "flan")[-OUTSIDE:]),
            cell.rate,
            seed,
        )
    lines = [json.dumps(_as_row(record)) for record in noisy]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _as_row(record: Noisy) -> dict[str, Any]:
    return {
        "prompt": record.prompt,
        "completion": record.response,
        "noise_spans": [list(span) for span in record.spans],
        "noise_kind": record.kind if record.spans else None,
    }


def make_recipe(cell: Cell, file: Path, num_records: int, data_dir: Path) -> Recipe:
    """The recipe of a cell.

    Args:
        file: its corpus.
        num_records: records of the corpus, if there are fewer than the cell asks for.
        data_dir: folder with the files of the benchmarks.
    """
    num_train = min(cell.num_train, num_records - cell.num_reference - cell.num_heldout)
    given: dict[str, Any] = {
        "name": cell.name,
        "seed": cell.seed,
        "model": MODEL,
        "scoring": SHARDS,
        "data": {
            "sources": [{"path": str(file), "name": cell.corpus}],
            "num_train": num_train,
            "num_reference": cell.num_reference,
            "num_heldout": cell.num_heldout,
            "max_length": 1024,
        },
        "training": TRAINING,
        "evaluation": {"num_answers": 0},
    }
    if cell.task == "finding":
        given |= {
            "detector": {"reference": "always" if cell.reference else "never"},
            "variants": _every_measure(cell.reference),
        }
    elif cell.task == "training":
        given |= {"detector": {"reference": "never"}, "variants": TRAINED}
    else:
        given |= {"training": {**TRAINING, **PAPER_TRAINING}, "variants": PAPER_VARIANTS}
    if cell.is_large:
        given["training"] = given["training"] | LARGE_TRAINING[cell.task]
    if cell.has_tasks:
        tasks = [{"task": task, "limit": ITEMS_PER_TASK} for task in TASKS]
        given["evaluation"] |= {"tasks": tasks, "data_dir": str(data_dir / "eval")}
    return Recipe.model_validate(given)


TRAINING = {
    "learning_rate": 2e-4,
    "batch_size": 8,
    "micro_batch_size": 8,
    "lora": {"rank": 16, "alpha": 32},
    "gradient_checkpointing": False,
    "logging_steps": 5,
    "save_steps": 25,
}
LARGE_TRAINING: dict[str, Any] = {
    "training": {"batch_size": 32, "micro_batch_size": 32},
    # The paper's batch, in one piece.
    "paper": {"micro_batch_size": 24},
}
TRAINED: dict[str, Any] = {
    "full": {},
    "weighted": {},
    # The paper's two settings.
    "ignoring": {"selection": {"rho": 0.5}},
    "forgetting": {},
    "dft": {"objective": "full", "loss": "dft"},
    # The ceiling: the tokens that are known to be noise are left out.
    "known": {"objective": "ignoring", "selection": {"by": "known", "keep_eos": False}},
}
PAPER_TRAINING = {
    "learning_rate": 1e-4,
    "batch_size": 24,
    "micro_batch_size": 8,
    "lora": {"rank": 64, "alpha": 16},
}
PAPER_VARIANTS: dict[str, Any] = {
    "full": {},
    "ignoring": {"selection": {"rho": 0.7}},
    "forgetting": {},
}


def _every_measure(with_reference: bool) -> dict[str, Any]:
    """One variant for each measure, so that the run holds every score. Nothing is trained."""
    return {
        name.replace("_", "-"): {"objective": "ignoring", "selection": {"quality": name}}
        for name in measures(with_reference)
    }
