"""One cell of the benchmark: what each measure finds in its corpus, and how each model answers.

In: a cell and its directory. Out: `detection.json` and `outcomes/NAME.json`. Corpus, reference
model, scores and selections are those of an ordinary run, in `run/`; each variant is then trained
with `ForgettingTrainer` and measured on the held-out questions. Models are not kept. An interrupted
cell continues with the first result that is missing.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

import forgetting
from experiments.command_line import only_process
from experiments.known_noise import (
    DetectorVerdict,
    KnownNoise,
    Negatives,
    describe_negatives,
    judge_detector,
)
from experiments.noise.corpus import NEW, CorpusRecipes, write_corpus
from experiments.noise.design import BASE, WHERE, Cell, NoiseVariant
from experiments.noise.training import evaluate, load_base, train
from forgetting import select_tokens
from forgetting.config import VariantSettings
from forgetting.errors import DivergenceError
from forgetting.method import MEASURES
from forgetting.rundir import layout
from forgetting.rundir.findings import read_findings
from forgetting.rundir.samples import Samples
from forgetting.rundir.selections import read_polarity
from forgetting.rundir.storage import write_atomically
from forgetting.stages import detect, probe
from forgetting.stages.train import training_tables
from forgetting.studies import ALL_KINDS, DetectionScore, detect_noise, read_qualities
from forgetting.training.dataset import trainer_columns

# Not noise of some kind against all clean tokens, but wrong answers against right ones.
ANSWERS, ANSWERS_ABOUT_NEW = "answers", "answers about new"
WRONG_ANSWERS = ("wrong_answer", "label_flip")
VERSION = 2
"""Raise it when a result changes although the settings do not."""
PAPERS_RHO = 0.7
MEASURE_PREFIX = "measure-"
DETECTION = "detection"


class TokenGroup(BaseModel):
    """Tokens of one sort: right answers, ends of responses, other words, or noise of a kind."""

    share: float
    """Share of all tokens."""
    base_loss: float
    """Mean loss under the base model, in nats."""
    reference_loss: float
    among_worst: dict[str, float]
    """By measure, the share of the group that is among the worst 30 % of all tokens, which are the
    paper's negatives without `keep_eos`."""


class Detection(BaseModel):
    """The noise in D_train, and how well each measure finds it."""

    num_tokens: int
    num_noisy: dict[str, int]
    """By kind of noise, and `all`."""
    found: dict[str, dict[str, DetectionScore]]
    """By measure, then by kind of noise (against all clean tokens), `all`, and `answers`: wrong
    answers against right ones, and the same for new entities alone."""
    verdict: DetectorVerdict
    groups: dict[str, TokenGroup]
    """All tokens, each in one group: `ends`, `right answers`, `right answers about new`, `other
    words`, and the kinds of noise."""


class Outcome(BaseModel):
    """How a variant answers the held-out questions."""

    accuracy: dict[str, float]
    """Share of exact responses: `all`, questions about `known` and `new` entities, and by kind of
    question. Empty if training diverged."""
    loss: float | None
    """Mean loss of the held-out response tokens, in nats."""
    negatives: Negatives | None = None
    """None for the base model and for training on all tokens."""
    diverged: str | None = None
    """Why there is no result."""


def run_cell(cell: Cell, path: Path) -> None:
    """Finish a cell; results that are there are kept.

    Raises:
        InputError: the recipe cannot be used, or another process works on this cell.
        DivergenceError: the reference model diverged.
    """
    with only_process(path):
        missing = missing_results(cell, path)
        if not missing:
            return
        recipes = write_corpus(cell.recipe, path / "corpus", clean_reference=cell.is_clean)
        run_recipes(cell, recipes, path)
        noise = KnownNoise.read(path / "run")
        (path / "outcomes").mkdir(exist_ok=True)
        if DETECTION in missing:
            _write(path, DETECTION, cell, measure_detection(noise, path))
        questions = Samples.read(layout.train_file(path / "questions"))
        for name in cell.trained:
            if name not in missing:
                continue
            if name == BASE:
                outcome = measure(load_base(cell.recipe), questions)
            else:
                outcome = train_and_measure(cell, name, noise, questions, path)
            _write(path, name, cell, outcome)


