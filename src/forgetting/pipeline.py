"""Which stages a recipe needs, in which order, and which of them are done.

Goes in: a recipe and a run directory. Comes out: a plan, or a run in which every planned stage
is done. What is done is skipped, what was cut off resumes, what changed in the recipe is redone
with all that depends on it. Knows nothing of what happens inside a stage.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from forgetting.config.schema import (
    PLAIN_TEMPLATE,
    Recipe,
    TrainingSettings,
    VariantSettings,
    check_batches,
    dump_recipe,
    load_recipe,
)
from forgetting.console import duration, logger
from forgetting.data.sources import HUB_ID, is_local, source_fingerprint
from forgetting.errors import InputError
from forgetting.evaluation.suites import check_tasks, evaluation_fingerprint
from forgetting.models.loading import count_trainable, model_fingerprint, pick_device
from forgetting.rundir.directory import RunDir, Work
from forgetting.rundir.files import digest, file_sha256, write_atomically
from forgetting.rundir.layout import RECIPE
from forgetting.rundir.manifest import Manifest, check_owner, stage_is_done
from forgetting.rundir.processes import ALONE, Processes, join_processes, num_processes

STAGES = ("prepare", "reference", "score", "select", "train", "evaluate", "report")
# Which of them all processes do together.
SHARED_STAGES = ("reference", "score", "train", "evaluate")
# Part of every fingerprint: raise it when a stage's result changes with the same recipe.
RESULT_VERSION = 2
NO_EFFECT_ON_WEIGHTS = {"save_steps", "report_to"}


@dataclass(frozen=True)
class Step:
    """One stage of one run, for one variant where the stage has one."""

    key: str
    """Its name in the manifest, such as `train:forgetting`."""
    stage: str
    target: str
    """Folder of the run directory that it writes."""
    inputs: tuple[str, ...]
    """Keys of the steps whose outputs it reads."""
    settings: Callable[[], dict[str, Any]]
    """What of the recipe it depends on. A function: checksums of weights take time."""
    execute: Callable[[Path, Work], None]


def plan(recipe: Recipe) -> list[Step]:
    """The steps that a recipe needs, each after those whose outputs it reads."""
    model = functools.cache(lambda: model_fingerprint(recipe.model))
    selecting = recipe.selecting_variants
    own_reference = recipe.reference.name_or_path
    steps: list[Step] = []

    @functools.cache
    def bench(processes: Processes) -> Any:
        """Held by the plan's own steps: gone with them, when the run ends."""
        from forgetting.stages import Bench

        return Bench(recipe, processes)

    def add(
        stage: str,
        target: str,
        inputs: Iterable[str],
        settings: Callable[[], dict[str, Any]],
        variant: str | None = None,
    ) -> None:
        # What the stages import takes seconds, and a plan does not need it.
        def execute(run: Path, work: Work) -> None:
            from forgetting import stages

            more: tuple[Any, ...] = () if variant is None else (variant,)
            if stage == "evaluate":
                more += (bench(work.processes),)
            getattr(stages, stage)(recipe, run, work, *more)

        key = stage if variant is None else f"{stage}:{variant}"
        steps.append(Step(key, stage, target, tuple(inputs), functools.cache(settings), execute))

    def model_settings() -> dict[str, Any]:
        own = recipe.model.model_dump(include={"dtype", "attn_implementation", "quantization"})
        return {**model(), **own}

    def prepare_settings() -> dict[str, Any]:
        template = recipe.model.chat_template
        is_file = template is not None and template != PLAIN_TEMPLATE
        return {
            "data": recipe.data.model_dump(mode="json", exclude={"sources", "num_reference"}),
            "num_reference": recipe.num_reference,
            "sources": [{**source_fingerprint(s), "label": s.label} for s in recipe.data.sources],
            "trusted": [
                {**source_fingerprint(s), "label": s.label} for s in recipe.reference.sources or ()
            ],
            "tokenizer": {k: v for k, v in model().items() if not k.endswith(".safetensors")},
            "chat_template": file_sha256(Path(str(template))) if is_file else template,
            "seed": recipe.seed,
        }

    def training_settings(training: TrainingSettings) -> dict[str, Any]:
        return {
            "training": training.model_dump(
                mode="json", exclude={*NO_EFFECT_ON_WEIGHTS, "sources", "folds"}
            ),
            "seed": recipe.seed,
            "model": model_settings(),
        }

    def reference_settings(fold: str | None) -> dict[str, Any]:
        folds = {} if fold is None else {"fold": fold, "folds": recipe.reference.folds}
        return {**training_settings(recipe.reference), **folds}

    def score_settings() -> dict[str, Any]:
        own = {}
        if own_reference:
            own = model_fingerprint(
                recipe.model.model_copy(update={"name_or_path": own_reference, "revision": None})
            )
        layout = {"samples_per_shard": recipe.scoring.samples_per_shard}
        # Which fold a sample is in follows from the seed.
        folds = {"folds": recipe.reference.folds, "seed": recipe.seed} if recipe.fold_names else {}
        # Log-probabilities are always there: a change of measure alone scores nothing again.
        more = [column for column in recipe.score_columns if not column.endswith("log_probs")]
        columns = {"columns": more} if more else {}
        return {"model": model_settings(), "reference": own, **layout, **folds, **columns}

    def select_settings(variant: VariantSettings) -> dict[str, Any]:
        return {"selection": variant.selection.model_dump(mode="json"), "seed": recipe.seed}

    def variant_settings(variant: VariantSettings) -> dict[str, Any]:
        forgets = variant.objective == "forgetting"
        return {
            **training_settings(recipe.training),
            "objective": variant.objective,
            "forgetting": variant.forgetting.model_dump(mode="json") if forgets else None,
        }

    def evaluate_settings() -> dict[str, Any]:
        places = {"include_path", "data_dir"}
        return {
            "evaluation": recipe.evaluation.model_dump(mode="json", exclude=places),
            "tasks": evaluation_fingerprint(recipe.evaluation),
            "task_files": _task_files(recipe.evaluation.include_path),
            "seed": recipe.seed,
            "model": model_settings(),
        }

    def report_settings() -> dict[str, Any]:
        return {"report": recipe.report.model_dump(mode="json"), "name": recipe.name}

    add("prepare", "data", (), prepare_settings)
    references: list[str] = []
    if selecting and not own_reference:
        folds: list[str | None] = [*recipe.fold_names] or [None]
        for fold in folds:
            target = "reference" if fold is None else f"reference/{fold}"
            add("reference", target, ["prepare"], functools.partial(reference_settings, fold), fold)
            references.append(steps[-1].key)
    if selecting:
        add("score", "scores", ["prepare", *references], score_settings)
    for name in selecting:
        settings = functools.partial(select_settings, recipe.variants[name])
        add("select", f"selection/{name}", ["prepare", "score"], settings, name)
    for name, variant in recipe.variants.items():
        before = ["prepare", f"select:{name}"] if name in selecting else ["prepare"]
        settings = functools.partial(variant_settings, variant)
        add("train", f"models/{name}", before, settings, name)
    for name in ["base", *recipe.variants]:
        before = ["prepare"] if name == "base" else ["prepare", f"train:{name}"]
        add("evaluate", f"evaluation/{name}", before, evaluate_settings, name)
    add("report", "report", [step.key for step in steps], report_settings)
    return steps


