"""The command line of the noise benchmark: `python experiments/noise --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # Started as a folder, which is then the first place to import from. It is the checkout's root
    # that holds the package.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from forgetting.console import print_table, quiet_frameworks, report_errors, setup_logging

LEGEND = "Means over seeds; accuracy in percent. Columns: share of records that are noisy."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return report_errors(lambda: run(options))


def build_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python experiments/noise",
        description="Measure which token-quality measures find known noise, and where forgetting "
        "that noise helps. Finished cells are skipped and interrupted ones continue.",
        epilog="Example: python experiments/noise --quick",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="run a part of the benchmark, in minutes")
    add("--list", action="store_true", help="print one command per cell instead of running them")
    add(
        "--cell",
        action="append",
        default=[],
        metavar="NAME",
        help="run only this cell and write no results (repeatable)",
    )
    add("--jobs", type=_positive, metavar="N", help="cells at a time, one core each; default: all")
    add("--seeds", metavar="N,N", help="seeds in place of 1,2,3")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="override a recipe field in every cell (repeatable)",
    )
    add("--output", type=Path, metavar="DIR", help="output folder; default: studies/noise")
    add("--quiet", action="store_true", help="show only warnings, errors and results")
    add("--json", action="store_true", help="print the results as JSON on standard output")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def run(options: argparse.Namespace) -> None:
    """Do what the options ask for.

    Raises:
        InputError: an option cannot be used.
    """
    quiet_frameworks()
    setup_logging(options.quiet or options.json)
    # Imported here: these import torch and transformers, which takes seconds.
    from experiments.noise.benchmark import list_commands, run_benchmark, run_some_cells
    from experiments.noise.design import load_benchmark
    from experiments.noise.table import short_texts

    benchmark = load_benchmark(quick=options.quick, seeds=options.seeds, overrides=options.set)
    output = options.output or Path("studies") / benchmark.name
    if options.list:
        given = ["--quick"] * options.quick
        given += [] if options.seeds is None else ["--seeds", options.seeds]
        given += [part for override in options.set for part in ("--set", override)]
        for command in list_commands(benchmark, output, given):
            print(command)
        return
    if options.cell:
        run_some_cells(benchmark, output, options.cell, jobs=options.jobs)
        return
    figures = run_benchmark(benchmark, output, jobs=options.jobs)
    if options.json:
        document = json.loads((output / "results.json").read_text(encoding="utf-8"))
        print(json.dumps({"output": str(output), **document}))
    else:
        print_table(*short_texts(figures), notes=[LEGEND], folder=output)


if __name__ == "__main__":
    sys.exit(main())
