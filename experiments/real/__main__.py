"""The command line of the evidence on a real model: `python experiments/real --help`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # Started as a folder, which is then the first place to import from. It is the checkout's root
    # that holds the package.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from forgetting.console import quiet_frameworks, report_errors, setup_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return report_errors(lambda: run(options))


def build_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python experiments/real",
        description="Measure on real data, with SmolLM2-135M-Instruct, how well noise is found and "
        "what training on it gives. Finished cells are skipped and interrupted ones continue.",
        epilog="Example: python experiments/real DATA_DIR --quick",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data_dir", type=Path, metavar="DATA_DIR", help="folder with the data sets")
    add("--quick", action="store_true", help="run one small cell of each task, in minutes")
    add(
        "--large",
        action="store_true",
        help="also train on 10,000 records, which takes hours without a GPU",
    )
    add("--list", action="store_true", help="print one command per cell instead of running them")
    add(
        "--cell",
        action="append",
        default=[],
        metavar="NAME",
        help="run only this cell (repeatable)",
    )
    add("--output", type=Path, metavar="DIR", help="output folder; default: studies/real")
    return parser


def run(options: argparse.Namespace) -> None:
    """Do what the options ask for.

    Raises:
        InputError: an option cannot be used.
    """
    quiet_frameworks()
    setup_logging(False)
    # Imported here: these import torch and transformers, which takes seconds.
    from experiments.command_line import check_names
    from experiments.real.cells import all_cells, large_cells, quick_cells
    from experiments.real.running import open_folder, run_cell
    from experiments.real.table import write_results

    chosen = quick_cells() if options.quick else all_cells()
    if options.large:
        chosen += large_cells()
    cells = {cell.name: cell for cell in chosen}
    output = options.output or Path("studies") / ("real-quick" if options.quick else "real")
    if options.list:
        folder = os.path.relpath(Path(__file__).parent)
        words = ["python", folder, str(options.data_dir), *["--quick"] * options.quick]
        words += ["--large"] * options.large
        for name in cells:
            print(shlex.join([*words, "--output", str(output), "--cell", name]))
        return
    check_names(options.cell, cells)
    open_folder(output)
    for name in options.cell or cells:
        run_cell(cells[name], options.data_dir, output)
    print(write_results(list(cells.values()), output))


if __name__ == "__main__":
    sys.exit(main())
