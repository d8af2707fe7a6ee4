"""Every path of a run directory, spelled once.

A stage writes into one folder of the run: the `*_dir` functions say which. The other functions
name a file within such a folder, so that they serve a stage's work folder as well.
"""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
MANIFEST_COPY = ".manifest-copy.json"
RECIPE = "recipe.yaml"
LOCK = ".lock"
LOCK_OWNER = ".lock-owner"
WORK = ".work"
NOTES = "kept"
"""In the work folder of a stage, the checksums of files that it relies on when it is resumed."""
SEAL = "sealed.json"
"""The checksums of a checkpoint's files."""
SPLITS = ("reference", "train", "heldout")
"""The parts of the corpus: D_ref, D_train and the held-out samples."""
BASE = "base"
"""The base model, in the place of a variant's name."""


def recipe_file(run: Path) -> Path:
    """The recipe as the run used it, with all defaults."""
    return run / RECIPE


def manifest_file(run: Path) -> Path:
    """Which stages are done."""
    return run / MANIFEST


def data_dir(run: Path) -> Path:
    """The corpus; written by `prepare`."""
    return run / "data"


def reference_dir(run: Path, fold: str | None = None) -> Path:
    """The reference model, or that of one fold; written by `reference`."""
    return run / "reference" if fold is None else run / "reference" / fold


def scores_dir(run: Path) -> Path:
    """Scores of D_train's response tokens; written by `score`."""
    return run / "scores"


def probe_dir(run: Path) -> Path:
    """Copies of D_train records with planted noise, and their scores; written by `probe`."""
    return run / "probe"


def detector_dir(run: Path) -> Path:
    """What the detector found; written by `detect`."""
    return run / "detector"


def alternatives_dir(run: Path) -> Path:
    """What is expected in the place of bad tokens; written by `alternatives`."""
    return run / "alternatives"


def evolution_dir(run: Path, variant: str) -> Path:
    """The self-evolving reference of a variant with rounds; written by `evolve`."""
    return run / "evolution" / variant


def selection_dir(run: Path, variant: str | None = None) -> Path:
    """The selection of a variant, written by `select`; without a variant, the folder of all."""
    return _of_variant(run / "selection", variant)


def model_dir(run: Path, variant: str | None = None) -> Path:
    """The trained model of a variant, written by `train`; without a variant, the folder of all."""
    return _of_variant(run / "models", variant)


def evaluation_dir(run: Path, variant: str | None = None) -> Path:
    """Results of a variant, written by `evaluate`; without a variant, the folder of all."""
    return _of_variant(run / "evaluation", variant)


def report_dir(run: Path) -> Path:
    """The report; written by `report`."""
    return run / "report"


def _of_variant(folder: Path, variant: str | None) -> Path:
    return folder if variant is None else folder / variant


def split_file(data: Path, split: str) -> Path:
    """The samples of a part of the corpus."""
    return data / f"{split}.parquet"


def train_file(run: Path) -> Path:
    """The samples of D_train."""
    return split_file(data_dir(run), "train")


def train_records_file(data: Path) -> Path:
    """The conversations of D_train as text."""
    return data / "train-records.parquet"


def rejected_file(data: Path) -> Path:
    """The records that could not be used, with the reasons."""
    return data / "rejected.parquet"


def summary_file(folder: Path) -> Path:
    """The summary in the folder of the corpus, of the detector or of a selection."""
    return folder / "summary.json"


def heldout_scores_dir(scores: Path) -> Path:
    """The scores of the held-out samples, within the folder of D_train's."""
    return scores / "heldout"


def score_file(scores: Path, index: int, num_shards: int) -> Path:
    """One shard of the scores."""
    return scores / f"scores-{index:05d}-of-{num_shards:05d}.parquet"


def score_files(scores: Path) -> list[Path]:
    """The shards of scores that are there, in order."""
    return sorted(scores.glob("scores-*-of-*.parquet"))


def num_shards(file: Path) -> int:
    """How many shards there are, by the name of one of them."""
    return int(file.stem.rsplit("-", 1)[1])


def probe_file(probe: Path) -> Path:
    """The copies with planted noise, as samples."""
    return probe / "samples.parquet"


def posterior_file(detector: Path) -> Path:
    """The detector's posterior of every response token of D_train."""
    return detector / "posterior.parquet"


def trees_file(detector: Path) -> Path:
    """The detector's trees, which say what speaks for a token being bad."""
    return detector / "trees.parquet"


def features_file(detector: Path) -> Path:
    """The features that the detector's trees look at."""
    return detector / "features.parquet"


def heldout_posterior_file(detector: Path) -> Path:
    """The detector's posterior of every response token of the held-out samples."""
    return detector / "posterior-heldout.parquet"


def alternatives_file(alternatives: Path, index: int, num_shards: int) -> Path:
    """One shard of the alternatives, of the same samples as the shard of the scores."""
    return alternatives / f"alternatives-{index:05d}-of-{num_shards:05d}.parquet"


def alternatives_files(alternatives: Path) -> list[Path]:
    """The shards of alternatives that are there, in order."""
    return sorted(alternatives.glob("alternatives-*-of-*.parquet"))


def polarity_file(selection: Path) -> Path:
    """The polarity of every response token of D_train."""
    return selection / "polarity.parquet"


def own_scores_file(folder: Path) -> Path:
    """In the folder of a self-evolving reference, and of the selection by it: the log-probability
    of every response token of D_train under the model of the parts before its own, and its
    polarity. Tokens of the first part have that under the last of these models."""
    return folder / "own-reference.parquet"


def evolved_model_dir(evolution: Path) -> Path:
    """The model after all parts of D_train but the last."""
    return evolution / "model"


def training_log(model: Path) -> Path:
    """What training logged, one JSON object per logged step."""
    return model / "training.jsonl"


def result_file(evaluation: Path, task: str) -> Path:
    """The result of a task. Characters that file names cannot hold become underscores."""
    return evaluation / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}.json"


def heldout_file(evaluation: Path) -> Path:
    """The log-probability of every response token of the held-out samples."""
    return evaluation / "heldout.parquet"


def answer_sheet(evaluation: Path) -> Path:
    """The answers to held-out prompts. Not next to the results, which are found by their suffix."""
    return evaluation / "generated" / "answers.json"


def answers_file(evaluation: Path, task: str) -> Path:
    """Prompts, answers and scores of a task, one JSON object per item."""
    return result_file(evaluation, task).with_suffix(".samples.jsonl")


def items_file(evaluation: Path, task: str) -> Path:
    """The score of every item of a task, one line per item."""
    return result_file(evaluation, task).with_suffix(".items.csv")


def report_page(report: Path) -> Path:
    """The main page of the report."""
    return report / "index.html"


def inspector_page(report: Path) -> Path:
    """The tokens of some samples."""
    return report / "inspector.html"


def results_file(report: Path, form: str = "json") -> Path:
    """The table of results as `json`, `csv` or `md`."""
    return report / f"results.{form}"
