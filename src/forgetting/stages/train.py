"""`train`: fine-tunes one model for each variant on D_train."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import (
    check_trackers,
    split_sizes,
    training_facts,
    training_settings,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work
    from forgetting.rundir.selections import SelectedPart


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Trains one variant, and writes its model card."""
    import pyarrow as pa

    from forgetting.method.columns import POSTERIOR
    from forgetting.rundir import layout
    from forgetting.rundir.selections import WEIGHED, selected_parts
    from forgetting.rundir.stats import DataSummary
    from forgetting.training.dataset import trainer_columns
    from forgetting.training.fit import fine_tune

    recipe, variant = step.recipe, str(step.part)
    settings = recipe.variants[variant]
    scores = ["base_log_probs"] * settings.needs_base
    scores += [POSTERIOR] * (settings.objective == "weighted")
    data = DataSummary.load(layout.data_dir(run_dir))
    selected = selected_parts(run_dir, variant if settings.selects else None, scores, WEIGHED)
    has_weights = data.splits["train"].weighted_tokens > 0
    tables = (
        pa.table(trainer_columns(p.samples, p.polarity, **_values(p, has_weights)))
        for p in selected
    )
    label, ends = f"Training {variant}", data.end_token_ids
    fine_tune(recipe, recipe.training, settings, tables, label, work, ends)
    if work.processes.is_main:
        _write_card(recipe, variant, run_dir, work)


def _values(part: SelectedPart, has_weights: bool) -> dict[str, NDArray]:
    """The scores of some samples as columns of the trainer.

    Args:
        has_weights: whether turns have weights, by which those of the variant are multiplied.
    """
    from forgetting.method.columns import POSTERIOR
    from forgetting.method.measures import not_bad

    values = dict(part.scores)
    if POSTERIOR in values:
        values["token_weights"] = not_bad(values.pop(POSTERIOR))
    if has_weights:
        values["token_weights"] = part.samples.weights * values.get("token_weights", 1)
    return values


def _write_card(recipe: Recipe, variant: str, run_dir: Path, work: Work) -> None:
    from forgetting.models.adapters import is_adapter
    from forgetting.models.loading import model_facts
    from forgetting.report.card import RunFacts, model_card
    from forgetting.rundir import layout
    from forgetting.rundir.samples import SampleFile
    from forgetting.rundir.selections import read_selection
    from forgetting.rundir.stats import DataSummary

    selection = None
    if recipe.variants[variant].selects:
        fingerprint = SampleFile(layout.train_file(run_dir)).fingerprint
        selection = read_selection(run_dir, variant, fingerprint)
    data = DataSummary.load(layout.data_dir(run_dir))
    facts = RunFacts(recipe, model_facts(recipe.model), data)
    card = model_card(facts, variant, selection, work.details, is_adapter=is_adapter(work.output))
    (work.output / "README.md").write_text(card, encoding="utf-8")


def parts(recipe: Recipe) -> Sequence[str | None]:
    """All variants."""
    return list(recipe.variants)


def reads(recipe: Recipe, part: str | None) -> Collection[str]:
    """The scores too, if the variant's term compares with the base model or if it weighs tokens,
    and then what the detector found."""
    variant = recipe.variants[str(part)]
    if variant.objective == "weighted":
        return ("prepare", "score", "detect")
    return ("prepare", "select", *(["score"] if variant.needs_base else []))


def settings(step: Step) -> Mapping[str, Any]:
    """How the variant is trained."""
    variant = step.recipe.variants[str(step.part)]
    forgets = variant.objective == "forgetting"
    return {
        **training_settings(step, step.recipe.training),
        "objective": variant.objective,
        "forgetting": variant.forgetting.model_dump(mode="json") if forgets else None,
    }


def check(recipe: Recipe) -> None:
    """Refuses trackers that are not installed."""
    check_trackers("training", recipe.training)


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """Samples, optimizer steps and trainable parameters."""
    return training_facts(step, step.recipe.training, split_sizes(step, done)["train"])


TRAIN = Stage(
    name="train",
    summary="Fine-tune every variant on D_train.",
    folder="models",
    reads=reads,
    parts=parts,
    settings=settings,
    run=run,
    check=check,
    facts=facts,
    is_shared=True,
)
