"""All that belongs to one cell: its corpus, its reference model, the scores, what every measure of
quality finds, and the accuracy of every variant.

Goes in: a cell and its directory. Comes out: `detection.json` and a JSON file for each variant.
The directory is a run directory: each step is done once, and appears whole or not at all. The
models are measured and thrown away.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel
from sklearn.metrics import average_precision_score, roc_auc_score

from forgetting.config import Recipe, SelectionSettings
from forgetting.errors import DivergenceError
from forgetting.evaluation import evaluate_heldout
from forgetting.method import MEASURES, QualityName, select_tokens
from forgetting.method.terms import TERMS
from forgetting.models import loading
from forgetting.models.adapters import load_variant
from forgetting.pipeline import fingerprint
from forgetting.rundir import layout
from forgetting.rundir.directory import RunDir, Work
from forgetting.rundir.files import write_atomically
from forgetting.rundir.manifest import read_manifest, stage_is_done
from forgetting.rundir.samples import Samples
from forgetting.rundir.scores import ScoredCorpus
from forgetting.rundir.selection import read_polarity
from forgetting.rundir.stats import DataSummary
from forgetting.stages.base import Reads, Stage, Step, plan_steps
from forgetting.stages.corpus_selection import select_corpus
from forgetting.stages.reference import REFERENCE
from forgetting.stages.score import SCORE
from forgetting.studies.noise.corpus import NEW, read_answers, write_corpus
from forgetting.studies.noise.design import ALL_KINDS, BASE, WHERE, Cell, NoiseVariant
from forgetting.training import fit
from forgetting.training.dataset import trainer_columns

# Not noise of some kind against all clean tokens, but wrong answers against right ones.
ANSWERS, ANSWERS_ABOUT_NEW = "answers", "answers about new"
WRONG_ANSWERS = ("wrong_answer", "label_flip")
VERSION = 1
"""Of what is computed: raise it when a result changes with the same settings."""
DETECTION_VERSION = 2
"""Of `detection.json` alone."""
PAPERS_RHO = 0.7


class Found(BaseModel):
    """How well a measure of quality finds noise; None where there is none to find."""

    auroc: float | None
    """Chance that a noisy token is worse than a clean one; 0.5 is chance."""
    average_precision: float | None
    """Area under precision over recall, worst tokens first."""


class TokenGroup(BaseModel):
    """Tokens of one sort: right answers, ends of responses, other words, or noise of a kind."""

    share: float
    """Of all tokens."""
    base_loss: float
    """Mean, in nats."""
    reference_loss: float
    among_worst: dict[str, float]
    """By measure, the share of them that is among the worst 30 % of all tokens: the paper's
    negatives, where `keep_eos` keeps none."""


class Detection(BaseModel):
    """What is noise in D_train, and what each measure finds of it."""

    num_tokens: int
    num_noisy: dict[str, int]
    """By kind of noise, and `all`."""
    found: dict[str, dict[str, Found]]
    """By measure and kind of noise (against all clean tokens), `all`, and `answers`: wrong answers
    against right ones, and those about new entities alone."""
    groups: dict[str, TokenGroup]
    """All tokens, each in one group: `ends`, `right answers`, `right answers about new`, `other
    words`, and the kinds of noise."""


class Negatives(BaseModel):
    """The negative tokens of a variant beside the noise that is known."""

    share: float
    """Of all tokens that are negative."""
    share_ignored: float
    """Of all tokens that are neither negative nor positive."""
    precision: float | None
    """Share of the negative tokens that are noise; None without negatives."""
    recall: float | None
    """Share of the noise that is negative; None without noise."""
    recall_by_kind: dict[str, float]


class Outcome(BaseModel):
    """What came of one variant."""

    accuracy: dict[str, float]
    """Share of the held-out responses that are exact: `all`, `known` and `new` facts and skills,
    and by kind of question. Empty where training diverged."""
    loss: float | None
    """Of the held-out responses, in nats per token."""
    negatives: Negatives | None = None
    """None of the base and of what is trained on all tokens."""
    diverged: str | None = None
    """Why there is no result."""


def detect(
    qualities: Mapping[str, NDArray],
    noisy: NDArray[np.bool_],
    kinds: NDArray,
    comparisons: Mapping[str, NDArray[np.bool_]] | None = None,
) -> dict[str, dict[str, Found]]:
    """How well each measure finds the noise, of all kinds and of each.

    Args:
        qualities: by measure, shape (tokens,), higher is better.
        noisy: shape (tokens,).
        kinds: shape (tokens,), name of the kind of noise; read where `noisy` is true.
        comparisons: further sets of tokens in which to look, by name; shape (tokens,).
    """
    wanted = {ALL_KINDS: np.ones(noisy.size, bool)}
    wanted |= {str(kind): ~noisy | (kinds == kind) for kind in np.unique(kinds[noisy])}
    wanted |= comparisons or {}
    found: dict[str, dict[str, Found]] = {}
    for name, quality in qualities.items():
        found[name] = {}
        for kind, members in wanted.items():
            truth, badness = noisy[members], -quality[members].astype(np.float64)
            if not truth.any() or truth.all():
                found[name][kind] = Found(auroc=None, average_precision=None)
                continue
            found[name][kind] = Found(
                auroc=float(roc_auc_score(truth, badness)),
                average_precision=float(average_precision_score(truth, badness)),
            )
    return found


def describe_negatives(
    polarity: NDArray[np.int8], noisy: NDArray[np.bool_], kinds: NDArray
) -> Negatives:
    """Negative tokens against the known noise; all of shape (tokens,)."""
    negative = polarity < 0
    num_found = int((negative & noisy).sum())
    return Negatives(
        share=float(negative.mean()),
        share_ignored=float((polarity == 0).mean()),
        precision=num_found / int(negative.sum()) if negative.any() else None,
        recall=num_found / int(noisy.sum()) if noisy.any() else None,
        recall_by_kind={
            str(kind): float(negative[noisy & (kinds == kind)].mean())
            for kind in np.unique(kinds[noisy])
        },
    )


def run_cell(cell: Cell, path: Path) -> None:
    """Do what is not done of a cell.

    Raises:
        InputError: the directory is not this cell's, or another process works in it.
        DivergenceError: the reference model diverged.
    """
    with RunDir(path, cell.name) as directory:
        steps = plan_cell(cell)
        directory.forget_stages([step.key for step in steps])
        for step in steps:
            wanted = fingerprint(step, directory.manifest)
            if directory.is_done(step.key, wanted):
                continue
            with directory.stage(step.key, wanted, step.target) as work:
                step.execute(path, work)


def is_done(cell: Cell, path: Path) -> bool:
    """Whether nothing is left to do of a cell."""
    manifest = read_manifest(path)
    # In their order, so that the inputs of a step are there when it is looked at.
    return manifest is not None and all(
        stage_is_done(path, manifest, step.key, fingerprint(step, manifest))
        for step in plan_cell(cell)
    )


def plan_cell(cell: Cell) -> list[Step]:
    """The steps of a cell, each after those whose outputs it reads."""
    recipe = cell.recipe
    common = {
        "version": VERSION,
        "model": loading.model_fingerprint(recipe.model),
        "seed": recipe.seed,
    }
    training = recipe.training.model_dump(mode="json")

    def stage(
        name: str,
        folder: str,
        reads: Reads,
        settings: Mapping[str, Any],
        run: Callable[[Path, Work], None],
    ) -> Stage:
        return Stage(
            name=name,
            summary="",
            folder=folder,
            reads=reads,
            settings=lambda step: {**common, **settings},
            run=lambda step, path, work: run(path, work),
        )

    def variant_settings(step: Step) -> dict[str, Any]:
        if step.part == BASE:
            return common
        variant = cell.variants[str(step.part)].model_dump(mode="json", exclude=WHERE)
        return {**common, "training": training, "variant": variant}

    data = {"data": recipe.data.model_dump(mode="json"), "reference": cell.reference}
    reference = {"training": recipe.reference.model_dump(mode="json")}
    whole = [
        stage("prepare", "data", (), data, partial(_prepare, cell)),
        stage("reference", "reference", ["prepare"], reference, REFERENCE.step(recipe).execute),
        stage("score", "scores", ["prepare", "reference"], {}, SCORE.step(recipe).execute),
        stage("detect", "detection", ["prepare", "score"], {"version": DETECTION_VERSION}, _detect),
    ]
    measure = Stage(
        name="measure",
        summary="",
        folder="outcomes",
        reads=lambda recipe, part: ["prepare", *(["score"] if part != BASE else [])],
        parts=lambda recipe: cell.trained,
        settings=variant_settings,
        run=lambda step, path, work: _measure(cell, str(step.part), path, work),
    )
    return plan_steps(recipe, [*whole, measure])


def _prepare(cell: Cell, run: Path, work: Work) -> None:
    del run
    write_corpus(cell.recipe, work.output, clean_reference=cell.reference == "clean")


def _detect(run: Path, work: Work) -> None:
    samples = Samples.read(layout.train_file(run))
    noisy, kinds = known_noise(samples)
    qualities = read_qualities(run, MEASURES)
    right = read_answers(layout.data_dir(run))
    answers = (noisy & np.isin(kinds, WRONG_ANSWERS)) | right
    sources = np.asarray(samples.table["source"].to_pylist(), str)
    is_new = samples.per_response_token(np.char.startswith(sources, NEW))
    comparisons = {ANSWERS: answers}
    if is_new.any():
        comparisons[ANSWERS_ABOUT_NEW] = answers & is_new
    is_end = np.isin(samples.response_ids, _end_token_ids(run))
    members = {
        "right answers": right & ~is_new,
        "right answers about new": right & is_new,
        "ends": is_end & ~noisy,
        "other words": ~(right | is_end | noisy),
        **{str(kind): noisy & (kinds == kind) for kind in np.unique(kinds[noisy])},
    }
    counts = {str(kind): int((kinds[noisy] == kind).sum()) for kind in np.unique(kinds[noisy])}
    detection = Detection(
        num_tokens=noisy.size,
        num_noisy={ALL_KINDS: int(noisy.sum()), **counts},
        found=detect(qualities, noisy, kinds, comparisons),
        groups=describe_groups(members, qualities),
    )
    write_atomically(work.output / "detection.json", detection.model_dump_json(indent=1))


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


def _end_token_ids(run: Path) -> list[int]:
    return DataSummary.load(layout.data_dir(run)).end_token_ids


def read_scores(run: Path, columns: Sequence[str]) -> list[NDArray]:
    """Scores of all response tokens of D_train, which are few: each of shape (tokens,)."""
    shards = list(ScoredCorpus(run).scores(columns))
    return [np.concatenate([shard.columns[name] for shard in shards]) for name in columns]


def read_qualities(run: Path, names: Iterable[QualityName]) -> dict[str, NDArray]:
    """Quality of every response token of D_train by several measures, each of shape (tokens,)."""
    measures = {name: MEASURES[name] for name in names}
    columns = sorted({column for measure in measures.values() for column in measure.columns})
    scores = dict(zip(columns, read_scores(run, columns), strict=True))
    return {
        name: measure.compute(*(scores[column] for column in measure.columns))
        for name, measure in measures.items()
    }


def known_noise(samples: Samples) -> tuple[NDArray[np.bool_], NDArray]:
    """Which response tokens are noise, and the kind of noise of their sample ("" for none)."""
    noisy = samples.noise()
    assert noisy is not None
    kinds = np.asarray([kind or "" for kind in samples.table["noise_kind"].to_pylist()])
    return noisy, samples.per_response_token(kinds)


def _measure(cell: Cell, name: str, run: Path, work: Work) -> None:
    """Train a variant and measure it; or measure the base."""
    recipe = cell.recipe
    if name == BASE:
        outcome = evaluate(recipe, None, run)
    else:
        outcome = _train_and_evaluate(recipe, cell.variants[name], name, run, work)
    write_atomically(work.output / "outcome.json", outcome.model_dump_json(indent=1))


def _train_and_evaluate(
    recipe: Recipe, variant: NoiseVariant, name: str, run: Path, work: Work
) -> Outcome:
    samples = Samples.read(layout.train_file(run))
    noisy, kinds = known_noise(samples)
    polarity = np.ones(noisy.size, np.int8)
    negatives = None
    if variant.objective != "full":
        polarity = choose(variant, noisy, run, work, seed=recipe.seed)
        negatives = describe_negatives(polarity, noisy, kinds)
    base_log_probs = None
    if variant.objective == "forgetting" and TERMS[variant.forgetting.term].needs_base:
        (base_log_probs,) = read_scores(run, ["base_log_probs"])
    training = Work(work.path / "training")
    # What a killed one left is done again.
    shutil.rmtree(training.path, ignore_errors=True)
    training.output.mkdir(parents=True)
    try:
        table = pa.table(trainer_columns(samples, polarity, base_log_probs))
        fit.fine_tune(recipe, recipe.training, variant, iter([table]), name, training)
    except DivergenceError as error:
        return Outcome(accuracy={}, loss=None, negatives=negatives, diverged=str(error))
    outcome = evaluate(recipe, training.output, run)
    return outcome.model_copy(update={"negatives": negatives})


def choose(
    variant: NoiseVariant, noisy: NDArray[np.bool_], run: Path, work: Work, *, seed: int
) -> NDArray[np.int8]:
    """Polarity of every response token of D_train, shape (tokens,).

    The oracle's negatives are the noise, the ends of truncated responses included, which no
    selection may choose as long as `keep_eos` is on.
    """
    if variant.oracle:
        return np.where(noisy, -1, 1).astype(np.int8)
    selection: SelectionSettings = variant.selection
    if variant.times_noise is not None:
        share = variant.times_noise * float(noisy.mean())
        selection = selection.model_copy(update={"rho": 1 - share, "threshold": "quantile"})
    corpus = ScoredCorpus(run)
    file = work.path / "polarity.parquet"
    select_corpus(
        corpus,
        selection,
        file,
        scratch=work.path / "quality.bin",
        seed=seed,
        end_token_ids=_end_token_ids(run) if selection.keep_eos else [],
    )
    return read_polarity(file, corpus.fingerprint)[0]


def evaluate(recipe: Recipe, path: Path | None, run: Path) -> Outcome:
    """Measure a fine-tuned model, or the base, on the held-out samples."""
    dtype = loading.pick_dtype(recipe.model)
    if path is None:
        model = loading.load_base_model(recipe.model, dtype)
    else:
        model = load_variant(recipe.model, dtype, path)
    result = evaluate_heldout(
        model, Samples.read(layout.split_file(layout.data_dir(run), "heldout"))
    )
    groups = {
        name: (group.num_items, group.metrics["exact_match"].value)
        for name, group in result.groups.items()
    }
    accuracy = {"all": result.metrics["exact_match"].value}
    for name, is_new in (("known", False), ("new", True)):
        members = [pair for group, pair in groups.items() if group.startswith(NEW) == is_new]
        if members:
            numbers, values = zip(*members, strict=True)
            accuracy[name] = float(np.average(values, weights=numbers))
    accuracy |= {name: value for name, (_, value) in groups.items()}
    return Outcome(accuracy=accuracy, loss=result.metrics["loss"].value)


def read_detection(path: Path) -> Detection:
    """What a cell's measures found."""
    return Detection.model_validate_json((path / "detection" / "detection.json").read_bytes())


def read_outcome(path: Path, name: str) -> Outcome:
    """What came of a cell's variant, or of the base."""
    return Outcome.model_validate_json((path / "outcomes" / name / "outcome.json").read_bytes())
