"""`train`: fine-tunes one model for each variant on D_train.

If the detector found nothing, a variant that weighs tokens by its posterior would become the model
of the variant that learns all tokens, bit for bit. Then that model is copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import (
    check_training,
    last_part,
    parts_of_train,
    split_sizes,
    steps_before_last,
    training_facts,
    training_settings,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from forgetting.config import Recipe, VariantSettings
    from forgetting.rundir.directory import Work
    from forgetting.rundir.selections import SelectedPart


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Trains one variant, and writes its model card."""
    from forgetting.rundir import layout
    from forgetting.rundir.stats import DataSummary
    from forgetting.training.fit import Start, fine_tune

    recipe, variant = step.recipe, str(step.part)
    settings = recipe.variants[variant]
    if (plain := _finished_plain(recipe, variant, run_dir)) is not None:
        if work.processes.is_main:
            _copy_model(plain, variant, run_dir, work)
            _write_card(recipe, variant, run_dir, work)
        return
    data = DataSummary.load(layout.data_dir(run_dir))
    has_weights = data.splits["train"].weighted_tokens > 0
    tables = training_tables(run_dir, variant, settings, has_weights=has_weights)
    label, ends, start = f"Training {variant}", data.end_token_ids, None
    if settings.rounds:
        label = f"{label}, part {settings.rounds} of {settings.rounds}"
        steps = steps_before_last(recipe, data.splits["train"].samples, settings.rounds)
        start = Start(layout.evolved_model_dir(layout.evolution_dir(run_dir, variant)), steps)
    fine_tune(recipe, recipe.training, settings, tables, label, work, ends, start)
    if work.processes.is_main:
        _write_card(recipe, variant, run_dir, work)


def _finished_plain(recipe: Recipe, variant: str, run_dir: Path) -> str | None:
    """The variant whose finished model is what this one's would be; None if it must be trained."""
    from forgetting.rundir import layout
    from forgetting.rundir.findings import read_findings
    from forgetting.rundir.manifest import read_manifest
    from forgetting.rundir.samples import SampleFile

    plain, manifest = recipe.plain_variant(variant), read_manifest(run_dir)
    if plain is None or manifest is None or f"train:{plain}" not in manifest.stages:
        return None
    found = read_findings(run_dir, SampleFile(layout.train_file(run_dir)).fingerprint).found
    return None if found else plain


def _copy_model(plain: str, variant: str, run_dir: Path, work: Work) -> None:
    import shutil

    from forgetting.console import logger
    from forgetting.rundir import layout
    from forgetting.rundir.manifest import read_manifest

    manifest = read_manifest(run_dir)
    assert manifest is not None
    # What an interrupted training left here is not part of the copy.
    shutil.rmtree(work.output)
    shutil.copytree(layout.model_dir(run_dir, plain), work.output)
    details = dict(manifest.stages[f"train:{plain}"].details)
    # No tokens were read for it.
    details.pop("tokens", None)
    work.details.update(details)
    logger.info(
        "The detector found nothing, so %s is the model of %s. Nothing is trained", variant, plain
    )


def training_tables(
    run_dir: Path, variant: str, settings: VariantSettings, *, has_weights: bool
) -> Iterator[pa.Table]:
    """What a variant learns: D_train in parts, with the columns of the trainer. If it learns in
    rounds, the last of their parts.

    Args:
        settings: of the variant; what it reads must be done.
        has_weights: whether turns have weights, by which those of the variant are multiplied.

    Raises:
        InputError: an artifact is missing, or belongs to other tokens.
    """
    import pyarrow as pa

    from forgetting.training.dataset import trainer_columns

    for part, values in _parts(run_dir, variant, settings, has_weights):
        yield pa.table(trainer_columns(part.samples, part.polarity, **values))


