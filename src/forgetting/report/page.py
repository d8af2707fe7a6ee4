"""Builds the report page from what was read, counted and drawn.

Input: a run directory and the tokenizer's `decode`. Output: index.html, inspector.html if
tokens were scored and selected, and the results as JSON, CSV and Markdown. What the detector found
is a section of the page, of the JSON and of the Markdown. The page is one file: it holds the
results as files, too, and links to nothing beside it. The template engine
escapes all text, and `visible` replaces invisible characters; only our own SVG passes unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from forgetting.escaping import visible
from forgetting.inspector.corpus import Inspection
from forgetting.inspector.opening import open_inspection
from forgetting.inspector.pieces import Decode
from forgetting.inspector.rendering import content_policy, static_page
from forgetting.inspector.shown import Explain
from forgetting.report import bars, figures, result_rows, tables
from forgetting.report.answers_section import answer_entries
from forgetting.report.counts import Negatives, SplitLengths, count_lengths, count_negatives
from forgetting.report.detector_section import DetectorSection, detector_section
from forgetting.report.drawing import SeriesStyle, series_styles
from forgetting.report.result_files import to_csv, to_json, to_markdown
from forgetting.report.result_table import ResultsTable, table_of_run
from forgetting.report.sentences import base_name, noise_sentence, recipe_paragraph
from forgetting.report.worst_samples import worst_samples
from forgetting.rundir import layout
from forgetting.rundir.reader import RunReader, in_order
from forgetting.rundir.selections import ExtremeSample, SelectionSummary

MIME_TYPES = {".json": "application/json", ".csv": "text/csv", ".md": "text/markdown"}

PANELS = (
    ("positive_loss", "Loss of positive tokens"),
    ("negative_loss", "Loss of negative tokens"),
    ("negative_prob", "Mean probability of negative tokens"),
    ("lam", "lambda"),
    ("grad_norm", "Gradient norm"),
)


@dataclass(frozen=True)
class ReportSummary:
    """The main finding and the files of a report."""

    sentence: str
    paths: Sequence[Path]


def build_report(
    run_dir: Path,
    output_dir: Path,
    *,
    decode: Decode,
    special_ids: Collection[int] = (),
    seed: int = 0,
    explain: Explain | None = None,
) -> ReportSummary:
    """Write the report of a run.

    Args:
        run_dir: a run, complete or not. A section is omitted if its stage has not run.
        output_dir: created if it does not exist. Receives index.html, inspector.html,
            results.json, results.csv and results.md.
        decode: text of token ids, special tokens and spaces included.
        special_ids: ids of special tokens, which have no text.
        seed: for the choice of random samples. The same run and seed give the same bytes.
        explain: names the features that speak for a token being bad, for the inspector.

    Raises:
        InputError: there is no run, or an artifact is damaged or belongs to other tokens.
    """
    run = RunReader(run_dir)
    table = table_of_run(run)
    splits = count_lengths(run_dir)
    negatives = {
        name: counted
        for name in run.selections
        if (counted := count_negatives(run_dir, name, decode, special_ids, run.fingerprint))
        is not None
    }
    inspection = open_inspection(run_dir, decode, explain=explain)
    detector = None if run.findings is None else detector_section(run_dir, run.findings)
    answers = answer_entries(run)
    content = _index(run, table, splits, negatives, detector, inspection, answers)
    found: dict[str, Any] = {} if detector is None else {"detector": detector.values}
    if run.answers:
        found["answers"] = answers
    sections = [to_markdown(table), *([] if detector is None else [detector.to_markdown()])]
    files = {
        layout.results_file(output_dir, "json"): to_json(table, found),
        layout.results_file(output_dir, "csv"): to_csv(table),
        layout.results_file(output_dir, "md"): "\n".join(sections),
    }
    links = [
        (file.name, f"data:{MIME_TYPES[file.suffix]};charset=utf-8,{quote(text)}")
        for file, text in files.items()
    ]
    inspector = layout.inspector_page(output_dir)
    page = {**content, "links": links, "inspector": None if inspection is None else inspector.name}
    files[layout.report_page(output_dir)] = _render(page)
    if inspection is not None:
        files[inspector] = static_page(inspection, seed)
    output_dir.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        file.write_text(text, encoding="utf-8", newline="\n")
    return ReportSummary(table.sentence, list(files))


def _index(
    run: RunReader,
    table: ResultsTable,
    splits: Sequence[SplitLengths],
    negatives: dict[str, Negatives],
    detector: DetectorSection | None,
    inspection: Inspection | None,
    answers: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    variants = in_order({*table.variants, *run.curves, *run.selections})
    styles = series_styles(variants)
    return {
        "run": run,
        "model": None if run.recipe is None else base_name(run.recipe),
        "paragraph": None if run.recipe is None else recipe_paragraph(run.recipe),
        "sentence": table.sentence,
        "styles": styles,
        "variants": table.variants,
        "results": result_rows.results_rows(table) if table.columns else None,
        "differences": result_rows.difference_rows(table),
        "baseline": None if table.paired is None else table.paired.baseline,
        "compared": bars.drawn_variants(table),
        "bars": _markup(bars.result_figure("results-bars", table, styles)),
        "costs": tables.cost_rows(run.costs) if run.costs else None,
        "detector": detector,
        "reliability": None if detector is None else _markup(detector.figure),
        "noise": _noise(run),
        "training": _training(run, styles),
        "selection": _selection(run, styles, negatives, inspection) if run.selections else None,
        "worst": None if inspection is None else worst_samples(inspection),
        "answers": answers,
        "data": _data(run, splits),
    }


def _noise(run: RunReader) -> dict[str, Any] | None:
    noisy = [s for s in run.selections.values() if s.noise is not None]
    if not noisy:
        return None
    first = next((s for s in noisy if s.variant == run.preferred_variant), noisy[0])
    assert first.noise is not None
    return {
        "sentence": noise_sentence(first.variant, first.noise),
        "table": tables.noise_rows(noisy),
    }


def _training(run: RunReader, styles: dict[str, SeriesStyle]) -> list[Markup]:
    last = max((float(curve.steps.max(initial=0)) for curve in run.curves.values()), default=None)
    panels = [
        figures.curve_figure(
            f"curve-{field}",
            title,
            {name: (curve.steps, getattr(curve, field)) for name, curve in run.curves.items()},
            styles,
            last,
        )
        for field, title in PANELS
    ]
    return [Markup(panel) for panel in panels if panel is not None]


def _selection(
    run: RunReader,
    styles: dict[str, SeriesStyle],
    negatives: dict[str, Negatives],
    inspection: Inspection | None,
) -> dict[str, Any]:
    assert run.preferred_variant is not None
    first = run.selections[run.preferred_variant]
    shown = list(run.selections.values())
    # The histogram of the preferred variant's measure comes first.
    by_measure: dict[str, list[SelectionSummary]] = {}
    for s in sorted(shown, key=lambda s: s is not first):
        by_measure.setdefault(s.quality, []).append(s)
    names = {s.variant: styles[s.variant] for s in shown}
    by_source, by_type = tables.shares_by_source(shown), tables.shares_by_type(negatives)
    position = tables.shares_by_position(shown)
    return {
        "variants": list(names),
        "histograms": [
            Markup(svg)
            for measure, same in by_measure.items()
            if (svg := figures.quality_histogram(f"quality-{measure}", same, styles)) is not None
        ],
        "mixtures": [
            (s, Markup(svg))
            for number, s in enumerate(shown)
            if (svg := figures.mixture_figure(f"mixture-{number}", s)) is not None
        ],
        "without_mixture": [s for s in shown if s.mixture is not None and s.mixture.fit is None],
        "table": tables.selection_rows(shown),
        "figures": [
            Markup(svg)
            for svg in (
                bars.negative_bars("types", "Negative tokens by type (%)", by_type, names),
                figures.position_shares("positions", shown, styles),
                bars.negative_bars(
                    "sources-bars", "Negative tokens by source (%)", by_source, names
                ),
            )
            if svg is not None
        ],
        "by_type": tables.negative_shares("by-type", "By type of token", "type", by_type)
        if by_type
        else None,
        "tokens": tables.token_rows(first.variant, negatives[first.variant])
        if first.variant in negatives
        else None,
        "more": [
            tables.negative_shares("by-source", "By source", "source", by_source),
            tables.negative_shares(
                "by-position", "By position in the response", "position from", position
            ),
            tables.sample_rows(
                "lowest", first.worst, first.quality, _previews(inspection, first.worst)
            ),
            tables.sample_rows(
                "highest", first.best, first.quality, _previews(inspection, first.best)
            ),
        ],
    }


def _previews(inspection: Inspection | None, samples: Sequence[ExtremeSample]) -> dict[int, str]:
    """The beginning of the response by sample id."""
    if inspection is None:
        return {}
    rows = {sample_id: row for row, sample_id in enumerate(inspection.sample_ids.tolist())}
    shown = [sample.sample_id for sample in samples if sample.sample_id in rows]
    return {each: inspection.summary(rows[each], 0)["preview"] for each in shown}


def _data(run: RunReader, splits: Sequence[SplitLengths]) -> dict[str, Any] | None:
    if run.data is None:
        return None
    train = next((split for split in splits if split.name == "train"), None)
    figure = None
    if train is not None:
        figure = figures.length_histogram("lengths-figure", train, run.data.max_length)
    return {
        "figure": _markup(figure),
        "max_length": run.data.max_length,
        "tables": [
            tables.split_rows(run.data),
            tables.length_rows(splits),
            tables.source_rows(splits),
            tables.record_rows(run.data),
        ],
    }


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


@functools.cache
def _templates() -> Environment:
    return Environment(
        # The inspector has the style that both pages share.
        loader=ChoiceLoader(
            [PackageLoader("forgetting.report"), PackageLoader("forgetting.inspector")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(content: dict[str, Any]) -> str:
    environment = _templates()
    style = environment.get_template("style.css").render()
    style += environment.get_template("index.css").render()
    return environment.get_template("index.html").render(
        **content,
        style=Markup(style),
        policy=Markup(content_policy(style, "", is_served=False)),
    )


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(str(value))
