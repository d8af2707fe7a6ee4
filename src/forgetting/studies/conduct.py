"""A study end to end: its runs, then its tables and its figure, all in one folder.

In: a study and a folder. Out: `results.md`, `.csv`, `.tex` and `.json`, `cells.csv`, `figure.svg`
and `.png`, and the runs in `runs/`. Nothing is written outside the folder.
"""

from __future__ import annotations

from pathlib import Path

from forgetting.console import logger
from forgetting.rundir.reader import RunReader
from forgetting.rundir.results import Evaluation, Metric
from forgetting.rundir.selections import SelectionSummary
from forgetting.rundir.storage import write_atomically
from forgetting.studies.execute import (
    diverged_variants,
    execute,
    open_study,
    run_path,
    total_work,
    write_recipes,
)
from forgetting.studies.grid import StudyCell
from forgetting.studies.plot import write_figure
from forgetting.studies.study import Study
from forgetting.studies.study_files import (
    cells_to_csv,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from forgetting.studies.study_table import StudyTable, build_table, by_value

NOISE_FIGURES = ("auroc", "average_precision", "precision", "recall", "precision_negative")


def run_study(study: Study, output: Path) -> StudyTable:
    """Run a study and write its results. Finished runs are skipped.

    Raises:
        InputError: a recipe cannot be used, the folder belongs to something else, or no task has
            the study's metric.
        DivergenceError: a reference model diverged.
    """
    open_study(output, study.name)
    write_recipes(study.runs, output)
    execute(study.runs, output)
    return write_results(study, output)


def list_commands(study: Study, output: Path) -> list[str]:
    """One command per run of a study, for any order and any machine; logs what is left to do.

    Raises:
        InputError: a recipe cannot be used, or the folder belongs to something else.
    """
    open_study(output, study.name)
    commands = write_recipes(study.runs, output)
    logger.info("%s", total_work(study.runs, output))
    return commands


def write_results(study: Study, output: Path) -> StudyTable:
    """Write the results of the finished runs."""
    cells = read_results(study, output)
    table = build_table(
        cells,
        study.fields,
        metric=study.metric,
        diverged=diverged_variants(study.runs, output),
        published=study.published,
    )
    if study.is_sorted:
        table = by_value(table)
    for name, text in (
        ("results.md", to_markdown(table, study.title, study.notes, study.columns)),
        ("results.csv", to_csv(table)),
        ("results.tex", to_latex(table, study.title, study.columns)),
        ("results.json", to_json(table)),
        ("cells.csv", cells_to_csv(cells, study.fields)),
    ):
        write_atomically(output / name, text)
    write_figure(table, study.x, study.title, output)
    return table


def read_results(study: Study, output: Path) -> list[tuple[StudyCell, list[Evaluation]]]:
    """Every cell of a study with its evaluations, including how its selection finds known noise."""
    results = []
    for each in study.runs:
        run = RunReader(run_path(output, each.name))
        selections = [s for s in map(_noise_found, run.selections.values()) if s is not None]
        measured = [*run.evaluations, *selections]
        for cell in each.cells:
            results.append((cell, [e for e in measured if e.variant == cell.variant]))
    return results


def _noise_found(selection: SelectionSummary) -> Evaluation | None:
    """How well a selection finds the known noise; None if no noise is known."""
    if selection.noise is None:
        return None
    figures = {name: getattr(selection.noise, name) for name in NOISE_FIGURES}
    metrics = {
        name: Metric(value=value, stderr=None, higher_is_better=True)
        for name, value in figures.items()
        if value is not None
    }
    return Evaluation(
        variant=selection.variant,
        task="selection",
        num_items=selection.num_tokens,
        metrics=metrics,
    )
