"""Audits a data set: which records are probably wrong, without training and without a recipe.

`audit` runs the pipeline, `judged` reads what it found record by record, `flagged` writes it to
files, `announcement` prints it, and `cleaning` makes a clean copy of the data from it.
"""

from forgetting.auditing.announcement import as_json, print_verdict
from forgetting.auditing.audit import Audit, audit_data, open_audit
from forgetting.auditing.flagged import write_files

__all__ = ["Audit", "as_json", "audit_data", "open_audit", "print_verdict", "write_files"]
