"""Runs a cell: its corpus, an ordinary run of its recipe, and its result.

In: a cell and folders. Out: `cells/NAME/result.json`. A finished cell is skipped, and an
interrupted one continues where its run stopped.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

import forgetting
from experiments.command_line import only_process
from experiments.real.cells import Cell, make_recipe, write_corpus
from experiments.real.finding import STAGES, Found, measure_finding
from experiments.real.training import Trained, measure_training
from forgetting.console import logger
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.stats import stage_costs
from forgetting.rundir.storage import write_atomically
from forgetting.studies import open_study

VERSION = 5
"""Raise it when a result changes although the recipes do not."""


class Result(BaseModel):
    """What a cell gave: one of the two."""

    settings: str
    """Checksum of what the result depends on."""
    found: Found | None = None
    trained: Trained | None = None


def open_folder(output: Path) -> None:
    """Create the output folder, or check that it is one.

    Raises:
        InputError: it holds something else.
    """
    open_study(output, "real")


def run_cell(cell: Cell, data_dir: Path, output: Path) -> None:
    """Finish a cell.

    Raises:
        InputError: data are missing, or another process works on the cell.
        DivergenceError: a training diverged.
    """
    folder = output / "cells" / cell.name
    with only_process(folder):
        if read_result(cell, output) is not None:
            logger.info("%s: already done", cell.name)
            return
        file = folder / "corpus.jsonl"
        write_corpus(cell, data_dir.resolve(), file)
        num_records = len(file.read_text(encoding="utf-8").splitlines())
        recipe = make_recipe(cell, file, num_records, data_dir.resolve())
        stages = STAGES if cell.task == "finding" else None
        run = forgetting.run(recipe, folder / "run", stages=stages)
        seconds = {cost.name: cost.seconds for cost in stage_costs(read_manifest(run))}
        result = Result(settings=_settings(cell))
        if cell.task == "finding":
            result.found = measure_finding(cell, run, seconds)
        else:
            result.trained = measure_training(run, seconds)
        write_atomically(folder / "result.json", result.model_dump_json(indent=1))


def read_result(cell: Cell, output: Path) -> Result | None:
    """The result of a cell; None if it is not there, or was made with other settings."""
    file = output / "cells" / cell.name / "result.json"
    try:
        result = Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    return result if result.settings == _settings(cell) else None


def _settings(cell: Cell) -> str:
    recipe = make_recipe(cell, Path("corpus.jsonl"), cell.num_records, Path("data"))
    content = [VERSION, forgetting.__version__, recipe.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