def _task_files(folder: str | None) -> dict[str, str]:
    """Checksums of the files of tasks of one's own, by their path in the folder."""
    if folder is None:
        return {}
    files = (file for file in sorted(Path(folder).rglob("*")) if file.is_file())
    return {
        file.relative_to(folder).as_posix(): file_sha256(file)
        for file in files
        if "__pycache__" not in file.parts
    }


def fingerprint(step: Step, manifest: Manifest) -> str:
    """Checksum of all that a step reads; its inputs must be done."""
    inputs = {}
    for key in step.inputs:
        entry = manifest.stages[key]
        inputs[key] = digest({path: output.sha256 for path, output in entry.outputs.items()})
    return digest(
        {
            "version": RESULT_VERSION,
            "stage": step.key,
            "settings": step.settings(),
            "inputs": inputs,
        }
    )


def check_inputs(recipe: Recipe) -> None:
    """Refuse at once what would fail after hours: files and packages that are not there.

    Raises:
        InputError: the message names the field of the recipe.
    """
    for source in (*recipe.data.sources, *(recipe.reference.sources or ())):
        if source.world is None:
            is_local(source)
    for field, value in (
        ("model.name_or_path", recipe.model.name_or_path),
        ("reference.name_or_path", recipe.reference.name_or_path),
    ):
        if value is None:
            continue
        if Path(value).is_dir():
            if not any(Path(value).glob("*.safetensors")):
                raise InputError(
                    f"{field}: {value} holds no weights in safetensors form. Save the model with "
                    "`save_pretrained`, or give another folder"
                )
        elif not HUB_ID.fullmatch(value):
            raise InputError(f"{field}: there is no folder {value}")
    template = recipe.model.chat_template
    if template not in (None, PLAIN_TEMPLATE) and not Path(str(template)).is_file():
        raise InputError(f"model.chat_template: there is no file {template}")
    for field in ("include_path", "data_dir"):
        folder = getattr(recipe.evaluation, field)
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"evaluation.{field}: there is no folder {folder}")
    check_tasks(recipe.evaluation)
    for section in ("training", "reference"):
        for tracker in getattr(recipe, section).report_to:
            if find_spec(tracker) is None:
                raise InputError(
                    f"{section}.report_to: the package {tracker} is not installed. "
                    f"Install it with `pip install {tracker}`, or leave it out"
                )