def run_recipes(cell: Cell, recipes: CorpusRecipes, path: Path) -> None:
    """Prepare the corpora; train the reference model, score, and select for every variant."""
    for name in ("answers", "questions"):
        forgetting.run(getattr(recipes, name), path / name, stages=("prepare",))
    forgetting.run(recipes.run, path / "run", stages=("prepare",))
    variants = {name: own.settings for name, own in cell.variants.items() if not own.oracle}
    # One variant per measure, so that the run holds every score.
    variants |= {
        f"{MEASURE_PREFIX}{name}": VariantSettings.model_validate(
            {"objective": "ignoring", "selection": {"quality": name}}
        )
        for name in MEASURES
    }
    recipe = recipes.run.model_copy(update={"variants": variants})
    stages = ("reference", "score", "probe", "detect", "alternatives", "select")
    forgetting.run(recipe, path / "run", stages=stages)


def measure_detection(noise: KnownNoise, path: Path) -> Detection:
    """How well each measure finds a cell's noise."""
    qualities = read_qualities(path / "run", MEASURES)
    findings = read_findings(path / "run", noise.samples.fingerprint)
    answers = Samples.read(layout.train_file(path / "answers"))
    right = answers.noise()
    assert right is not None
    assert np.array_equal(answers.input_ids, noise.samples.input_ids)
    compared = (noise.noisy & np.isin(noise.kinds, WRONG_ANSWERS)) | right
    sources = np.asarray(noise.samples.table["source"].to_pylist(), str)
    is_new = noise.samples.per_response_token(np.char.startswith(sources, NEW))
    subsets = {ANSWERS: compared}
    if is_new.any():
        subsets[ANSWERS_ABOUT_NEW] = compared & is_new
    is_end = np.zeros(noise.noisy.size, bool)
    is_end[noise.samples.response_starts[1:] - 1] = True
    members = {
        "right answers": right & ~is_new,
        "right answers about new": right & is_new,
        "ends": is_end & ~noise.noisy,
        "other words": ~(right | is_end | noise.noisy),
        **{kind: noise.of(kind) for kind in noise.names},
    }
    return Detection(
        num_tokens=noise.noisy.size,
        num_noisy={
            ALL_KINDS: int(noise.noisy.sum()),
            **{kind: int(noise.of(kind).sum()) for kind in noise.names},
        },
        found=detect_noise(qualities, noise.noisy, noise.kinds, subsets),
        verdict=judge_detector(1 - qualities["detector"], noise, findings),
        groups=describe_groups(members, qualities),
    )


def describe_groups(
    members: Mapping[str, NDArray[np.bool_]], qualities: Mapping[str, NDArray]
) -> dict[str, TokenGroup]:
    """Losses of groups of tokens, and where the measures put them; all of shape (tokens,)."""
    worst = {name: select_tokens(q, PAPERS_RHO) < 0 for name, q in qualities.items()}
    return {
        name: TokenGroup(
            share=float(own.mean()),
            base_loss=-float(qualities["base_loss"][own].mean()),
            reference_loss=-float(qualities["reference_loss"][own].mean()),
            among_worst={
                measure: float(is_worst[own].mean()) for measure, is_worst in worst.items()
            },
        )
        for name, own in members.items()
        if own.any()
    }


def train_and_measure(
    cell: Cell, name: str, noise: KnownNoise, questions: Samples, path: Path
) -> Outcome:
    """Train one variant and measure it."""
    variant = cell.variants[name]
    negatives = None
    if variant.selects or variant.oracle:
        negatives = describe_negatives(choose(variant, name, noise, path / "run"), noise)
    try:
        model = train(cell.recipe, variant, learned_by(variant, name, noise, path / "run"))
    except DivergenceError as error:
        return Outcome(accuracy={}, loss=None, negatives=negatives, diverged=str(error))
    return measure(model, questions).model_copy(update={"negatives": negatives})


