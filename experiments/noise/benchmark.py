"""The noise benchmark end to end: its cells, several at a time, then the table and the map.

In: a benchmark and a folder. Out: `cells/NAME` for each cell, and the results. Finished cells are
skipped. Nothing is written outside the folder.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from experiments.command_line import check_names
from experiments.noise.cell import is_done, read_detection, read_outcome, run_cell
from experiments.noise.design import Benchmark, Cell
from experiments.noise.map import write_figure
from experiments.noise.table import (
    CellResult,
    Figures,
    gather,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from forgetting.console import logger, progress, setup_logging
from forgetting.errors import DivergenceError, ForgettingError
from forgetting.rundir.storage import write_atomically
from forgetting.studies import open_study


def run_benchmark(benchmark: Benchmark, output: Path, *, jobs: int | None = None) -> Figures:
    """Finish every cell of the benchmark, and write its results.

    Args:
        output: output folder.
        jobs: cells at a time, one core each, which is faster than one cell on all cores; None: as
            many as there are cores.

    Raises:
        InputError: the folder belongs to something else, or the recipe cannot be used.
    """
    open_study(output, benchmark.name)
    run_cells(benchmark.cells(), output, jobs=jobs or os.cpu_count() or 1)
    return write_results(benchmark, output)


def write_results(benchmark: Benchmark, output: Path) -> Figures:
    """Write `results.md`, `.csv`, `.tex` and `.json`, `figure.svg` and `.png` of finished cells."""
    found = [read_result(cell, output) for cell in benchmark.cells()]
    figures = gather([result for result in found if result is not None], list(benchmark.variants))
    title = benchmark.title
    for name, text in (
        ("results.md", to_markdown(figures, title)),
        ("results.csv", to_csv(figures)),
        ("results.tex", to_latex(figures, title)),
        ("results.json", to_json(figures)),
    ):
        write_atomically(output / name, text)
    write_figure(figures, title, output)
    return figures


def read_result(cell: Cell, output: Path) -> CellResult | None:
    """The results of a cell; None if it is unfinished, or its reference model diverged."""
    path = cell_path(output, cell)
    if not is_done(cell, path):
        return None
    return CellResult(
        cell, read_detection(path), {name: read_outcome(path, name) for name in cell.trained}
    )


def run_some_cells(
    benchmark: Benchmark, output: Path, names: Sequence[str], *, jobs: int | None = None
) -> None:
    """Finish some cells, and write no results; arguments as for `run_benchmark`.

    Raises:
        InputError: as there, or no cell has a name.
    """
    cells = {cell.name: cell for cell in benchmark.cells()}
    check_names(names, cells)
    open_study(output, benchmark.name)
    run_cells([cells[name] for name in names], output, jobs=jobs or len(names))


def list_commands(benchmark: Benchmark, output: Path, options: Sequence[str]) -> list[str]:
    """One command per cell, for any order and any machine; logs what is left to do.

    Args:
        options: the options that define the benchmark.

    Raises:
        InputError: the folder belongs to something else.
    """
    open_study(output, benchmark.name)
    cells = benchmark.cells()
    num_left = sum(not is_done(cell, cell_path(output, cell)) for cell in cells)
    logger.info("%d cells, %d to do", len(cells), num_left)
    # Relative to the current directory, in which the commands will run.
    folder = os.path.relpath(Path(__file__).parent)
    words = ["python", folder, *options, "--output", str(output)]
    return [shlex.join([*words, "--cell", cell.name]) for cell in cells]


def cell_path(output: Path, cell: Cell) -> Path:
    """Directory of a cell."""
    return output / "cells" / cell.name


def run_cells(cells: Sequence[Cell], output: Path, *, jobs: int) -> None:
    """Finish some cells, `jobs` at a time.

    A cell whose reference model diverges is logged and skipped.
    """
    left = [cell for cell in cells if not is_done(cell, cell_path(output, cell))]
    total = sum(len(cell.trained) for cell in left)
    logger.info(
        "%d cells, %d to do with %d models to measure, %d at a time",
        len(cells),
        len(left),
        total,
        jobs,
    )
    if not left:
        return
    # A forked process would share the threads of torch, which hangs.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin)
    try:
        with progress("Noise benchmark", total) as advance:
            waiting = {pool.submit(run_cell, cell, cell_path(output, cell)): cell for cell in left}
            for done in as_completed(waiting):
                cell = waiting[done]
                try:
                    done.result()
                except DivergenceError as error:
                    logger.warning("%s: the reference model: %s", cell.name, error)
                except BrokenProcessPool as error:
                    raise ForgettingError(
                        "a process of the benchmark was killed, perhaps because memory ran out. "
                        "Run the same command again with fewer --jobs. Finished results are kept"
                    ) from error
                advance(len(cell.trained), cell.name)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    torch.set_num_threads(1)
    setup_logging(quiet=True)
