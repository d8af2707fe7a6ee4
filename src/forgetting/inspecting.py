"""From what a person names to what the inspector shows.

Goes in: the directory of a run. Comes out: an `Inspection` of it. Knows nothing of pages,
browsers or terminals.
"""

from __future__ import annotations

from pathlib import Path

from forgetting import models
from forgetting.errors import InputError
from forgetting.recipe import load_recipe
from forgetting.report.inspector import Inspection, open_inspection
from forgetting.rundir import RECIPE


def open_run(run_dir: Path, variant: str | None = None) -> Inspection:
    """A run whose tokens are scored and selected.

    Raises:
        InputError: no run there, nothing is selected in it, or it has no such variant.
    """
    if not (run_dir / RECIPE).is_file():
        raise InputError(f"{run_dir} is not a run directory: it has no {RECIPE}")
    recipe = load_recipe(run_dir / RECIPE)
    inspection = open_inspection(run_dir, models.decoder(recipe.model), variant)
    if inspection is None:
        raise InputError(
            f"{run_dir} has no selection yet. Run `forgetting run` with its recipe, or the stages "
            "up to `forgetting select`"
        )
    return inspection
