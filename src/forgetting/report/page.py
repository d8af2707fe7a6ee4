"""The pages: what was read and drawn, laid out by the templates beside this file.

Goes in: a run directory and the tokenizer's `decode`. Comes out: index.html, inspector.html where
tokens were scored and selected, and results as JSON, CSV and Markdown. All text is escaped by
the engine and stripped of invisible marks by `visible`; only our own SVG passes as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from forgetting.report import figures
from forgetting.report.collect import Noise, Run, in_order, read_run
from forgetting.report.escaping import visible
from forgetting.report.inspector.corpus import open_inspection, preferred
from forgetting.report.inspector.page import static_page
from forgetting.report.inspector.pieces import Decode
from forgetting.report.results import ResultsTable, tabulate, to_csv, to_json, to_markdown

PANELS = (
    ("positive_loss", "Loss of positive tokens"),
    ("negative_loss", "Loss of negative tokens"),
    ("lam", "lambda"),
)


@dataclass(frozen=True)
class ReportSummary:
    """What was written."""

    sentence: str
    paths: Sequence[Path]


def build_report(
    run_dir: Path, output_dir: Path, *, decode: Decode, seed: int = 0
) -> ReportSummary:
    """Write the report of a run into `output_dir`, which is made where it is missing.

    Args:
        run_dir: a run, whole or partly done; sections whose stage is missing are left out.
        output_dir: receives index.html, inspector.html, results.json, results.csv, results.md.
        decode: text of token ids, with special tokens and spaces as they are.
        seed: of the choice of random samples. The same run and seed give the same bytes.

    Raises:
        InputError: no run there, or a file that cannot be read.
    """
    run = read_run(run_dir)
    table = tabulate(run.evaluations)
    inspection = open_inspection(run_dir, decode)
    environment = _environment()
    files = {
        "results.json": to_json(table),
        "results.csv": to_csv(table),
        "results.md": to_markdown(table),
        "index.html": environment.get_template("index.html").render(
            _index(run, table, has_tokens=inspection is not None)
        ),
    }
    if inspection is not None:
        files["inspector.html"] = static_page(inspection, seed)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (output_dir / name).write_text(text, encoding="utf-8", newline="\n")
    return ReportSummary(table.sentence, [output_dir / name for name in files])


def noise_sentence(variant: str, noise: Noise) -> str:
    """How well the quality score finds the known noise, in plain words."""
    if noise.auroc is None:
        return "There is nothing to tell apart: all tokens are noisy, or none is."
    auroc = f"AUROC {noise.auroc:.2f}"
    if auroc == "AUROC 0.50":
        found = (
            f"No better than chance: the score does not tell noisy tokens from clean ones ({auroc})"
        )
    elif noise.auroc < 0.5:
        found = (
            f"Worse than chance: the score ranks noisy tokens as better than clean ones ({auroc})"
        )
    else:
        found = (
            f"In {100 * noise.auroc:.0f} of 100 pairs of a noisy and a clean token, the score "
            f"ranks the noisy one as worse ({auroc}; chance: 50 of 100)"
        )
    if noise.precision is None or noise.recall is None:
        return f"{found}."
    return (
        f"{found}. Of the tokens that {variant} does not learn, {100 * noise.precision:.1f} % are "
        f"noisy (of all tokens: {100 * noise.share_noisy:.1f} %); they are "
        f"{100 * noise.recall:.1f} % of all noisy tokens."
    )


def _index(run: Run, table: ResultsTable, *, has_tokens: bool) -> dict[str, Any]:
    variants = in_order({*table.variants, *run.curves, *run.selections})
    styles = figures.series_styles(variants)
    selection = preferred(run)
    panels = [
        figures.curve_figure(
            f"curve-{field}",
            title,
            {name: (curve.steps, getattr(curve, field)) for name, curve in run.curves.items()},
            styles,
        )
        for field, title in PANELS
    ]
    # The preferred variant comes first: the histogram and the sentence are about it.
    selections = sorted(run.selections.values(), key=lambda s: s is not selection)
    histogram = figures.quality_histogram("quality", selections, styles) if selections else None
    noisy = [s for s in run.selections.values() if s.noise is not None]
    positions = figures.position_shares("positions", selections, styles)
    mixtures = [
        (chosen, figures.mixture_figure(f"mixture-{number}", chosen))
        for number, chosen in enumerate(selections)
    ]
    bars = figures.result_bars("results", table, styles)
    return {
        "run": run,
        "table": table,
        "styles": styles,
        "bars": None if bars is None else Markup(bars),
        "panels": [Markup(panel) for panel in panels if panel is not None],
        "histogram": None if histogram is None else Markup(histogram),
        "positions": None if positions is None else Markup(positions),
        "mixtures": [(chosen, Markup(svg)) for chosen, svg in mixtures if svg is not None],
        "preferred": selection,
        "noisy": noisy,
        "noise_sentence": None
        if selection is None or selection.noise is None
        else noise_sentence(selection.variant, selection.noise),
        "kinds": sorted({kind for s in noisy if s.noise for kind in s.noise.recall_by_kind}),
        "selection_sources": sorted(
            {name for s in run.selections.values() for name in s.by_source}
        ),
        "has_tokens": has_tokens,
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("forgetting.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "percent": _percent,
        "decimals": _decimals,
        "duration": _duration,
        "memory": lambda size: None if size is None else f"{size / 2**30:.2f} GiB",
    }
    return environment


def _finalize(value: Any) -> Any:
    if value is None:
        return "–"
    return value if isinstance(value, Markup) else visible(str(value))


def _decimals(value: float | None, digits: int = 3) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
