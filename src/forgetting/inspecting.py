"""Opens what the inspector shows: a run, or a data file that is scored first.

Input: a run directory; or a data file, a model and optionally a reference, for which a recipe is
made. Output: an `Inspection`. Knows nothing of pages, browsers or terminals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from forgetting.config import (
    DataSettings,
    ModelSettings,
    Recipe,
    ReferenceSettings,
    SelectionSettings,
    SourceSettings,
    VariantSettings,
    load_recipe,
)
from forgetting.data.sources import is_local, read_source
from forgetting.errors import InputError, TooFewSamples
from forgetting.inspector import Inspection, open_inspection
from forgetting.models import loading
from forgetting.models.gguf import with_folder
from forgetting.models.tokenization import load_tokenization
from forgetting.pipeline import default_run_dir, describe_plan, is_prepared
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.findings import PosteriorPart, has_findings
from forgetting.rundir.stats import DataSummary
from forgetting.stages.telling import TellingFeatures

STAGES = ("prepare", "score", "select")
# A corpus up to this size is scored whole.
MAX_SAMPLES = 1_000_000
DEFAULT_MAX_LENGTH = 2048


def open_run(
    run_dir: Path,
    variant: str | None = None,
    *,
    suspected: Sequence[PosteriorPart] | None = None,
) -> Inspection:
    """Open a run with scores and a selection, or with what the detector found.

    The fields of the records are read from local data, unless they have changed since.

    Args:
        variant: whose selection is shown; default: `forgetting`, or the first. If no variant
            selects, the detector's posterior is shown.
        suspected: shown in place of what the detector found, which is nothing.

    Raises:
        InputError: there is no run, no such variant, neither a selection nor findings, or scores,
            selection or findings do not belong to the tokens of D_train.
    """
    if not layout.recipe_file(run_dir).is_file():
        raise InputError(f"{run_dir} is not a run directory: it has no {layout.RECIPE}")
    recipe = load_recipe(layout.recipe_file(run_dir))
    explain = TellingFeatures(recipe, run_dir) if has_findings(run_dir) else None
    data = layout.data_dir(run_dir)
    date = DataSummary.load(data).date if layout.summary_file(data).is_file() else None
    inspection = open_inspection(
        run_dir,
        loading.decoder(recipe.model),
        variant,
        explain,
        tokenization=load_tokenization(recipe, date),
        suspected=suspected,
    )
    if inspection is None:
        raise InputError(
            f"{run_dir} has no selection yet. Run its recipe with `forgetting run`, or the stages "
            "up to `forgetting select` or, with a detector, `forgetting detect`"
        )
    if inspection.texts is not None and _has_data(recipe, run_dir):
        for source in recipe.data.sources:
            records = read_source(source, recipe.seed)
            pairs = ((origin.record, raw) for origin, raw in records)
            inspection.texts.add_fields(source.label, pairs)
    return inspection


def _has_data(recipe: Recipe, run_dir: Path) -> bool:
    """Whether the data of a run are local, and the same as when it was prepared."""
    try:
        local = all(each.world is None and is_local(each) for each in recipe.data.sources)
        return local and is_prepared(recipe, run_dir)
    except InputError:
        return False


def score_data(
    data: str,
    model: str,
    reference: str | None = None,
    *,
    limit: int | None = None,
    run_dir: Path | None = None,
) -> Path:
    """Prepare, score and select a whole data set, without a recipe.

    Args:
        data: a file that `data.sources` can read, or a data set id on the Hub.
        model: the base model, a folder or a Hub id.
        reference: the reference model, full weights or an adapter, as a folder or a Hub id. Without
            one, the measure of quality is `base_loss`.
        limit: read only the first records, this many.
        run_dir: default `runs/inspect-<name of the data>`.

    Returns:
        The run directory. Stages that are done in it are not run again.

    Raises:
        InputError: data or a model cannot be read.
    """
    source = SourceSettings(path=resolved(data), limit=limit)
    is_local(source)  # Refuse a missing file before loading a model.
    base = with_folder(ModelSettings(name_or_path=resolved(model)))
    positions = loading.max_positions(loading.load_config(base)) or DEFAULT_MAX_LENGTH
    settings = DataSettings(
        sources=[source],
        num_reference=0,
        num_train=MAX_SAMPLES,
        num_heldout=0,
        max_length=min(DEFAULT_MAX_LENGTH, positions),
    )
    selection = SelectionSettings(quality="base_loss" if reference is None else "influence")
    recipe = Recipe(
        name="inspect-" + re.sub(r"[^A-Za-z0-9_.-]", "-", source.label)[:80],
        model=base,
        data=settings,
        reference=ReferenceSettings(name_or_path=reference and resolved(reference)),
        # Nothing is trained, and only a variant that forgets takes responses labeled false.
        variants={"inspected": VariantSettings(objective="forgetting", selection=selection)},
    )
    path = default_run_dir(recipe) if run_dir is None else run_dir
    return run_on_all(recipe, path, STAGES)


def run_on_all(recipe: Recipe, path: Path, stages: Sequence[str]) -> Path:
    """Run stages on all usable records of a recipe's sources, of which there are at most
    `data.num_train`.

    Returns:
        The run directory. Stages that are done in it are not run again.

    Raises:
        InputError: data or a model cannot be read.
    """
    recipe = _as_before(recipe, path) or recipe
    while True:
        try:
            return run_stages(recipe, path, stages=stages)
        except TooFewSamples as error:
            # The number of usable samples is known only after reading them.
            if not 0 < error.num_usable < recipe.data.num_train:
                raise
            recipe = _with_num_train(recipe, error.num_usable)


def _as_before(recipe: Recipe, path: Path) -> Recipe | None:
    """The recipe with the number of samples found before, if data and model are unchanged."""
    if not layout.recipe_file(path).is_file():
        return None
    again = _with_num_train(recipe, load_recipe(layout.recipe_file(path)).data.num_train)
    prepared = next(step for step in describe_plan(again, path) if step.key == "prepare")
    return again if prepared.is_done else None


def _with_num_train(recipe: Recipe, num_train: int) -> Recipe:
    data = recipe.data.model_copy(update={"num_train": num_train})
    return recipe.model_copy(update={"data": data})


def resolved(name: str) -> str:
    """The absolute path if the file exists, so that the run can be reused from another folder."""
    return str(Path(name).resolve()) if Path(name).exists() else name
