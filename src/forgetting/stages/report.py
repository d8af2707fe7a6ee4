"""`report`: writes the report page, its figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.stages.base import ALL_EARLIER, Stage, Step

if TYPE_CHECKING:
    from forgetting.rundir.directory import Work


def run(step: Step, run_dir: Path, work: Work) -> None:
    """Writes the report of what is done in the run."""
    from forgetting.models.loading import decoder, special_token_ids
    from forgetting.report import build_report
    from forgetting.rundir.findings import has_findings
    from forgetting.stages.telling import TellingFeatures

    build_report(
        run_dir,
        work.output,
        explain=TellingFeatures(step.recipe, run_dir) if has_findings(run_dir) else None,
        decode=decoder(step.recipe.model),
        special_ids=special_token_ids(step.recipe.model),
        seed=step.recipe.report.seed,
    )


def settings(step: Step) -> Mapping[str, Any]:
    """The report's own settings."""
    return {"report": step.recipe.report.model_dump(mode="json"), "name": step.recipe.name}


REPORT = Stage(
    name="report",
    summary="Write the report page, its figures and tables.",
    folder="report",
    reads=ALL_EARLIER,
    settings=settings,
    run=run,
)
