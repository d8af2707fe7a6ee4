"""Audits a data set: which records are probably wrong, without training and without a recipe.

`audit` runs the pipeline, and `partial` judges what an interrupted one has scored. `judged` reads
what was found record by record, `flagged` writes it to files, and `announcement` prints it.
`cleaning` makes a clean copy of the data from it, with what `decisions` says of a person's marks.
"""

from forgetting.auditing.announcement import as_json, print_verdict
from forgetting.auditing.audit import Audit, audit_data, default_folder, open_audit, ranking_measure
from forgetting.auditing.flagged import write_files
from forgetting.auditing.partial import judge_part, progress_of

__all__ = [
    "Audit",
    "as_json",
    "audit_data",
    "default_folder",
    "judge_part",
    "open_audit",
    "print_verdict",
    "progress_of",
    "ranking_measure",
    "write_files",
]
