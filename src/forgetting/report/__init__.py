"""The report of a run: one page that tells what happened, the inspector of tokens, and the tables.

Goes in: a run directory, finished or partly so, and the tokenizer's `decode`. Comes out: HTML
pages that need no network, results as JSON, CSV and Markdown. Knows the files of
a run directory, not the code that wrote them.
"""

from forgetting.report.page import ReportSummary, build_report
from forgetting.report.results import Cell, Column, ResultsTable, results_table

__all__ = ["Cell", "Column", "ReportSummary", "ResultsTable", "build_report", "results_table"]
