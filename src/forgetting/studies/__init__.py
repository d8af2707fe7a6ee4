"""Studies: recipes in bulk, side by side; and the program that made the demo's base model."""

from forgetting.studies.results import list_commands, run_study
from forgetting.studies.study import (
    Study,
    load_definition,
    paper_study,
    shipped_studies,
    sweep_study,
)

__all__ = [
    "Study",
    "list_commands",
    "load_definition",
    "paper_study",
    "run_study",
    "shipped_studies",
    "sweep_study",
]
