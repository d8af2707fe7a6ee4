"""`select`: turns the scores into a polarity for every response token: learn, ignore or forget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.console import logger, progress
from forgetting.stages.base import Stage, Step
from forgetting.stages.score import facts

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Selects for one variant; writes the polarity and a summary."""
    import shutil

    from forgetting.method.columns import POSTERIOR
    from forgetting.method.measures import MEASURES
    from forgetting.rundir import layout
    from forgetting.rundir.findings import read_findings
    from forgetting.rundir.scores import ScoredCorpus
    from forgetting.rundir.selections import own_polarity
    from forgetting.rundir.stats import DataSummary
    from forgetting.stages.corpus_selection import select_corpus

    variant = str(step.part)
    settings = step.recipe.variants[variant].selection_in_effect
    end_token_ids: list[int] = []
    if settings.keep_eos:
        end_token_ids = DataSummary.load(layout.data_dir(run_dir)).end_token_ids
    own = None
    if step.recipe.variants[variant].rounds:
        own = layout.own_scores_file(work.output)
        # All that read the selection read them with it.
        shutil.copyfile(layout.own_scores_file(layout.evolution_dir(run_dir, variant)), own)
    corpus = ScoredCorpus(run_dir, own=own)
    finds_nothing = False
    if POSTERIOR in MEASURES[settings.quality].columns:
        finds_nothing = not read_findings(run_dir, corpus.fingerprint).found
    with progress(f"Selecting for {variant}", corpus.num_samples) as advance:
        summary = select_corpus(
            corpus,
            settings,
            layout.polarity_file(work.output),
            variant=variant,
            scratch=work.path / "quality.bin",
            seed=step.recipe.seed,
            end_token_ids=end_token_ids,
            marks_nothing=finds_nothing,
            given=None if own is None else own_polarity(own, corpus.shard_sizes),
            advance=advance,
        )
    if summary.mixture is not None and summary.mixture.fit is None:
        logger.warning(
            "%s: the mixture marks no token as negative: %s", variant, summary.mixture.reason
        )
    if finds_nothing:
        logger.warning("%s learns every token: the detector found nothing", variant)
    summary.save(work.output)
    work.details["tokens"] = summary.num_tokens
    work.details["num_positive"] = summary.num_positive
    work.details["num_negative"] = summary.num_negative


def parts(recipe: Recipe) -> Sequence[str | None]:
    """The variants that divide tokens into positive and negative ones."""
    return recipe.selecting_variants


def settings(step: Step) -> Mapping[str, Any]:
    """The variant's selection."""
    selection = step.recipe.variants[str(step.part)].selection_in_effect
    return {"selection": selection.model_dump(mode="json"), "seed": step.recipe.seed}


def reads(recipe: Recipe, part: str | None) -> Collection[str]:
    """The detector's posterior too, if the variant selects by it, or what its rounds selected."""
    variant = recipe.variants[str(part)]
    more = {"detect": variant.needs_posterior, "evolve": variant.rounds is not None}
    return ("prepare", "score", *(stage for stage, is_read in more.items() if is_read))


SELECT = Stage(
    name="select",
    summary="Select the tokens to learn, to ignore and to forget.",
    folder="selection",
    reads=reads,
    parts=parts,
    settings=settings,
    run=run,
    facts=facts,
)
