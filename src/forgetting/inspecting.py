"""Opens what the inspector shows: a run, or a data file that is scored first.

Input: a run directory; or a data file, a model and optionally a reference, for which a recipe is
made. Output: an `Inspection`. Knows nothing of pages, browsers or terminals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from forgetting.config import (
    DataSettings,
    DetectorSettings,
    ModelSettings,
    Recipe,
    ReferenceSettings,
    SelectionSettings,
    SourceSettings,
    VariantSettings,
    load_recipe,
)
from forgetting.data.files import HEADED, form_of
from forgetting.data.sources import is_local, read_source
from forgetting.errors import InputError, TooFewSamples, UnusableRecords
from forgetting.inspector import Inspection, open_inspection
from forgetting.method.columns import COLUMNS, of_reference
from forgetting.method.measures import DEFAULT_MEASURE, DETECTOR, usable_measure
from forgetting.models import loading
from forgetting.models.gguf import with_folder
from forgetting.models.tokenization import check_tokenizer, load_tokenization
from forgetting.pipeline import default_run_dir, describe_plan, is_prepared
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.findings import PosteriorPart, has_findings
from forgetting.rundir.reader import require_run
from forgetting.rundir.stats import DataSummary
from forgetting.stages.telling import TellingFeatures

STAGES = ("prepare", "score", "select")
DETECTOR_STAGES = ("prepare", "probe", "score", "detect", "select")
LIKELY_BAD = 0.5
"""Posterior from which a token of an inspected file is negative."""
# A corpus up to this size is scored whole.
MAX_SAMPLES = 1_000_000
# A file with many broken records is what one looks into. With fewer usable ones, the fields are
# read wrongly.
MAX_REJECTED_SHARE = 0.9
RENAME = (
    "Fix the records, or rename their fields, for example with "
    "`--field prompt=question --field completion=answer`"
)
DEFAULT_MAX_LENGTH = 2048


def open_run(
    run_dir: Path,
    variant: str | None = None,
    quality: str | None = None,
    *,
    suspected: Sequence[PosteriorPart] | None = None,
) -> Inspection:
    """Open a run with scores and a selection, or with what the detector found.

    The fields of the records are read from local data, unless they have changed since.

    Args:
        variant: whose selection is shown; default: `forgetting`, or the first. If no variant
            selects, the detector's posterior is shown.
        quality: measure that is shown. Default: the one that the variant selects by.
        suspected: shown in place of what the detector found, which is nothing.

    Raises:
        InputError: there is no run, no such variant, no such measure, neither a selection nor
            findings, or scores, selection or findings do not belong to the tokens of D_train.
    """
    require_run(run_dir)
    recipe = load_recipe(layout.recipe_file(run_dir))
    check_tokenizer(recipe, run_dir)
    explain = TellingFeatures(recipe, run_dir) if has_findings(run_dir) else None
    data = layout.data_dir(run_dir)
    date = DataSummary.load(data).date if layout.summary_file(data).is_file() else None
    inspection = open_inspection(
        run_dir,
        loading.decoder(recipe.model),
        variant,
        explain,
        quality,
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
            records = read_source(source, recipe.seed, recipe.data.max_record_bytes)
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
    quality: str | None = None,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
    escaped: bool = False,
    run_dir: Path | None = None,
) -> Path:
    """Prepare, score and select a whole data set, without a recipe.

    Args:
        data: a file that `data.sources` can read, or a data set id on the Hub.
        model: the base model, a folder or a Hub id.
        reference: the reference model, full weights or an adapter, as a folder or a Hub id. Without
            one, the measure of quality is `base_loss`.
        quality: measure of quality. Default: `influence` with a reference, else `base_loss`.
        limit: read only the first records, this many.
        fields: new names for fields of a record, as in `source_settings`.
        columns: as in `source_settings`.
        escaped: as in `source_settings`.
        run_dir: default `runs/inspect-<name of the data>`.

    Returns:
        The run directory. Stages that are done in it are not run again.

    Raises:
        InputError: data or a model cannot be read, or the measure cannot be used.
    """
    selection = _selection(quality, has_reference=reference is not None)
    source = source_settings(data, limit, fields, columns, escaped=escaped)
    base = with_folder(ModelSettings(name_or_path=resolved(model)))
    positions = loading.max_positions(loading.load_config(base)) or DEFAULT_MAX_LENGTH
    settings = DataSettings(
        sources=[source],
        num_reference=0,
        num_train=MAX_SAMPLES,
        num_heldout=0,
        max_length=min(DEFAULT_MAX_LENGTH, positions),
        max_rejected_share=MAX_REJECTED_SHARE,
    )
    recipe = Recipe(
        name="inspect-" + re.sub(r"[^A-Za-z0-9_.-]", "-", source.label)[:80],
        model=base,
        data=settings,
        reference=ReferenceSettings(name_or_path=reference and resolved(reference)),
        detector=DetectorSettings(reference="never" if reference is None else "always"),
        # Nothing is trained, and only a variant that forgets takes responses labeled false.
        variants={"inspected": VariantSettings(objective="forgetting", selection=selection)},
    )
    path = default_run_dir(recipe) if run_dir is None else run_dir
    return run_on_all(recipe, path, DETECTOR_STAGES if quality == DETECTOR else STAGES)


def source_settings(
    data: str,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    escaped: bool = False,
) -> SourceSettings:
    """The source that a command without a recipe reads.

    Args:
        data: a file or folder, or a data set id on the Hub.
        limit: read only the first records, this many.
        fields: new names for fields of a record: `{"prompt": "question"}` reads `question` as
            `prompt`.
        columns: names of the columns of a .csv or .tsv file without a header.
        escaped: whether quotes in such a file are plain text and `\\n` stands for a line break.

    Raises:
        InputError: there is no such file, or it has no columns.
    """
    try:
        source = SourceSettings(
            path=resolved(data),
            limit=limit,
            fields=dict(fields or {}),
            columns=None if columns is None else list(columns),
            escaped=escaped,
        )
    except ValidationError as error:
        reason = str(error.errors()[0]["ctx"]["error"])
        raise InputError(f"{data}: {reason}") from error
    is_local(source)  # Refuse a missing file before loading a model.
    return source


def _selection(quality: str | None, *, has_reference: bool) -> SelectionSettings:
    """How an inspected file is divided.

    Raises:
        InputError: the measure does not exist, or does not fit the models.
    """
    if quality is None:
        return SelectionSettings(quality=DEFAULT_MEASURE if has_reference else "base_loss")
    known = [column for column in COLUMNS if has_reference or not of_reference(column)]
    measure = usable_measure(quality, known, "a file without --reference")
    if has_reference and not any(map(of_reference, measure.columns)) and quality != DETECTOR:
        raise InputError(f"--quality {quality} does not use a reference model. Remove --reference")
    if quality == DETECTOR:
        return SelectionSettings(quality=DETECTOR, threshold="posterior", posterior=LIKELY_BAD)
    return SelectionSettings(quality=quality)


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
        except UnusableRecords as error:
            # There is no recipe that the user could change.
            raise InputError(f"{error.problem}{RENAME}{_about_columns(recipe)}") from error


def _about_columns(recipe: Recipe) -> str:
    """What else may help where the fields of records are not recognized."""
    path = Path(str(recipe.data.sources[0].path))
    if path.is_dir():
        return ". Tables without a header are read one by one, with `--columns`"
    if form_of(path.name) in HEADED:
        return ", or name the columns of a table without a header with `--columns`"
    return ""


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
