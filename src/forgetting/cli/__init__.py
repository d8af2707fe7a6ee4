"""The command line: reads arguments, calls the library, prints what came out.

No logic of its own. Exit codes: 0 done, 1 failed, 2 the user's input is wrong.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forgetting import __version__
from forgetting.console import setup_logging
from forgetting.errors import ForgettingError, InputError
from forgetting.launch import launch, report_failure
from forgetting.rundir.processes import (
    end_with_the_others,
    leave_processes,
    num_processes,
    process_index,
)

if TYPE_CHECKING:
    from forgetting.studies import Study

app = typer.Typer(
    name="forgetting",
    help="Find the tokens of a fine-tuning corpus that hurt, and forget them while "
    "learning the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the run lives. Default: runs/NAME.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a field; repeatable."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Only warnings, errors and results.")]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        help="Train, score and evaluate in N processes, one for each GPU. Default: one process.",
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--accelerate-config",
        metavar="NAME|FILE",
        help="How they share the work: ddp, fsdp2, zero3, or a file of `accelerate config`.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")]


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    if show_version:
        typer.echo(f"forgetting {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    run_dir: RunDirOption = None,
    set_: SetOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole method on the embedded model and world: no network, about 5 minutes."""
    _run("demo", run_dir, set_, quiet, as_json)


@app.command()
def run(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    set_: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; load no weights, write nothing.")
    ] = False,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do all that a recipe asks for. Run again: done stages are skipped, cut-off ones resume."""
    if dry_run:
        _print_plan(recipe, run_dir, set_ or (), quiet, as_json, processes or 1)
    else:
        _run(recipe, run_dir, set_, quiet, as_json, (), processes, accelerate_config)


def _stage_command(stage: str, summary: str) -> None:
    def command(
        recipe: RecipeArgument,
        run_dir: RunDirOption = None,
        set_: SetOption = None,
        quiet: QuietOption = False,
        as_json: JsonOption = False,
    ) -> None:
        _run(recipe, run_dir, set_, quiet, as_json, (stage,))

    command.__doc__ = summary
    app.command(stage)(command)


def _shared_stage_command(stage: str, summary: str) -> None:
    def command(
        recipe: RecipeArgument,
        run_dir: RunDirOption = None,
        set_: SetOption = None,
        processes: ProcessesOption = None,
        accelerate_config: ConfigOption = None,
        quiet: QuietOption = False,
        as_json: JsonOption = False,
    ) -> None:
        _run(recipe, run_dir, set_, quiet, as_json, (stage,), processes, accelerate_config)

    command.__doc__ = summary
    app.command(stage)(command)


@app.command()
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
    """Build the corpus: tokens, labels, disjoint splits. Prints what each source gave."""
    path = _run(recipe, run_dir, set_, quiet, as_json, ("prepare",))
    if path is not None and not as_json:
        _print_corpus(path, show)


_shared_stage_command("reference", "Fine-tune the reference model on D_ref.")
_shared_stage_command("score", "Score D_train's response tokens under base and reference.")
_stage_command("select", "Choose the tokens to learn, to forget and to ignore.")
_shared_stage_command("train", "Fine-tune every variant on D_train.")
_shared_stage_command("evaluate", "Measure every variant and the untrained base.")
_stage_command("report", "Write the report page, its figures and tables.")


OutputOption = Annotated[
    Path | None, typer.Option("--output", help="Folder of the study. Default: studies/NAME.")
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="TASK/METRIC",
        help="What the table and the figure show. Default: the held-out figure of the report.",
    ),
]
ListOption = Annotated[
    bool, typer.Option("--list", help="Print a command for each run, for a scheduler; run none.")
]


@app.command()
def sweep(
    recipe: RecipeArgument,
    grid: Annotated[
        list[str],
        typer.Option(
            "--grid", metavar="SECTION.FIELD=VALUE,VALUE", help="What varies; repeatable."
        ),
    ],
    output: OutputOption = None,
    set_: SetOption = None,
    metric: MetricOption = None,
    list_: ListOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe at every point of a grid; a table with mean and deviation over seeds."""
    setup_logging(quiet or as_json)
    from forgetting.studies import sweep_study

    study = sweep_study(recipe, grid, set_ or (), metric)
    _run_study(study, output, list_, as_json)


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Leave it out to see which there are.")
    ] = None,
    scale: Annotated[
        str, typer.Option("--scale", metavar="paper|tiny", help="tiny: the demo's model and world.")
    ] = "paper",
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="With --scale tiny: a small model of your own; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="With --scale tiny: a data file of your own.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="With noise: a part of it, in minutes.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="With noise: cells at a time, a core each. Default: all cores."
        ),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option("--cell", help="With noise: only this cell, without results; repeatable."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,N", help="Default: 1,2,3.")
    ] = None,
    output: OutputOption = None,
    set_: SetOption = None,
    metric: MetricOption = None,
    list_: ListOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Repeat a table or a figure of the paper, the published figures beside your own; or `noise`:
    whether selection finds noise that is known, and whether forgetting it helps."""
    setup_logging(quiet or as_json)
    from forgetting.studies import load_definition, paper_study, shipped_studies

    if name is None:
        for each in shipped_studies():
            typer.echo(f"{each:<12} {load_definition(each).title}")
        typer.echo(
            f"{'noise':<12} Which measure finds known noise, and whether forgetting it helps"
        )
        return
    if name == "noise":
        if scale != "paper" or model or data is not None or metric is not None:
            raise InputError(
                "the study noise takes no --scale, --model, --data or --metric. `forgetting "
                "detect` measures a model on marked data of your own"
            )
        _run_noise(output, quick, jobs, cell or (), seeds, set_ or (), list_, as_json)
        return
    if quick or jobs is not None or cell:
        raise InputError("--quick, --jobs and --cell go with the study noise")
    study = paper_study(
        name,
        scale,
        models=model or (),
        data=data,
        seeds=seeds,
        overrides=set_ or (),
        metric=metric,
    )
    _run_study(study, output, list_, as_json)


@app.command()
def detect(
    data: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON of responses in which people marked spans."),
    ],
    model: Annotated[str, typer.Option("--model", help="Base model, a folder or a hub id.")],
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Reference model. Default: measures of the base alone."),
    ] = None,
    train_reference: Annotated[
        float | None,
        typer.Option("--train-reference", metavar="SHARE", help="Train one on this share of FILE."),
    ] = None,
    output: OutputOption = None,
    set_: SetOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well each measure of quality finds what people marked as wrong in a file."""
    setup_logging(quiet or as_json)
    from forgetting.studies.spans import legend, measure_spans, texts

    path = output if output is not None else Path("studies") / f"detect-{data.stem}"
    try:
        results = measure_spans(
            data,
            model,
            path,
            reference=reference,
            train_share=train_reference,
            overrides=set_ or (),
        )
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    _print_study(path, *texts(results), 1, legend(results), as_json)