def _parts(
    run_dir: Path, variant: str, settings: VariantSettings, has_weights: bool
) -> Iterator[tuple[SelectedPart, dict[str, Any]]]:
    """The samples of a variant in parts, and further columns of the trainer."""
    from forgetting.method.columns import POSTERIOR
    from forgetting.method.measures import cautious_weights
    from forgetting.rundir import layout
    from forgetting.rundir.findings import read_findings
    from forgetting.rundir.samples import SampleFile
    from forgetting.rundir.selections import WEIGHED, rows_of_parts, selected_parts
    from forgetting.training.dataset import correct_shard

    scores = ["base_log_probs"] * settings.needs_base
    scores += ["reference_log_probs"] * settings.needs_reference
    uses = settings.objective in ("weighted", "corrected")
    fingerprint = SampleFile(layout.train_file(run_dir)).fingerprint if uses else None
    # If nothing was found, no token is bad, and training is that on all tokens, bit for bit.
    if fingerprint is not None and read_findings(run_dir, fingerprint).found:
        scores.append(POSTERIOR)
    selected = selected_parts(
        run_dir, variant if settings.selects else None, scores, ("sample_id", *WEIGHED), fingerprint
    )
    if settings.rounds:
        num_samples = len(SampleFile(layout.train_file(run_dir)))
        selected = rows_of_parts(selected, parts_of_train(num_samples, settings.rounds)[-1])
    for index, part in enumerate(selected):
        values: dict[str, Any] = dict(part.scores)
        posterior = values.pop(POSTERIOR, None)
        if posterior is not None and settings.objective == "corrected":
            assert fingerprint is not None
            weights, corrections = correct_shard(run_dir, fingerprint, index, part, posterior)
            values |= {"token_weights": weights, "corrections": corrections}
        elif posterior is not None:
            values["token_weights"] = cautious_weights(posterior, settings.caution)
        if has_weights:
            values["token_weights"] = part.samples.weights * values.get("token_weights", 1)
        yield part, values


def _write_card(recipe: Recipe, variant: str, run_dir: Path, work: Work) -> None:
    from forgetting.models.adapter_files import is_adapter
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
    return recipe.variants_in_order


def reads(recipe: Recipe, part: str | None) -> Collection[str]:
    """The scores too, if the variant's term or loss compares with another model or if it weighs
    tokens, and then what the detector found and what is expected in the place of bad tokens. The
    model to go on from, if it learns in rounds."""
    variant = recipe.variants[str(part)]
    if variant.objective == "weighted":
        return ("prepare", "score", "detect")
    if variant.objective == "corrected":
        return ("prepare", "score", "detect", "alternatives")
    compares = variant.needs_base or variant.needs_reference
    more = {"score": compares, "evolve": variant.rounds is not None}
    return ("prepare", "select", *(stage for stage, is_read in more.items() if is_read))


def settings(step: Step) -> Mapping[str, Any]:
    """How the variant is trained."""
    from forgetting.method.losses import DEFAULT_LOSS

    variant = step.recipe.variants[str(step.part)]
    forgets = variant.objective == "forgetting"
    # Plain cross-entropy and a caution of 1 are left out, so that models stay that were trained
    # before these could be chosen.
    chooses = variant.loss.name != DEFAULT_LOSS
    weighs = variant.objective == "weighted"
    return {
        **training_settings(step, step.recipe.training),
        "objective": variant.objective,
        "forgetting": variant.forgetting.model_dump(mode="json") if forgets else None,
        **({"loss": variant.loss.model_dump(mode="json")} if chooses else {}),
        **({"rounds": variant.rounds} if variant.rounds else {}),
        **({"caution": variant.caution} if weighs and variant.caution != 1 else {}),
    }


def check(recipe: Recipe) -> None:
    """Refuses trackers that are not installed, and adapters on modules that are not there."""
    check_training(recipe, "training")


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """Samples, optimizer steps and trainable parameters."""
    size = last_part(step.recipe, str(step.part), split_sizes(step, done)["train"])
    return training_facts(step, step.recipe.training, size)


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
