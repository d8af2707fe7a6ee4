"""What the detector found, as a section of the report: sentences, tables and a figure.

Input: a run with the stage `detect`. Output: what the page shows, and the same for the results as
JSON and Markdown. Everything that the report says about the detector is read from its findings
here. Knows no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forgetting.report import figures
from forgetting.report.result_table import plain
from forgetting.report.sentences import reference_sentence, share_sentence
from forgetting.report.tables import (
    Table,
    TableCell,
    TableColumn,
    column,
    count,
    decimals,
    percent,
    text,
    text_column,
)
from forgetting.rundir import layout
from forgetting.rundir.findings import DetectorSummary, ProbeReport, posterior_parts
from forgetting.rundir.samples import ROWS_PER_GROUP, SampleFile, rows_in_parts

LikelyKinds = dict[str, npt.NDArray[np.float64]]
"""Expected bad tokens of each source by likely kind, shape (kinds,)."""


@dataclass(frozen=True)
class DetectorSection:
    """What the report says about the detector."""

    verdict: str
    sentences: Sequence[str]
    """Estimated shares, and whether the reference model's passes helped."""
    figure: str | None
    """Reliability diagram as SVG; None if nothing could be learned."""
    tables: Sequence[Table]
    values: dict[str, Any]
    """The summary and the likely kinds, for `results.json`."""

    def to_markdown(self) -> str:
        """The verdict, the sentences and the tables."""
        lines = ["## What the detector found", "", plain(self.verdict)]
        for sentence in self.sentences:
            lines += ["", plain(sentence)]
        for table in self.tables:
            lines += ["", f"### {plain(table.caption)}", "", *_markdown(table)]
        return "\n".join(lines) + "\n"


def detector_section(run_dir: Path, summary: DetectorSummary) -> DetectorSection:
    """Describe what the detector found.

    Args:
        run_dir: the run directory.
        summary: of its findings.

    Raises:
        InputError: the posterior is missing or damaged, or belongs to other tokens.
    """
    if not summary.is_measured:
        kinds_without = [replace(kind, share=None) for kind in summary.kinds]
        unknown = {"tokens": None, "samples": None, "kinds": kinds_without}
        summary = summary.model_copy(update=unknown)
    report = summary.report
    kinds = count_likely_kinds(run_dir, summary) if summary.found else {}
    tables = [] if report is None else [detection_rows(report)]
    if summary.kinds:
        tables.append(kind_rows(summary))
    if summary.found:
        tables += [bad_token_rows(summary), likely_kind_rows(summary, kinds)]
    sentences = [share_sentence(summary), None if report is None else reference_sentence(report)]
    names = [kind.kind for kind in summary.kinds]
    likely = {
        source: dict(zip(names, sums.tolist(), strict=True)) for source, sums in kinds.items()
    }
    return DetectorSection(
        summary.verdict,
        [sentence for sentence in sentences if sentence is not None],
        None if report is None else figures.reliability_diagram("calibration", report.calibration),
        tables,
        {
            **summary.model_dump(mode="json", exclude={"fingerprint"}),
            "bad_tokens_by_source_and_likely_kind": likely,
        },
    )


def count_likely_kinds(run_dir: Path, summary: DetectorSummary) -> LikelyKinds:
    """Sum of the posteriors of each source's response tokens by likely kind, in bounded memory.

    Raises:
        InputError: the posterior is missing or damaged, or belongs to other tokens.
    """
    train = layout.train_file(run_dir)
    num_samples, num_kinds = len(SampleFile(train)), len(summary.kinds)
    starts = range(0, num_samples, ROWS_PER_GROUP)
    sizes = [min(ROWS_PER_GROUP, num_samples - start) for start in starts]
    found: LikelyKinds = {}
    for part, rows in zip(
        posterior_parts(run_dir, summary.fingerprint, sizes),
        rows_in_parts(train, ["source"], sizes),
        strict=True,
    ):
        names, source_of = np.unique(rows["source"].to_pylist(), return_inverse=True)
        cells = np.repeat(source_of, part.lengths) * num_kinds + part.kind
        has_kind = part.kind >= 0
        sums = np.bincount(
            cells[has_kind], part.posterior[has_kind], minlength=len(names) * num_kinds
        ).reshape(len(names), num_kinds)
        for name, row in zip(names.tolist(), sums, strict=True):
            found[name] = found.get(name, np.zeros(num_kinds)) + row
    return dict(sorted(found.items()))


