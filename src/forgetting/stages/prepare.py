"""`prepare`: records to tokens. Writes D_ref, D_train and the held-out samples, disjoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.console import logger, progress
from forgetting.errors import InputError
from forgetting.stages.base import Facts, Stage, Step
from forgetting.stages.recipe_parts import check_base_model, model_files, split_sizes

if TYPE_CHECKING:
    from forgetting.config import Recipe, SourceSettings
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Builds the corpus."""
    from forgetting.data.encoding import tokenizer_fingerprint
    from forgetting.data.splits import build_corpus
    from forgetting.models.tokenization import load_tokenization, tokenizer_threads

    recipe = step.recipe
    check_length(recipe)
    settings = recipe.data.model_copy(update={"num_reference": recipe.num_reference})
    tokenization = load_tokenization(recipe, _earlier_date(run_dir))
    with progress("Preparing samples", settings.num_samples) as advance, tokenizer_threads():
        account = build_corpus(
            settings,
            tokenization,
            recipe.seed,
            work.output,
            work.path,
            advance,
            recipe.reference.sources or (),
            forgets=recipe.forgets,
        )
    day = tokenization.now.isoformat() if tokenization.reads_clock else None
    _check_unchanged(step)
    tokenizer = tokenizer_fingerprint(tokenization.tokenizer)
    account.summary(tokenization.end_token_ids, day, tokenizer).save(work.output)
    work.details["tokens"] = sum(counts.tokens for counts in account.splits.values())
    for name, counts in account.splits.items():
        work.details[f"{name}_samples"] = counts.samples
        work.details[f"{name}_response_tokens"] = counts.response_tokens
    if dropped := account.num_dropped():
        logger.info(
            "%d %s dropped; data/summary.json and data/rejected.parquet say why",
            dropped,
            "record was" if dropped == 1 else "records were",
        )


def _check_unchanged(step: Step) -> None:
    """Refuse data that changed after the plan was made: nobody knows which of it was read.

    Raises:
        InputError: a source has another content now.
    """
    recipe, before = step.recipe, step.settings()
    for name, given in (("sources", recipe.data.sources), ("trusted", recipe.reference.sources)):
        for source, known in zip(given or (), before[name], strict=True):
            if _source(source) != known:
                raise InputError(
                    f"{source.path} changed while it was read. Run the same command again when "
                    "it no longer changes"
                )


def _earlier_date(run_dir: Path) -> str | None:
    """The date that this run's data has, so that another preparation has the same."""
    from forgetting.rundir import layout
    from forgetting.rundir.stats import DataSummary

    folder = layout.data_dir(run_dir)
    try:
        return DataSummary.load(folder).date
    except InputError:
        return None


def check_length(recipe: Recipe) -> None:
    """Refuse samples that are longer than the model has positions for.

    Raises:
        InputError: `data.max_length` is too large.
    """
    from forgetting.models.loading import load_config, max_positions

    limit = max_positions(load_config(recipe.model))
    if limit is not None and recipe.data.max_length > limit:
        raise InputError(
            f"data.max_length {recipe.data.max_length} is more than the {limit} positions of "
            f"{recipe.model.name_or_path}. Set data.max_length to {limit} or less"
        )


def settings(step: Step) -> Mapping[str, Any]:
    """Sources, tokenizer and template, by their content."""
    from forgetting.rundir.storage import file_sha256

    recipe = step.recipe
    template = _template_file(recipe)
    own = recipe.model.model_dump(
        mode="json", include={"template_name", "template_date", "system_role"}
    )
    return {
        **own,
        "data": recipe.data.model_dump(mode="json", exclude={"sources", "num_reference"}),
        "num_reference": recipe.num_reference,
        "sources": [_source(source) for source in recipe.data.sources],
        "trusted": [_source(source) for source in recipe.reference.sources or ()],
        "tokenizer": {
            name: value
            for name, value in model_files(step).items()
            if not name.endswith(".safetensors")
        },
        "chat_template": file_sha256(template) if template else recipe.model.chat_template,
        "seed": recipe.seed,
    }


def _source(source: SourceSettings) -> dict[str, Any]:
    from forgetting.data.sources import source_fingerprint

    return {**source_fingerprint(source), "label": source.label}


def _template_file(recipe: Recipe) -> Path | None:
    from forgetting.config import PLAIN_TEMPLATE

    template = recipe.model.chat_template
    return None if template in (None, PLAIN_TEMPLATE) else Path(str(template))


def check(recipe: Recipe) -> None:
    """Refuses data, a model or a template that is not there."""
    from forgetting.data.sources import is_local

    for source in (*recipe.data.sources, *(recipe.reference.sources or ())):
        if source.world is None:
            is_local(source)
    check_base_model(recipe)
    if Path(recipe.model.name_or_path).is_dir():
        # A model on the Hub is asked when the stage begins.
        check_length(recipe)
    template = _template_file(recipe)
    if template is not None and not template.is_file():
        raise InputError(f"model.chat_template: there is no file {template}")


def facts(step: Step, done: Mapping[str, Path]) -> Facts:
    """Samples of each split."""
    sizes = split_sizes(step, done)
    words = {"heldout": "held-out"}
    return {f"{words.get(name, name)} samples": split.samples for name, split in sizes.items()}


PREPARE = Stage(
    name="prepare",
    summary="Build the corpus: tokens, labels, disjoint splits.",
    folder="data",
    reads=(),
    settings=settings,
    run=run,
    check=check,
    facts=facts,
)
