"""Which steps a recipe needs, in which order, and which of them are done.

Input: a recipe and a run directory. Output: a plan, or a run in which every planned step is
done. Finished steps are skipped, interrupted ones resume, and what changed in the recipe is done
again with everything that depends on it. Knows no stage: the list is `forgetting.stages.STAGES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forgetting import stages as registered
from forgetting.config import Recipe, check_batches, dump_recipe, load_recipe
from forgetting.console import duration, logger
from forgetting.errors import InputError
from forgetting.models.gguf import with_folders
from forgetting.rundir.directory import RunDir, Work, work_folder
from forgetting.rundir.layout import RECIPE
from forgetting.rundir.manifest import Manifest, check_owner, stage_is_done
from forgetting.rundir.processes import ALONE, Processes, join_processes, num_processes
from forgetting.rundir.storage import digest, write_atomically
from forgetting.stages.base import Facts, Step, plan_steps

# Part of every fingerprint: raise it when a stage's result changes with the same recipe. If a stage
# has a `VERSION` in its settings, raise that: stages that do not read it are not run again.
RESULT_VERSION = 7


def plan(recipe: Recipe) -> list[Step]:
    """The steps that a recipe needs, each after the steps that it reads."""
    return plan_steps(recipe, registered.STAGES)


def fingerprint(step: Step, manifest: Manifest) -> str:
    """Checksum of everything that a step reads; its inputs must be done."""
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
    """Refuse at once what would fail hours later, such as missing files and packages.

    Raises:
        InputError: the message names the field of the recipe.
    """
    for stage in registered.STAGES:
        stage.check(recipe)


def default_run_dir(recipe: Recipe) -> Path:
    """The directory of a run without `--run-dir`: `runs/<name>` in the current directory."""
    return Path("runs") / recipe.name


def run(
    recipe: Recipe | str | Path,
    run_dir: Path | str | None = None,
    *,
    stages: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Run a recipe. Finished stages are skipped and interrupted ones resume.

    Args:
        recipe: a `Recipe`, a YAML file, or the name of a shipped recipe.
        run_dir: the run directory. Default: `runs/<name>`.
        stages: names of the stages to run. Default: all. The stages that these read must be
            finished or among them.
        overrides: `section.field=value`, for a recipe that is read from a file.

    Returns:
        The run directory.

    Raises:
        InputError: the recipe cannot be run as it is, or the directory belongs to another run.
        DivergenceError: training diverged.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    elif overrides:
        raise InputError("overrides are for a recipe that is read from a file")
    names = [stage.name for stage in registered.STAGES]
    wanted = names if stages is None else stages
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise InputError(f"there is no stage {unknown[0]}. The stages are {', '.join(names)}")
    path = Path(run_dir) if run_dir is not None else default_run_dir(recipe)
    recipe = with_folders(recipe)
    check_inputs(recipe)
    check_batches(recipe, num_processes())
    steps = plan(recipe)
    processes = _join()
    if not processes.is_main:
        _follow(steps, path, processes)
        return path
    with RunDir(path, recipe.name) as directory:
        _check_order(steps, wanted, _done(steps, path, directory.manifest))
        keys = [step.key for step in steps]
        directory.plan(keys)

        for step in steps:
            # Until the first step is done, what is there belongs to the recipe that is there.
            if step is not steps[0] or not (path / RECIPE).exists():
                _adopt(recipe, keys, directory)
            if step.stage.name in wanted:
                _do(step, directory, processes)
        _adopt(recipe, keys, directory)
    processes.share(None)
    return path


def _join() -> Processes:
    """Meet the processes that were started together with this one."""
    if num_processes() == 1:
        return ALONE
    from forgetting.models.loading import pick_device

    return join_processes(pick_device().type)


def _follow(steps: Sequence[Step], path: Path, processes: Processes) -> None:
    """Take part in every step that the leading process announces, until there are no more."""
    by_key = {step.key: step for step in steps}
    while order := processes.share():
        by_key[order["step"]].execute(path, Work(path / order["work"], processes))
        processes.wait()


def is_prepared(recipe: Recipe, path: Path) -> bool:
    """Whether the data of a run are what it was prepared from. Reads them, and no weights."""
    manifest = check_owner(path, recipe.name)
    prepare = next(step for step in plan(recipe) if step.key == "prepare")
    return manifest is not None and stage_is_done(
        path, manifest, prepare.key, fingerprint(prepare, manifest)
    )


def _done(steps: Sequence[Step], path: Path, manifest: Manifest) -> set[str]:
    """Keys of the steps that are done and read only steps that are done."""
    done: set[str] = set()
    for step in steps:
        if done.issuperset(step.inputs) and stage_is_done(
            path, manifest, step.key, fingerprint(step, manifest)
        ):
            done.add(step.key)
    return done


def _check_order(steps: Sequence[Step], stages: Sequence[str], done: set[str]) -> None:
    """Refuse stages whose inputs will be missing, before any of them begins."""
    will_be_done = set(done)
    for step in steps:
        if step.stage.name not in stages:
            continue
        missing = next((key for key in step.inputs if key not in will_be_done), None)
        if missing is not None:
            raise InputError(
                f"{step.key} needs {missing}, which is not done for this recipe. Run "
                f"`forgetting {missing.split(':')[0]}` first, or everything with `forgetting run`"
            )
        will_be_done.add(step.key)


def _adopt(recipe: Recipe, keys: Sequence[str], directory: RunDir) -> None:
    """Make a recipe that of the directory."""
    file, text = directory.path / RECIPE, dump_recipe(recipe)
    if not file.is_file() or file.read_bytes() != text.encode():
        write_atomically(file, text)
    directory.forget_stages(keys)


def _do(step: Step, directory: RunDir, processes: Processes) -> None:
    """Do a step unless it is done, with the other processes if its stage is shared."""
    wanted = fingerprint(step, directory.manifest)
    if directory.finish(step.key, wanted, step.target):
        logger.info("%s: already done", step.key)
        return
    directory.check_content(step.inputs)
    together = processes if step.stage.is_shared else ALONE
    with directory.stage(step.key, wanted, step.target, together) as work:
        if step.stage.is_shared:
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
    facts: Facts
    """Such as samples, response tokens, optimizer steps; None: not known yet."""


def describe_plan(recipe: Recipe, run_dir: Path | None = None) -> list[PlannedStep]:
    """What a run would do, without loading weights or writing anything.

    Raises:
        InputError: the recipe cannot be run as it is.
    """
    recipe = with_folders(recipe)
    check_inputs(recipe)
    path = run_dir if run_dir is not None else default_run_dir(recipe)
    steps, done = plan_with_state(recipe, path)
    folders = {step.key: path / step.target for step in steps if step.key in done}
    return [
        PlannedStep(step.key, step.key in done, step.stage.facts(step, folders)) for step in steps
    ]


def unfinished_work(recipe: Recipe, path: Path, key: str) -> Path | None:
    """Where an interrupted step left its work; None if it did not, or what it reads is not done.

    Raises:
        InputError: the directory belongs to another run.
    """
    steps, done = plan_with_state(recipe, path)
    manifest = check_owner(path, recipe.name)
    step = next(step for step in steps if step.key == key)
    if manifest is None or not done.issuperset(step.inputs):
        return None
    folder = work_folder(path, key, fingerprint(step, manifest))
    return folder if folder.is_dir() else None


def plan_with_state(recipe: Recipe, path: Path) -> tuple[list[Step], set[str]]:
    """The plan of a run, and the keys of the steps that are done. Writes nothing.

    Raises:
        InputError: the directory belongs to another run.
    """
    manifest = check_owner(path, recipe.name)
    steps = plan(with_folders(recipe))
    # Without a manifest nothing is done, and no weights need to be read for their checksums.
    return steps, set() if manifest is None else _done(steps, path, manifest)