def default_run_dir(recipe: Recipe) -> Path:
    """Where a run goes when nobody says: `runs/<name>` in the current directory."""
    return Path("runs") / recipe.name


def run(
    recipe: Recipe | str | Path,
    run_dir: Path | str | None = None,
    *,
    stages: Sequence[str] = STAGES,
    overrides: Sequence[str] = (),
) -> Path:
    """Do what a recipe asks for.

    Args:
        recipe: a `Recipe`, a YAML file, or the name of a shipped recipe.
        run_dir: default `runs/<name>`.
        stages: which stages; what these read must be done or among them.
        overrides: `section.field=value`, for a recipe that is read from a file.

    Returns:
        The run directory.

    Raises:
        InputError: what the recipe asks for cannot be had, or the directory is not this run's.
        DivergenceError: training left the range in which its numbers mean anything.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    elif overrides:
        raise InputError("overrides are for a recipe that is read from a file")
    unknown = sorted(set(stages) - set(STAGES))
    if unknown:
        raise InputError(f"there is no stage {unknown[0]}. The stages are {', '.join(STAGES)}")
    path = Path(run_dir) if run_dir is not None else default_run_dir(recipe)
    check_inputs(recipe)
    check_batches(recipe, num_processes())
    steps = plan(recipe)
    processes = join_processes(pick_device().type)
    if not processes.is_main:
        _follow(steps, path, processes)
        return path
    with RunDir(path, recipe.name) as directory:
        _check_order(steps, stages, _done(steps, path, directory.manifest))
        write_atomically(path / RECIPE, dump_recipe(recipe))
        directory.forget_stages([step.key for step in steps])
        for step in steps:
            if step.stage in stages:
                _do(step, directory, processes)
    processes.share(None)
    return path


def _follow(steps: Sequence[Step], path: Path, processes: Processes) -> None:
    """Take part in every step that the leading process announces, until it announces no more."""
    by_key = {step.key: step for step in steps}
    while order := processes.share():
        by_key[order["step"]].execute(path, Work(path / order["work"], processes))
        processes.wait()


def _done(steps: Sequence[Step], path: Path, manifest: Manifest) -> set[str]:
    """Keys of the steps that are done, as are all that they read."""
    done: set[str] = set()
    for step in steps:
        if done.issuperset(step.inputs) and stage_is_done(
            path, manifest, step.key, fingerprint(step, manifest)
        ):
            done.add(step.key)
    return done


def _check_order(steps: Sequence[Step], stages: Sequence[str], done: set[str]) -> None:
    """Refuse, before any of them is begun, stages whose inputs will not be there."""
    will_be_done = set(done)
    for step in steps:
        if step.stage not in stages:
            continue
        missing = next((key for key in step.inputs if key not in will_be_done), None)
        if missing is not None:
            raise InputError(
                f"{step.key} needs {missing}, which is not done for this recipe. Run "
                f"`forgetting {missing.split(':')[0]}` first, or all with `forgetting run`"
            )
        will_be_done.add(step.key)


def _do(step: Step, directory: RunDir, processes: Processes) -> None:
    """Do a step unless it is done, with the other processes where it is one for all."""
    wanted = fingerprint(step, directory.manifest)
    if directory.is_done(step.key, wanted):
        logger.info("%s: done before", step.key)
        return
    shared = step.stage in SHARED_STAGES
    together = processes if shared else ALONE
    with directory.stage(step.key, wanted, step.target, together) as work:
        if shared:
            processes.share({"step": step.key, "work": str(work.path.relative_to(directory.path))})
        step.execute(directory.path, work)
        together.wait()
    entry = directory.manifest.stages[step.key]
    logger.info("%s: done in %s", step.key, duration(entry.seconds))


@dataclass(frozen=True)
class PlannedStep:
    """A line of the plan: what a step will do, and whether it is done."""

    key: str
    is_done: bool
    facts: dict[str, int | None]
    """Samples, response tokens, optimizer steps, trainable parameters; None: not known yet."""


def describe_plan(recipe: Recipe, run_dir: Path | None = None) -> list[PlannedStep]:
    """What a run would do, without loading weights or writing anything.

    Raises:
        InputError: the recipe asks for what cannot be had.
    """
    check_inputs(recipe)
    path = run_dir if run_dir is not None else default_run_dir(recipe)
    steps, done = plan_with_state(recipe, path)
    splits = _known_splits(recipe, path if "prepare" in done else None)
    trainable = functools.cache(lambda lora: count_trainable(recipe.model, lora))
    return [
        PlannedStep(step.key, step.key in done, _facts(step, recipe, splits, trainable))
        for step in steps
    ]


def plan_with_state(recipe: Recipe, path: Path) -> tuple[list[Step], set[str]]:
    """The plan of a run, and the keys of the steps that are done; writes nothing.

    Raises:
        InputError: the directory is not this run's.
    """
    manifest = check_owner(path, recipe.name)
    steps = plan(recipe)
    # Without a manifest nothing is done, and no weights need be read for their checksums.
    return steps, set() if manifest is None else _done(steps, path, manifest)


def _known_splits(recipe: Recipe, path: Path | None) -> dict[str, dict[str, int | None]]:
    if path is not None:
        text = (path / "data" / "summary.json").read_text(encoding="utf-8")
        return json.loads(text)["splits"]
    sizes = {
        "reference": recipe.num_reference,
        "train": recipe.data.num_train,
        "heldout": recipe.data.num_heldout,
    }
    return {name: {"samples": size, "response_tokens": None} for name, size in sizes.items()}


def _facts(
    step: Step,
    recipe: Recipe,
    splits: dict[str, dict[str, int | None]],
    trainable: Callable[[Any], int | None],
) -> dict[str, int | None]:
    stage = step.stage
    if stage == "prepare":
        return {f"{name} samples": split["samples"] for name, split in splits.items()}
    if stage in ("score", "select"):
        train = splits["train"]
        return {"samples": train["samples"], "response tokens": train["response_tokens"]}
    if stage in ("reference", "train"):
        settings = recipe.reference if stage == "reference" else recipe.training
        split = splits["reference" if stage == "reference" else "train"]
        if stage == "reference" and recipe.reference.folds:
            # All of D_train but one fold; how many tokens that is is known when it is done.
            num_train = splits["train"]["samples"] or 0
            rest = num_train - math.ceil(num_train / recipe.reference.folds)
            split = {"samples": rest, "response_tokens": None}
        return {
            "samples": split["samples"],
            "response tokens": split["response_tokens"],
            "optimizer steps": settings.num_steps(split["samples"] or 0),
            "trainable parameters": trainable(settings.lora),
        }
    if stage == "evaluate" and recipe.evaluation.heldout:
        return {"held-out samples": splits["heldout"]["samples"]}
    return {}
