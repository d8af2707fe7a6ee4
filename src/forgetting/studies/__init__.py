"""Studies: many recipes side by side, and how well measures find noise that people marked.

What this module exports is public: `experiments/` builds on it.
"""

from forgetting.studies.conduct import list_commands, run_study
from forgetting.studies.detection import (
    ALL_KINDS,
    DetectionScore,
    detect_noise,
    measures,
    read_qualities,
    read_scores,
)
from forgetting.studies.execute import open_study
from forgetting.studies.markup import DIVERGED, NO_VALUE, as_latex, as_markdown
from forgetting.studies.study import (
    Study,
    load_definition,
    paper_study,
    shipped_studies,
    sweep_study,
)

__all__ = [
    "ALL_KINDS",
    "DIVERGED",
    "NO_VALUE",
    "DetectionScore",
    "Study",
    "as_latex",
    "as_markdown",
    "detect_noise",
    "list_commands",
    "load_definition",
    "measures",
    "open_study",
    "paper_study",
    "read_qualities",
    "read_scores",
    "run_study",
    "shipped_studies",
    "sweep_study",
]