def learned_by(variant: NoiseVariant, name: str, noise: KnownNoise, run: Path) -> pa.Table:
    """D_train with the columns of the trainer, as a variant learns it."""
    if variant.oracle:
        return pa.table(trainer_columns(noise.samples, choose(variant, name, noise, run)))
    return pa.concat_tables(training_tables(run, name, variant, has_weights=False))


def choose(variant: NoiseVariant, name: str, noise: KnownNoise, run: Path) -> NDArray[np.int8]:
    """The polarity of every response token of D_train, shape (response tokens,).

    The oracle's negatives are the noise. They include the ends of truncated responses, which no
    selection may choose while `keep_eos` is on.
    """
    if variant.oracle:
        return np.where(noise.noisy, -1, 1).astype(np.int8)
    file = layout.polarity_file(layout.selection_dir(run, name))
    return read_polarity(file, noise.samples.fingerprint)[0]


def measure(model: Any, questions: Samples) -> Outcome:
    """How a model answers the held-out questions."""
    is_exact, loss = evaluate(model, questions)
    kinds = np.asarray(questions.table["source"].to_pylist(), str)
    is_new = np.char.startswith(kinds, NEW)
    groups = {"all": np.ones(len(kinds), bool), "known": ~is_new, "new": is_new}
    groups |= {str(kind): kinds == kind for kind in np.unique(kinds)}
    accuracy = {name: float(is_exact[own].mean()) for name, own in groups.items() if own.any()}
    return Outcome(accuracy=accuracy, loss=loss)


def missing_results(cell: Cell, path: Path) -> list[str]:
    """The results of a cell that are not there, or were made with other settings: `detection`, and
    names of variants."""
    return [name for name in (DETECTION, *cell.trained) if not _is_current(path, name, cell)]


def is_done(cell: Cell, path: Path) -> bool:
    """Whether every result of a cell is there."""
    return not missing_results(cell, path)


def read_detection(path: Path) -> Detection:
    """How well the measures find a cell's noise."""
    return Detection.model_validate(_read(path, DETECTION)["result"])


def read_outcome(path: Path, name: str) -> Outcome:
    """How a cell's variant, or the base model, answers."""
    return Outcome.model_validate(_read(path, name)["result"])


def _file(path: Path, name: str) -> Path:
    return path / "detection.json" if name == DETECTION else path / "outcomes" / f"{name}.json"


def _read(path: Path, name: str) -> dict[str, Any]:
    return json.loads(_file(path, name).read_text(encoding="utf-8"))


def _write(path: Path, name: str, cell: Cell, result: BaseModel) -> None:
    document = {"settings": _settings(cell, name), "result": result.model_dump()}
    write_atomically(_file(path, name), json.dumps(document, indent=1))


def _is_current(path: Path, name: str, cell: Cell) -> bool:
    try:
        return _read(path, name)["settings"] == _settings(cell, name)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _settings(cell: Cell, name: str) -> str:
    """Checksum of everything that a result depends on."""
    recipe = cell.recipe.model_dump(mode="json", exclude={"variants", "evaluation", "report"})
    content = {
        "version": [VERSION, forgetting.__version__],
        "recipe": {**recipe, "model": _model_checksum(cell.recipe.model.name_or_path)},
        "reference": cell.reference,
    }
    if name in cell.variants:
        content["variant"] = cell.variants[name].model_dump(mode="json", exclude=WHERE)
    if name == DETECTION or (name in cell.variants and cell.variants[name].needs_posterior):
        content["detector"] = [probe.VERSION, detect.VERSION]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _model_checksum(name_or_path: str) -> str:
    """Checksum of a model folder's files; a hub id stays as it is."""
    checksum = hashlib.sha256(b"" if Path(name_or_path).is_dir() else name_or_path.encode())
    for file in sorted(Path(name_or_path).glob("*")):
        if file.is_file():
            checksum.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return checksum.hexdigest()
