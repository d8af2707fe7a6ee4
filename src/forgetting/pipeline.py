"""Which stages a recipe needs, in which order, and which of them are done.

Goes in: a recipe and a run directory. Comes out: a plan, or a run in which every planned stage
is done. What is done is skipped, what was cut off resumes, what changed in the recipe is redone
with all that depends on it. Knows nothing of what happens inside a stage.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.console import duration, logger
from forgetting.data.sources import HUB_ID, is_local, source_fingerprint
from forgetting.errors import InputError
from forgetting.models import count_trainable, model_fingerprint
from forgetting.recipe import PLAIN_TEMPLATE, Recipe, dump_recipe, load_recipe
from forgetting.rundir import (
    RECIPE,
    Manifest,
    RunDir,
    Work,
    digest,
    file_sha256,
    read_manifest,
    stage_is_done,
    write_atomically,
)

STAGES = ("prepare", "reference", "score", "select", "train", "evaluate", "report")
# Part of every fingerprint: raise it when a stage's result changes with the same recipe.
RESULT_VERSION = 1


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

    def dump(*sections: str) -> dict[str, Any]:
        return {name: recipe.model_dump(mode="json")[name] for name in sections}

    def add(
        stage: str,
        target: str,
        inputs: Iterable[str],
        settings: Callable[[], dict[str, Any]],
        variant: str | None = None,
    ) -> None:
        # The stages bring torch and transformers with them; a plan needs neither.
        def execute(run: Path, work: Work) -> None:
            from forgetting import stages

            more = () if variant is None else (variant,)
            getattr(stages, stage)(recipe, run, work, *more)

        key = stage if variant is None else f"{stage}:{variant}"
        steps.append(Step(key, stage, target, tuple(inputs), settings, execute))

    def model_settings() -> dict[str, Any]:
        return {**model(), **recipe.model.model_dump(include={"dtype", "attn_implementation"})}

    def prepare_settings() -> dict[str, Any]:
        template = recipe.model.chat_template
        is_file = template is not None and template != PLAIN_TEMPLATE
        return {
            "data": recipe.data.model_dump(mode="json", exclude={"sources"}),
            "sources": [source_fingerprint(source) for source in recipe.data.sources],
            "tokenizer": {k: v for k, v in model().items() if not k.endswith(".safetensors")},
            "chat_template": file_sha256(Path(str(template))) if is_file else template,
            "seed": recipe.seed,
        }

    def score_settings() -> dict[str, Any]:
        own = {}
        if own_reference:
            own = model_fingerprint(
                recipe.model.model_copy(update={"name_or_path": own_reference, "revision": None})
            )
        layout = {"samples_per_shard": recipe.scoring.samples_per_shard}
        return {"model": model_settings(), "reference": own, **layout}

    steps: list[Step] = []
    add("prepare", "data", (), prepare_settings)
    if selecting and not own_reference:
        add(
            "reference",
            "reference",
            ["prepare"],
            lambda: {**dump("reference", "seed"), "model": model_settings()},
        )
    if selecting:
        before = ["prepare"] if own_reference else ["prepare", "reference"]
        add("score", "scores", before, score_settings)
    for name in selecting:
        selection = recipe.variants[name].selection.model_dump(mode="json")
        add(
            "select",
            f"selection/{name}",
            ["prepare", "score"],
            lambda selection=selection: {"selection": selection, "seed": recipe.seed},
            name,
        )
    for name, variant in recipe.variants.items():
        own_settings = variant.model_dump(mode="json", exclude={"selection"})
        if variant.objective != "forgetting":
            del own_settings["forgetting"]
        add(
            "train",
            f"models/{name}",
            ["prepare", *([f"select:{name}"] if name in selecting else [])],
            lambda own_settings=own_settings: {
                **dump("training", "seed"),
                **own_settings,
                "model": model_settings(),
            },
            name,
        )
    for name in ["base", *recipe.variants]:
        add(
            "evaluate",
            f"evaluation/{name}",
            ["prepare", *([] if name == "base" else [f"train:{name}"])],
            lambda: {
                **dump("evaluation", "seed"),
                **_task_files(recipe),
                "model": model_settings(),
            },
            name,
        )
    add("report", "report", [step.key for step in steps], lambda: dump("report", "name"))
    return steps


def _task_files(recipe: Recipe) -> dict[str, Any]:
    folder = recipe.evaluation.include_path
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise InputError(f"evaluation.include_path: there is no folder {folder}")
    return {"task_files": {f.name: file_sha256(f) for f in sorted(Path(folder).rglob("*.yaml"))}}


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
    """Refuse at once what would fail after hours: local files and folders that are not there."""
    for source in recipe.data.sources:
        if source.world is None:
            is_local(source)
    for field, value in (
        ("model.name_or_path", recipe.model.name_or_path),
        ("reference.name_or_path", recipe.reference.name_or_path),
    ):
        if value is not None and not Path(value).is_dir() and not HUB_ID.fullmatch(value):
            raise InputError(f"{field}: there is no folder {value}")
    template = recipe.model.chat_template
    if template not in (None, PLAIN_TEMPLATE) and not Path(str(template)).is_file():
        raise InputError(f"model.chat_template: there is no file {template}")


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
    path = Path(run_dir) if run_dir is not None else default_run_dir(recipe)
    check_inputs(recipe)
    steps = plan(recipe)
    with RunDir(path, recipe.name) as directory:
        write_atomically(path / RECIPE, dump_recipe(recipe))
        directory.forget_stages({step.key for step in steps})
        done: set[str] = set()
        for step in steps:
            missing = [key for key in step.inputs if key not in done]
            if missing and step.stage in stages:
                raise InputError(
                    f"{step.key} needs {missing[0]}, which is not done for this recipe. Run "
                    f"`forgetting {missing[0].split(':')[0]}` first, or all with `forgetting run`"
                )
            if not missing and _do(step, directory, step.stage in stages):
                done.add(step.key)
    return path


def _do(step: Step, directory: RunDir, wanted_now: bool) -> bool:
    """Do a step unless it is done; whether it is done in the end."""
    wanted = fingerprint(step, directory.manifest)
    if directory.is_done(step.key, wanted):
        if wanted_now:
            logger.info("%s: done before", step.key)
        return True
    if not wanted_now:
        return False
    with directory.stage(step.key, wanted, step.target) as work:
        step.execute(directory.path, work)
    entry = directory.manifest.stages[step.key]
    logger.info("%s: done in %s", step.key, duration(entry.seconds))
    return True


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
    manifest = read_manifest(path) if path.is_dir() else None
    done: set[str] = set()
    lines = []
    for step in plan(recipe):
        if manifest is not None and manifest.name == recipe.name and done >= set(step.inputs):
            wanted = fingerprint(step, manifest)
            if stage_is_done(path, manifest, step.key, wanted):
                done.add(step.key)
        lines.append(PlannedStep(step.key, step.key in done, {}))
    splits = _known_splits(recipe, path if "prepare" in done else None)
    trainable = functools.cache(lambda lora: count_trainable(recipe.model, lora))
    return [
        PlannedStep(line.key, line.is_done, _facts(line.key, recipe, splits, trainable))
        for line in lines
    ]


def _known_splits(recipe: Recipe, path: Path | None) -> dict[str, dict[str, int | None]]:
    if path is not None:
        return json.loads((path / "data" / "summary.json").read_text())["splits"]
    sizes = {
        "reference": recipe.data.num_reference,
        "train": recipe.data.num_train,
        "heldout": recipe.data.num_heldout,
    }
    return {name: {"samples": size, "response_tokens": None} for name, size in sizes.items()}


def _facts(
    key: str,
    recipe: Recipe,
    splits: dict[str, dict[str, int | None]],
    trainable: Callable[[Any], int | None],
) -> dict[str, int | None]:
    stage = key.split(":")[0]
    if stage == "prepare":
        return {f"{name} samples": split["samples"] for name, split in splits.items()}
    if stage in ("score", "select"):
        train = splits["train"]
        return {"samples": train["samples"], "response tokens": train["response_tokens"]}
    if stage in ("reference", "train"):
        settings = recipe.reference if stage == "reference" else recipe.training
        split = splits["reference" if stage == "reference" else "train"]
        return {
            "samples": split["samples"],
            "response tokens": split["response_tokens"],
            "optimizer steps": settings.num_steps(split["samples"] or 0),
            "trainable parameters": trainable(settings.lora),
        }
    if stage == "evaluate" and recipe.evaluation.heldout:
        return {"held-out samples": splits["heldout"]["samples"]}
    return {}
