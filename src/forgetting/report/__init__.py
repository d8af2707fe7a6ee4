"""The report of a run: one page with results and diagnostics, the token inspector, and tables.

Input: a run directory, complete or not, and the tokenizer's `decode`. Output: HTML pages that
need no network, and the results as JSON, CSV and Markdown. Reads runs through `rundir` only.
"""

from forgetting.report.page import ReportSummary, build_report
from forgetting.report.result_table import Cell, Column, ResultsTable, results_table

__all__ = ["Cell", "Column", "ReportSummary", "ResultsTable", "build_report", "results_table"]