@app.command()
def inspect(
    target: Annotated[
        str, typer.Argument(metavar="RUN|DATA", help="The directory of a run, or a data file.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Base model; with DATA, which it scores.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Reference model. Default: quality is base_loss."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first N records of DATA.")
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="Where DATA's scores are kept. Default: runs/inspect-NAME."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="Whose selection. Default: forgetting, or the first."),
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Show it here, for machines without a browser.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Default: a free one.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Look at tokens and their quality: a page for this machine, from which nothing is changed."""
    setup_logging()
    path = Path(target)
    if model is None and not path.is_dir():
        raise InputError(f"{target} is not the directory of a run; for a data file give --model")
    if model is None and reference is not None:
        raise InputError("--reference is compared with --model: give that as well")
    from forgetting.inspecting import open_run, score_data
    from forgetting.inspector import InspectorServer, show_in_terminal

    try:
        if model is not None:
            path = score_data(target, model, reference, limit=limit, run_dir=run_dir)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    inspection = open_run(path, variant)
    if terminal:
        show_in_terminal(inspection, out)
        return
    with InspectorServer(inspection, port) as server:
        out.print("The inspector is at", server.url, style="bold", soft_wrap=True, highlight=False)
        out.print("It is read only, and for this machine alone. Ctrl-C ends it.")
        if browser:
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")],
    what: Annotated[
        Literal["data", "clean", "model", "adapter"],
        typer.Option(
            "--what",
            help="data: the corpus with polarity, token weights and quality, for a trainer. "
            "clean: its conversations without the worst samples. model: whole weights, the "
            "adapter merged. adapter: the adapter alone.",
        ),
    ] = "data",
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="Whose. Default: forgetting, or the first."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder. Default: exports/RECIPE-VARIANT-WHAT."),
    ] = None,
    format: Annotated[
        Literal["parquet", "jsonl"] | None,
        typer.Option("--format", help="Of a corpus. Default: parquet; for clean: jsonl."),
    ] = None,
    drop_worst: Annotated[
        float | None,
        typer.Option(
            "--drop-worst",
            metavar="SHARE",
            help="The share of samples that clean leaves out. Default: 0.1.",
        ),
    ] = None,
    by: Annotated[
        Literal["quality", "negatives"] | None,
        typer.Option(
            "--by",
            help="The worst are those of the lowest mean quality (default), or with the most "
            "negative tokens.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="REPO", help="Put it on the hub too, in private."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push-to-hub: for everybody to read.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take a run's corpus or a model along, with a card, as a folder or to the hub."""
    setup_logging(quiet or as_json)
    from forgetting.export import export_run

    try:
        result = export_run(
            run_dir,
            what,
            variant=variant,
            output=output,
            format=format,
            drop_worst=drop_worst,
            by=by,
            force=force,
            push_to_hub=push_to_hub,
            public=public,
        )
    except KeyboardInterrupt:
        typer.echo("Interrupted. Nothing was written.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps({"output": str(result.path), "url": result.url}))
        return
    out.print(result.sentence, soft_wrap=True, markup=False, highlight=False)
    places = [("Everything is in", str(result.path)), ("On the hub:     ", result.url)]
    for label, place in places:
        if place is not None:
            out.print(label, place, style="bold", soft_wrap=True, markup=False, highlight=False)
    out.print("Read it with")
    for line in result.loading:
        out.print(f"    {line}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from forgetting.config import shipped_recipes

    for name in shipped_recipes():
        typer.echo(name)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine can do; exit code 1 where something needed is broken."""
    from forgetting.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        colors = {"ok": "green", "note": "yellow", "broken": "bold red"}
        for finding in findings:
            level = f"[{colors[finding.level]}]{finding.level}[/]"
            table.add_row(level, finding.what, escape(finding.detail))
        out.print(table)
    if any(finding.level == "broken" for finding in findings):
        raise typer.Exit(1)


def _run(
    recipe: str,
    run_dir: Path | None,
    overrides: Sequence[str] | None,
    quiet: bool,
    as_json: bool,
    stages: Sequence[str] = (),
    processes: int | None = None,
    accelerate_config: str | None = None,
) -> Path | None:
    """Run stages; the directory, where this process is to say what came out."""
    setup_logging(quiet or as_json or process_index() > 0)
    try:
        from forgetting.config import check_batches, check_installed, load_recipe

        # Read before the pipeline is: a mistake in it need not wait for torch's import.
        asked_for = load_recipe(recipe, overrides or ())
        asks_for_more = (processes or 1) > 1 or accelerate_config is not None
        if num_processes() == 1 and asks_for_more:
            check_batches(asked_for, processes or 1)
            check_installed(asked_for)
            arguments = [stages[0] if stages else "run", recipe]
            arguments += [] if run_dir is None else ["--run-dir", str(run_dir)]
            arguments += [part for override in overrides or () for part in ("--set", override)]
            arguments += ["--quiet"] * quiet + ["--json"] * as_json
            launch(arguments, processes, accelerate_config)
            return None
        from forgetting.pipeline import STAGES
        from forgetting.pipeline import run as run_stages

        path = run_stages(asked_for, run_dir, stages=stages or STAGES)
        leave_processes()
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    if process_index() > 0:
        return None
    finished = path / "report" / "index.html"
    shows_results = (not stages or stages == ("report",)) and finished.is_file()
    if shows_results:
        _print_results(path, as_json)
    elif as_json:
        typer.echo(json.dumps({"run_dir": str(path)}))
    if not as_json:
        out.print("Everything is in", str(path), style="bold", soft_wrap=True, highlight=False)
        if shows_results:
            out.print("Look at     ", str(finished), style="bold", soft_wrap=True, highlight=False)
    return path


def _print_corpus(path: Path, num_samples: int) -> None:
    from forgetting.config import load_recipe
    from forgetting.report.preview import LEGEND, rejection_lines, sample_texts, source_table

    out.print(source_table(path))
    for line in rejection_lines(path):
        out.print(line, soft_wrap=True, highlight=False)
    if not num_samples:
        return
    from forgetting.models.loading import load_tokenizer

    recipe = load_recipe(path / "recipe.yaml")
    tokenizer = load_tokenizer(recipe.model)
    out.print(LEGEND)
    for text in sample_texts(path, tokenizer, num_samples, recipe.report.seed):
        out.print()
        out.print(text, soft_wrap=True, highlight=False)


def _print_results(path: Path, as_json: bool) -> None:
    if as_json:
        results = json.loads((path / "report" / "results.json").read_text(encoding="utf-8"))
        typer.echo(json.dumps({"run_dir": str(path), "results": results}))
        return
    from forgetting.report import results_table

    results = results_table(path)
    # A line per figure: variants are few, figures many, and terminals 80 columns wide.
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    for variant in results.variants:
        table.add_column(escape(variant), justify="right")
    task = None
    for column in results.columns:
        cells = [results.cell(variant, column) for variant in results.variants]
        texts = [escape(results.text(variant, column)) for variant in results.variants]
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
    out.print(table)
    out.print(escape(results.sentence))


def _print_plan(
    recipe_name: str,
    run_dir: Path | None,
    overrides: Sequence[str],
    quiet: bool,
    as_json: bool,
    processes: int,
) -> None:
    setup_logging(quiet or as_json)
    from forgetting.config import check_batches, load_recipe

    recipe = load_recipe(recipe_name, overrides)
    check_batches(recipe, processes)
    from forgetting.pipeline import default_run_dir, describe_plan

    path = run_dir if run_dir is not None else default_run_dir(recipe)
    steps = describe_plan(recipe, path)
    if as_json:
        lines = [{"step": s.key, "done": s.is_done, **s.facts} for s in steps]
        typer.echo(json.dumps({"run_dir": str(path), "plan": lines}))
        return
    table = Table(title=f"{recipe.name}: {recipe.model.name_or_path}", title_justify="left")
    for name in ("step", "", "what"):
        table.add_column(name)
    for step in steps:
        facts = ", ".join(
            f"{'unknown' if value is None else f'{value:,}'} {name}"
            for name, value in step.facts.items()
        )
        table.add_row(step.key, "done" if step.is_done else "to do", facts)
    out.print(table)
    out.print(f"Would write to {path}. Nothing has been loaded or written.", soft_wrap=True)


def _run_noise(
    output: Path | None,
    quick: bool,
    jobs: int | None,
    cells: Sequence[str],
    seeds: str | None,
    overrides: Sequence[str],
    lists: bool,
    as_json: bool,
) -> None:
    from forgetting.studies.noise import (
        list_commands,
        load_benchmark,
        run_benchmark,
        run_some_cells,
    )
    from forgetting.studies.noise.table import short_texts

    benchmark = load_benchmark(quick=quick, seeds=seeds, overrides=overrides)
    path = output if output is not None else Path("studies") / benchmark.name
    if lists:
        options = ["--quick"] * quick + ([] if seeds is None else ["--seeds", seeds])
        options += [part for override in overrides for part in ("--set", override)]
        for command in list_commands(benchmark, path, options):
            typer.echo(command)
        return
    try:
        if cells:
            run_some_cells(benchmark, path, cells, jobs=jobs)
            return
        figures = run_benchmark(benchmark, path, jobs=jobs)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    legend = "Means over seeds; accuracy in percent. Columns: share of records that are noisy."
    _print_study(path, *short_texts(figures), legend, as_json)


def _print_study(
    path: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    num_left: int,
    legend: str,
    as_json: bool,
) -> None:
    if as_json:
        document = json.loads((path / "results.json").read_text(encoding="utf-8"))
        typer.echo(json.dumps({"output": str(path), **document}))
        return
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, title in enumerate(header):
        justify: Literal["left", "right"] = "left" if place < num_left else "right"
        table.add_column(escape(title), justify=justify, no_wrap=place < num_left)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)
    for line in legend.splitlines():
        out.print(escape(line))
    out.print("Everything is in", str(path), style="bold", soft_wrap=True, highlight=False)


def _run_study(study: Study, output: Path | None, lists: bool, as_json: bool) -> None:
    from forgetting.studies import list_commands, run_study
    from forgetting.studies.table import legend, texts

    path = output if output is not None else Path("studies") / study.name
    if lists:
        for command in list_commands(study, path):
            typer.echo(command)
        return
    try:
        results = run_study(study, path)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    # The parts that the metric is made of are in the files: terminals are 80 columns wide.
    header, rows, num_left = texts(results, results.columns[:1])
    _print_study(path, header, rows, num_left, "\n".join([legend(results), *study.notes]), as_json)


# What the system says when it is the place, not the program, that is wrong.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def _explain_system_error(error: Exception) -> str | None:
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    # Safetensors' own error class carries the system's number only in its text.
    if number in _FULL or os.strerror(errno.ENOSPC) in text:
        return (
            f"the disk is full: {text}. Free some space and run the same command again; what is "
            "done is kept"
        )
    if number in _REFUSED:
        return f"the system refuses: {text}. Check the path, and your rights to it"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    if num_processes() > 1:
        end_with_the_others()
    # Progress and messages are ours; the frameworks' bars would garble them.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        # In a log file a bar of lm-eval's is a line of hundreds of characters for each task.
        os.environ.setdefault("TQDM_DISABLE", "1")
    # Read on import: transformers sets its log's level itself.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    errors = Console(stderr=True)

    def fail(message: str, exit_code: int) -> int:
        # Of several processes the one that failed first is heard, through their launcher.
        if num_processes() == 1 or not report_failure(message, exit_code):
            errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
        return exit_code

    try:
        app(args=arguments)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except InputError as error:
        return fail(str(error), 2)
    except ForgettingError as error:
        return fail(str(error), 1)
    except Exception as error:
        message = _explain_system_error(error)
        if message is not None:
            return fail(message, 2)
        if num_processes() == 1:
            raise
        return fail(traceback.format_exc(), 1)
    return 0


def entry() -> None:
    """The `forgetting` command."""
    sys.exit(main())
