"""`run`, `demo`, and one command per stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forgetting.cli.groups import RUN, SINGLE_STAGES, app
from forgetting.cli.options import (
    ConfigOption,
    JsonOption,
    ProcessesOption,
    QuietOption,
    RecipeArgument,
    RunDirOption,
    SetOption,
    find_recipe,
)
from forgetting.console import (
    duration,
    logger,
    new_table,
    print_in_parts,
    print_path,
    setup_logging,
)
from forgetting.errors import InputError
from forgetting.launch import launch
from forgetting.rundir import layout
from forgetting.rundir.processes import (
    end_with_the_others,
    leave_processes,
    num_processes,
    process_index,
)
from forgetting.stages import STAGES, Stage

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.pipeline import PlannedStep
    from forgetting.report.result_table import ResultsTable

out = Console(emoji=False)


@dataclass(frozen=True)
class RunRequest:
    """What the options of a command ask for."""

    recipe: str
    run_dir: Path | None = None
    overrides: Sequence[str] = ()
    quiet: bool = False
    as_json: bool = False
    stage: str | None = None
    """None: every stage of the recipe."""
    processes: int | None = None
    accelerate_config: str | None = None


@app.command(rich_help_panel=RUN, epilog="Example: forgetting demo --run-dir runs/try")
def demo(
    run_dir: RunDirOption = None,
    set_: SetOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole method on the embedded model and data: no network, about 3 minutes."""
    run_request(RunRequest("demo", run_dir, set_ or (), quiet, as_json))


@app.command(rich_help_panel=RUN, epilog="Example: forgetting run mine.yaml --dry-run")
def run(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    set_: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan. Loads no weights, writes nothing.")
    ] = False,
    time: Annotated[
        bool,
        typer.Option(
            "--time",
            help="With --dry-run: measure a few batches and estimate the time of each step. Loads "
            "the model.",
        ),
    ] = False,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe end to end. Finished stages are skipped and interrupted ones resume."""
    request = RunRequest(
        recipe,
        run_dir,
        set_ or (),
        quiet,
        as_json,
        processes=processes,
        accelerate_config=accelerate_config,
    )
    if time and not dry_run:
        raise InputError("--time is for the plan. Pass --dry-run as well")
    if dry_run:
        print_plan(request, is_timed=time)
    else:
        run_request(request)


@app.command(rich_help_panel=SINGLE_STAGES, epilog="Example: forgetting prepare mine.yaml --show 3")
def prepare(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    set_: SetOption = None,
    show: Annotated[
        int, typer.Option("--show", min=0, metavar="N", help="Print N samples of D_train.")
    ] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build the corpus: tokens, labels and disjoint splits. Prints what each source gave."""
    path = run_request(RunRequest(recipe, run_dir, set_ or (), quiet, as_json, "prepare"))
    if path is not None and not as_json:
        print_corpus(path, show)


def add_stage_command(stage: Stage) -> None:
    """Add the command of a stage; one that processes can share has their options."""

    def alone(
        recipe: RecipeArgument,
        run_dir: RunDirOption = None,
        set_: SetOption = None,
        quiet: QuietOption = False,
        as_json: JsonOption = False,
    ) -> None:
        run_request(RunRequest(recipe, run_dir, set_ or (), quiet, as_json, stage.name))

    def shared(
        recipe: RecipeArgument,
        run_dir: RunDirOption = None,
        set_: SetOption = None,
        processes: ProcessesOption = None,
        accelerate_config: ConfigOption = None,
        quiet: QuietOption = False,
        as_json: JsonOption = False,
    ) -> None:
        options = (run_dir, set_ or (), quiet, as_json, stage.name, processes, accelerate_config)
        run_request(RunRequest(recipe, *options))

    app.command(
        stage.name,
        help=stage.summary,
        epilog=f"Example: forgetting {stage.name} mine.yaml",
        rich_help_panel=SINGLE_STAGES,
    )(shared if stage.is_shared else alone)


for each in STAGES:
    # `prepare` has an option of its own, and is defined above.
    if each.name != "prepare":
        add_stage_command(each)


@app.command(hidden=True)
def worker(
    recipe: Path,
    run_dir: Annotated[Path, typer.Option("--run-dir")],
    stage: Annotated[list[str] | None, typer.Option("--stage")] = None,
    launcher: Annotated[int | None, typer.Option("--launcher")] = None,
    quiet: QuietOption = False,
) -> None:
    """Take part in a run of several processes. `forgetting.launch` starts it."""
    if launcher is not None:
        end_with_the_others(launcher)
    setup_logging(quiet or process_index() > 0)
    from forgetting.pipeline import run as run_stages

    try:
        run_stages(recipe, run_dir, stages=stage or None)
    except SystemExit:
        # All processes leave a training together, after its checkpoint.
        leave_processes()
        raise
    leave_processes()


def run_request(request: RunRequest) -> Path | None:
    """Run stages, and print what came out.

    Returns:
        The run directory; None if this process does not print results.
    """
    setup_logging(request.quiet or request.as_json or process_index() > 0)
    from forgetting.config import check_batches, check_installed, load_recipe

    # Read before torch is imported: a mistake in the recipe is reported at once.
    recipe = load_recipe(find_recipe(request.recipe), request.overrides)
    stages = None if request.stage is None else (request.stage,)
    asks_for_more = (request.processes or 1) > 1 or request.accelerate_config is not None
    if num_processes() == 1 and asks_for_more:
        check_batches(recipe, request.processes or 1)
        check_installed(recipe)
        from forgetting.pipeline import default_run_dir

        path = request.run_dir or default_run_dir(recipe)
        leads = launch(
            recipe,
            path,
            stages,
            processes=request.processes,
            config=request.accelerate_config,
            quiet=request.quiet or request.as_json,
        )
        if not leads:
            return None
    else:
        from forgetting.pipeline import run as run_stages

        path = run_stages(recipe, request.run_dir, stages=stages)
        leave_processes()
    if process_index() > 0:
        return None
    page = layout.report_page(layout.report_dir(path))
    has_results = request.stage in (None, "report") and page.is_file()
    if has_results:
        print_results(path, request.as_json)
    elif request.as_json:
        typer.echo(json.dumps({"run_dir": str(path)}))
    if not request.as_json:
        print_path("Results are in", path)
        if has_results:
            print_path("Report:       ", page)
    return path


