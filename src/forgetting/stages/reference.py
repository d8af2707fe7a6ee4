"""`reference`: fine-tunes the reference model on D_ref.

If the recipe asks for folds, there is one reference model for each, trained on the samples of
D_train that are not in the fold. A reference model that the recipe names is not trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import (
    SplitSize,
    check_training,
    split_sizes,
    training_facts,
    training_settings,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Trains on all response tokens, apart from those that the data says to forget."""
    import numpy as np

    from forgetting.config import VariantSettings
    from forgetting.rundir import layout
    from forgetting.rundir.samples import SampleFile
    from forgetting.rundir.stats import DataSummary
    from forgetting.training.fit import fine_tune

    recipe, fold = step.recipe, step.part
    label = "Reference model"
    split = "reference" if fold is None else "train"
    path = layout.split_file(layout.data_dir(run_dir), split)
    kept = np.ones(len(SampleFile(path)), dtype=bool)
    if fold is not None:
        kept = fold_of_samples(recipe, len(kept)) != recipe.fold_names.index(fold)
        label = f"{label}, {fold}"
    full = VariantSettings(objective="full")
    data = DataSummary.load(layout.data_dir(run_dir))
    has_weights = data.splits[split].weighted_tokens > 0
    tables = _tables(path, kept, has_weights)
    fine_tune(recipe, recipe.reference, full, tables, label, work, data.end_token_ids)


def _tables(path: Path, kept: NDArray, has_weights: bool) -> Iterator[pa.Table]:
    import numpy as np
    import pyarrow as pa

    from forgetting.rundir.samples import Samples, rows_in_parts
    from forgetting.rundir.selections import WEIGHED
    from forgetting.training.dataset import trainer_columns

    begin = 0
    for part in rows_in_parts(path, WEIGHED):
        samples = Samples(part.filter(pa.array(kept[begin : begin + part.num_rows])))
        begin += part.num_rows
        polarity = samples.per_response_token(~samples.is_negative).astype(np.int8)
        weights = samples.weights if has_weights else None
        yield pa.table(trainer_columns(samples, polarity, token_weights=weights))


def fold_of_samples(recipe: Recipe, num_samples: int) -> NDArray:
    """The fold of each sample of D_train, shape (samples,), drawn with the recipe's seed.

    The sizes of two folds differ by one at most.
    """
    import numpy as np

    order = np.random.default_rng(recipe.seed).permutation(num_samples)
    return order % len(recipe.fold_names)


def parts(recipe: Recipe) -> Sequence[str | None]:
    """The folds; nothing if no score needs a reference model, or the recipe names one."""
    if not recipe.needs_reference or recipe.reference.name_or_path:
        return ()
    return recipe.fold_names or (None,)


def settings(step: Step) -> Mapping[str, Any]:
    """How the reference model is trained, and on which fold."""
    folds = {}
    if step.part is not None:
        folds = {"fold": step.part, "folds": step.recipe.reference.folds}
    return {**training_settings(step, step.recipe.reference), **folds}


def check(recipe: Recipe) -> None:
    """Refuses trackers that are not installed, and adapters on modules that are not there."""
    check_training(recipe, "reference")


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """Samples, optimizer steps and trainable parameters."""
    settings = step.recipe.reference
    sizes = split_sizes(step, done)
    if settings.folds is None:
        return training_facts(step, settings, sizes["reference"])
    num_train = sizes["train"].samples
    # How many tokens are outside a fold is known once it is trained.
    outside = SplitSize(num_train - math.ceil(num_train / settings.folds))
    return training_facts(step, settings, outside)


REFERENCE = Stage(
    name="reference",
    summary="Fine-tune the reference model on D_ref.",
    folder="reference",
    reads=("prepare",),
    parts=parts,
    settings=settings,
    run=run,
    check=check,
    facts=facts,
    is_shared=True,
)
