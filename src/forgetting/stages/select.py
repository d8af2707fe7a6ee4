"""`select`: turns the scores into a polarity for every response token: learn, ignore or forget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.console import logger, progress
from forgetting.stages.base import Stage, Step
from forgetting.stages.prepare import read_summary
from forgetting.stages.score import facts

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Selects for one variant; writes the polarity and a summary."""
    from forgetting.rundir.directory import write_atomically
    from forgetting.rundir.scores import ScoredCorpus
    from forgetting.stages.corpus_selection import select_corpus

    variant = str(step.part)
    settings = step.recipe.variants[variant].selection
    end_token_ids = read_summary(run_dir / "data")["end_token_ids"] if settings.keep_eos else []
    corpus = ScoredCorpus(run_dir)
    with progress(f"Selecting for {variant}", corpus.num_samples) as advance:
        summary = select_corpus(
            corpus,
            settings,
            work.output / "polarity.parquet",
            scratch=work.path / "quality.bin",
            seed=step.recipe.seed,
            end_token_ids=end_token_ids,
            advance=advance,
        )
    if summary["mixture"] is not None and summary["mixture"]["fit"] is None:
        logger.warning(
            "%s: the mixture marks no token as negative: %s", variant, summary["mixture"]["reason"]
        )
    text = json.dumps({"variant": variant, **summary}, indent=1, allow_nan=False)
    write_atomically(work.output / "summary.json", text)
    work.details["tokens"] = summary["num_tokens"]
    work.details["num_positive"] = summary["num_positive"]
    work.details["num_negative"] = summary["num_negative"]


def parts(recipe: Recipe) -> Sequence[str | None]:
    """The variants that do not learn all tokens."""
    return recipe.selecting_variants


def settings(step: Step) -> Mapping[str, Any]:
    """The variant's selection."""
    variant = step.recipe.variants[str(step.part)]
    return {"selection": variant.selection.model_dump(mode="json"), "seed": step.recipe.seed}


SELECT = Stage(
    name="select",
    summary="Select the tokens to learn, to ignore and to forget.",
    folder="selection",
    reads=("prepare", "score"),
    parts=parts,
    settings=settings,
    run=run,
    facts=facts,
)