def print_plan(request: RunRequest, *, is_timed: bool = False) -> None:
    """Print what a run would do, and how long it would take if `is_timed`."""
    setup_logging(request.quiet or request.as_json)
    from forgetting.config import check_batches, load_recipe

    recipe = load_recipe(find_recipe(request.recipe), request.overrides)
    check_batches(recipe, request.processes or 1)
    from forgetting.pipeline import default_run_dir, describe_plan

    path = request.run_dir if request.run_dir is not None else default_run_dir(recipe)
    steps = describe_plan(recipe, path)
    seconds: dict[str, float] = {}
    if is_timed:
        from forgetting.estimates import estimate_seconds

        seconds = estimate_seconds(recipe, path)
    if request.as_json:
        lines: list[dict[str, Any]] = [
            {
                "step": step.key,
                "done": step.is_done,
                **step.facts,
                **({"seconds": seconds.get(step.key)} if is_timed else {}),
            }
            for step in steps
        ]
        typer.echo(json.dumps({"run_dir": str(path), "plan": lines}))
        _check_numbers(recipe, steps)
        return
    title = escape(f"{recipe.name}: {recipe.model.name_or_path}")
    table = Table(title=title, title_justify="left")
    for name in ("step", "state", *(["time"] if is_timed else []), "size"):
        table.add_column(name)
    for step in steps:
        facts = ", ".join(
            f"{'unknown' if value is None else f'{value:,}'} {name}"
            for name, value in step.facts.items()
        )
        times = []
        if is_timed:
            times = [duration(seconds[step.key]) if step.key in seconds else "–"]
        table.add_row(step.key, "done" if step.is_done else "to do", *times, facts)
    out.print(table)
    if is_timed:
        out.print(
            f"About {duration(sum(seconds.values()))} in one process, by a few measured batches. "
            "Not counted: benchmark tasks, and steps that run no model.",
            highlight=False,
        )
    loaded = "written" if is_timed else "loaded or written"
    out.print(
        f"The run would write to {path}. Nothing has been {loaded}.",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    _check_numbers(recipe, steps)


def _check_numbers(recipe: Recipe, steps: Sequence[PlannedStep]) -> None:
    """Say what too few samples would do to a run.

    Raises:
        InputError: the sources have fewer records than the recipe asks for.
    """
    prepare = next(step for step in steps if step.key == "prepare")
    if not prepare.is_done:
        from forgetting.data.shortage import check_number_of_records

        check_number_of_records(recipe)
    if not recipe.needs_detector:
        return
    from forgetting.method.detector import SMALLEST_NUM_SAMPLES

    num_train = prepare.facts["train samples"] or 0
    if num_train < SMALLEST_NUM_SAMPLES:
        logger.warning(
            "The detector will find nothing: D_train has %d samples, and it needs %d. Raise "
            "data.num_train",
            num_train,
            SMALLEST_NUM_SAMPLES,
        )


def print_corpus(path: Path, num_samples: int) -> None:
    """Print what each source gave, and some samples token by token."""
    from forgetting.config import load_recipe
    from forgetting.report.preview import (
        LEGEND,
        label_lines,
        rejection_lines,
        sample_texts,
        source_table,
        unused_key_lines,
    )

    out.print(source_table(path))
    for line in (*rejection_lines(path), *label_lines(path), *unused_key_lines(path)):
        out.print(line, soft_wrap=True, highlight=False)
    if not num_samples:
        return
    from forgetting.models.loading import load_tokenizer

    recipe = load_recipe(layout.recipe_file(path))
    tokenizer = load_tokenizer(recipe.model)
    out.print(LEGEND)
    for text in sample_texts(path, tokenizer, num_samples, recipe.report.seed):
        out.print()
        out.print(text, soft_wrap=True, highlight=False)


def print_results(path: Path, as_json: bool) -> None:
    """Print the results of a finished run."""
    if as_json:
        file = layout.results_file(layout.report_dir(path))
        results = json.loads(file.read_text(encoding="utf-8"))
        typer.echo(json.dumps({"run_dir": str(path), "results": results}))
        return
    from forgetting.report import results_table

    results = results_table(path)
    print_in_parts(out, results.variants, partial(_results_part, results))
    out.print(escape(results.sentence))


def _results_part(results: ResultsTable, variants: Sequence[str]) -> Table:
    """The results of some variants, one line per metric: there are many metrics."""
    table = new_table()
    table.add_column(no_wrap=True)
    for variant in variants:
        table.add_column(escape(variant), justify="right", no_wrap=True)
    task = None
    for column in results.columns:
        cells = [results.cell(variant, column) for variant in variants]
        texts = [escape(results.short_text(variant, column)) for variant in variants]
        if column.task != task:
            table.add_row(f"[italic]{escape(column.task_title)}[/] ({column.num_items})")
            task = column.task
        table.add_row(
            f" {escape(column.metric_title)}"
            if column.group is None
            else f"   {escape(column.group)}",
            *(
                f"[bold]{text}[/]" if cell is not None and cell.best else text
                for cell, text in zip(cells, texts, strict=True)
            ),
        )
    return table
