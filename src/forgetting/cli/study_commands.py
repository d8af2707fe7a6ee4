"""`sweep`, `reproduce` and `spans`: many runs, or one measurement, that end in a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forgetting.cli.groups import STUDIES, app
from forgetting.cli.options import (
    JsonOption,
    OutputOption,
    QuietOption,
    RecipeArgument,
    SetOption,
    find_recipe,
)
from forgetting.console import print_table, setup_logging

if TYPE_CHECKING:
    from forgetting.studies import Study

MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="TASK/METRIC",
        help="Metric of the table and the figure. Default: the report's held-out metric.",
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="NAME,NAME",
        help="Columns of the tables, also in LaTeX: variant, a grid field, TASK/METRIC, "
        "TASK/METRIC:paired, paired, seeds, model, published, difference.",
    ),
]
ListOption = Annotated[
    bool,
    typer.Option("--list", help="Print one command per run, for a scheduler, and run nothing."),
]


@app.command(
    rich_help_panel=STUDIES,
    epilog="Example: forgetting sweep mine.yaml --grid selection.rho=0.5,0.7 --grid seed=1,2,3",
)
def sweep(
    recipe: RecipeArgument,
    grid: Annotated[
        list[str],
        typer.Option(
            "--grid",
            metavar="SECTION.FIELD=VALUE,VALUE",
            help="A recipe field and the values it takes (repeatable).",
        ),
    ],
    output: OutputOption = None,
    set_: SetOption = None,
    metric: MetricOption = None,
    columns: ColumnsOption = None,
    list_: ListOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe at every point of a grid. Ends with means and deviations over seeds."""
    setup_logging(quiet or as_json)
    from forgetting.studies import sweep_study

    study = sweep_study(find_recipe(recipe), grid, set_ or (), metric, columns)
    run_or_list(study, output, list_, as_json)


@app.command(rich_help_panel=STUDIES, epilog="Example: forgetting reproduce figure1a --scale tiny")
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Without a name: list the studies.")
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            metavar="paper|tiny",
            help="paper: the paper's models and data. tiny: the demo's, in minutes on a CPU.",
        ),
    ] = "paper",
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Small model to use with --scale tiny (repeatable)."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Data file to use with --scale tiny.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,N", help="Seeds. Default: 1,2,3.")
    ] = None,
    output: OutputOption = None,
    set_: SetOption = None,
    metric: MetricOption = None,
    columns: ColumnsOption = None,
    list_: ListOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a table or figure of the paper. Published values are shown next to yours."""
    setup_logging(quiet or as_json)
    from forgetting.studies import load_definition, paper_study, shipped_studies

    if name is None:
        for each in shipped_studies():
            typer.echo(f"{each:<12} {load_definition(each).title}")
        return
    study = paper_study(
        name,
        scale,
        models=model or (),
        data=data,
        seeds=seeds,
        overrides=set_ or (),
        metric=metric,
        columns=columns,
    )
    run_or_list(study, output, list_, as_json)


@app.command(
    rich_help_panel=STUDIES,
    epilog="Example: forgetting spans marked.json --model BASE --train-reference 0.2",
)
def spans(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON file of responses in which people marked wrong spans."
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="Base model: a folder or Hub id.")],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Reference model. Default: none, and only measures of the base are computed.",
        ),
    ] = None,
    train_reference: Annotated[
        float | None,
        typer.Option(
            "--train-reference",
            metavar="SHARE",
            help="Train a reference model on this share of FILE, and measure on the rest.",
        ),
    ] = None,
    output: OutputOption = None,
    set_: SetOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well each quality measure finds the spans that people marked as wrong."""
    setup_logging(quiet or as_json)
    from forgetting.studies.spans import legend, measure_spans, texts

    path = output if output is not None else Path("studies") / f"spans-{data.stem}"
    results = measure_spans(
        data,
        model,
        path,
        reference=reference,
        train_share=train_reference,
        overrides=set_ or (),
    )
    if as_json:
        print_results(path)
    else:
        print_table(*texts(results), 1, notes=[legend(results)], folder=path)


def run_or_list(study: Study, output: Path | None, lists: bool, as_json: bool) -> None:
    """Run a study and print its table, or print the commands of its runs."""
    from forgetting.studies import list_commands, run_study
    from forgetting.studies.study_files import legend, texts

    path = output if output is not None else Path("studies") / study.name
    if lists:
        for command in list_commands(study, path):
            typer.echo(command)
        return
    results = run_study(study, path)
    if as_json:
        print_results(path)
        return
    # The parts of the metric are in the files: terminals have 80 columns.
    table = texts(results, study.columns, has_parts=False)
    print_table(
        table.header, table.rows, table.num_left, notes=[legend(results), *study.notes], folder=path
    )


def print_results(path: Path) -> None:
    """Print the results of a study as JSON."""
    document = json.loads((path / "results.json").read_text(encoding="utf-8"))
    typer.echo(json.dumps({"output": str(path), **document}))