def detection_rows(report: ProbeReport) -> Table:
    """How well planted noise is found: with all passes, by the base model alone, and by chance."""
    share = report.share_planted
    has_reference = report.auroc_without_reference is not None
    rows = [
        [
            text("all passes" if has_reference else "detector"),
            decimals(report.auroc),
            decimals(report.average_precision),
            percent(report.precision),
            percent(report.recall),
            decimals(report.calibration_error),
        ]
    ]
    unknown = [percent(None), percent(None), decimals(None)]
    if has_reference:
        alone = (report.auroc_without_reference, report.average_precision_without_reference)
        rows.append([text("base model’s passes alone"), *map(decimals, alone), *unknown])
    chance = [decimals(0.5), decimals(share), percent(share), percent(None), decimals(None)]
    rows.append([text("chance"), *chance])
    titles = ("AUROC", "average precision", "precision", "recall", "calibration error")
    return Table(
        "detection",
        "How well planted noise is found",
        [text_column("detector"), *map(column, titles)],
        rows,
        f"Measured on {report.num_tokens:,} response tokens of copies with planted noise, by "
        "detectors that did not see the record. Precision and recall are those of the tokens with "
        "a posterior of at least 0.5.",
    )


def kind_rows(summary: DetectorSummary) -> Table:
    """How well each kind of planted noise is found."""
    total = None if summary.report is None else summary.report.num_tokens
    rows = [
        [
            text(kind.words),
            text(kind.kind),
            count(kind.num_copies),
            count(kind.num_tokens),
            percent(kind.num_tokens / total if total else None),
            decimals(kind.auroc),
            percent(kind.precision),
            percent(kind.recall),
            decimals(kind.auroc_left_out),
            percent(kind.share),
        ]
        for kind in summary.kinds
    ]
    titles = ("copies", "planted tokens", "share planted", "AUROC", "precision", "recall")
    return Table(
        "planted-kinds",
        "Planted noise by kind",
        [
            text_column("kind"),
            text_column("name"),
            *map(column, titles),
            column("AUROC, never seen"),
            column("share of D_train"),
        ],
        rows,
        "AUROC compares the tokens of a kind with clean ones. “Never seen” is a detector that was "
        "fitted without this kind. Recall is the share of a kind's tokens with a posterior of at "
        "least 0.5. Precision is the share of planted noise among the tokens with such a posterior "
        "that look most like this kind. “Share of D_train” is the estimated share of response "
        "tokens that look like this kind.",
    )


def bad_token_rows(summary: DetectorSummary) -> Table:
    """Bad tokens and samples of each source."""
    rows = [
        [
            text(source.source),
            count(source.num_samples),
            count(source.num_bad_samples),
            count(source.num_tokens),
            TableCell(f"{source.num_bad_tokens:,.0f}", (source.num_bad_tokens,)),
            percent(source.num_bad_tokens / source.num_tokens if source.num_tokens else None),
        ]
        for source in summary.by_source
    ]
    titles = ("samples", "with a bad token", "response tokens", "bad tokens", "share bad")
    return Table(
        "bad-by-source",
        "Bad tokens by source",
        [text_column("source"), *map(column, titles)],
        rows,
        "“Bad tokens” is their expected number, the sum of the posteriors. A sample has a bad "
        "token if a posterior is at least 0.5.",
    )


def likely_kind_rows(summary: DetectorSummary, kinds: LikelyKinds) -> Table:
    """What the bad tokens of each source look like."""
    num_tokens = {source.source: source.num_tokens for source in summary.by_source}
    rows = []
    for source, sums in kinds.items():
        total = num_tokens.get(source, 0)
        cells = [(number, number / total if total else None) for number in sums.tolist()]
        rows.append([text(source), *(TableCell(percent(c[1]).text, c) for c in cells)])
    columns = [
        TableColumn(kind.kind, (f"{kind.kind}: bad tokens", f"{kind.kind}: share"))
        for kind in summary.kinds
    ]
    return Table(
        "likely-kinds",
        "Likely kinds of bad tokens by source",
        [text_column("source"), *columns],
        rows,
        "Expected share of the source’s response tokens that are bad and look most like this kind.",
    )


def _markdown(table: Table) -> list[str]:
    """A table as lines of Markdown."""
    titles = " | ".join(plain(column.title) for column in table.columns)
    marks = "|".join("---" if column.is_text else "---:" for column in table.columns)
    rows = [" | ".join(plain(cell.text) for cell in row) for row in table.rows]
    return [f"| {titles} |", f"|{marks}|", *(f"| {row} |" for row in rows)]
