"""`evaluate`: measures every variant and the base model on held-out samples and on tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import model_settings, split_sizes

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Measures one model. Tasks that have a result file are not measured again, nor is a model that
    is the same as that of an earlier variant."""
    from forgetting.evaluation.bench import Bench
    from forgetting.rundir.manifest import read_manifest, same_model
    from forgetting.rundir.stats import DataSummary

    data = layout.data_dir(run_dir)
    summary = DataSummary.load(data)
    # The steps share the base model in memory, and the tasks with their data.
    bench = step.once(
        "bench",
        lambda: Bench(step.recipe, work.processes, summary.date, summary.end_token_ids),
    )
    variant = str(step.part)
    manifest = read_manifest(run_dir)
    same = same_model(manifest, variant)
    if manifest is not None and same is not None and f"evaluate:{same}" in manifest.stages:
        if work.processes.is_main:
            _copy_results(layout.evaluation_dir(run_dir, same), variant, work.output)
        return
    model = None if variant == layout.BASE else layout.model_dir(run_dir, variant)
    if work.processes.is_main:
        work.keep_only_whole(work.output)
    bench.measure(variant, model, layout.split_file(data, "heldout"), work.output, work.keep)
    if bench.has_heldout:
        work.details["tokens"] = summary.splits["heldout"].tokens


def _copy_results(folder: Path, variant: str, output: Path) -> None:
    """Copy the results of the same model under another name."""
    import shutil

    from forgetting.rundir.results import read_results, write_result

    # As in a measurement, a result comes after its answers and marks the task as done.
    results = read_results(folder)
    files = {layout.result_file(folder, result.task).name for result in results}

    def skipped(inner: str, names: list[str]) -> set[str]:
        return files.intersection(names) if Path(inner) == folder else set()

    shutil.copytree(folder, output, ignore=skipped, dirs_exist_ok=True)
    for result in results:
        write_result(output, variant, result)


def parts(recipe: Recipe) -> Sequence[str | None]:
    """The base model and all variants."""
    return [layout.BASE, *recipe.variants_in_order]


def settings(step: Step) -> Mapping[str, Any]:
    """The tasks, by the content of their files, and the base model."""
    from forgetting.evaluation.suites import evaluation_fingerprint

    own = step.recipe.evaluation
    return {
        # Evaluations that did not keep them are made again.
        **({"keeps": "log_probs"} if own.heldout and step.recipe.data.num_heldout else {}),
        "evaluation": own.model_dump(mode="json", exclude={"include_path", "data_dir"}),
        "tasks": evaluation_fingerprint(own),
        "task_files": _task_files(own.include_path),
        "seed": step.recipe.seed,
        "model": model_settings(step),
    }


def _task_files(folder: str | None) -> dict[str, str]:
    """Checksums of the user's own task files, by their path in the folder."""
    from forgetting.rundir.storage import file_sha256

    if folder is None:
        return {}
    files = (file for file in sorted(Path(folder).rglob("*")) if file.is_file())
    return {
        file.relative_to(folder).as_posix(): file_sha256(file)
        for file in files
        if "__pycache__" not in file.parts
    }


def check(recipe: Recipe) -> None:
    """Refuses tasks, folders and files that are not there, and prompts that cannot be rendered."""
    from forgetting.evaluation.suites import check_tasks, plan_tasks
    from forgetting.models.prompting import check_task_prompts

    for field in ("include_path", "data_dir"):
        folder = getattr(recipe.evaluation, field)
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"evaluation.{field}: there is no folder {folder}")
    check_tasks(recipe.evaluation)
    requests, _ = plan_tasks(recipe.evaluation)
    if requests:
        from forgetting.evaluation.harness import check_names

        check_names(requests, recipe.evaluation.include_path)
    check_task_prompts(recipe)


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """Held-out samples, answers, and the items of each task. They are the same for all models."""
    from forgetting.evaluation.suites import planned_items

    own = step.recipe.evaluation
    found: dict[str, int | None] = {}
    if own.heldout:
        number = split_sizes(step, done)["heldout"].samples
        found = {"held-out samples": number, "answers": min(own.num_answers, number)}
    tasks = planned_items(own) if own.tasks else {}
    if step.part != layout.BASE:
        return {**found, **({"tasks": len(tasks)} if tasks else {})}
    return {**found, **{f"{task} items": number for task, number in tasks.items()}}


EVALUATE = Stage(
    name="evaluate",
    summary="Measure every variant and the untrained base model.",
    folder="evaluation",
    reads=("prepare", "train"),
    parts=parts,
    settings=settings,
    run=run,
    check=check,
    facts=facts,
    is_shared=True,
)
