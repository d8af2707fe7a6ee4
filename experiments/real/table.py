"""The results of the cells as Markdown tables.

In: the results of finished cells. Out: text. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.real.cells import TASKS, Cell
from experiments.real.figures import draw_finding, draw_training
from experiments.real.finding import IFD, Found
from experiments.real.noise import MARKED_KIND, NEVER_PLANTED
from experiments.real.running import read_result
from experiments.real.training import FULL, Gap, Trained
from forgetting.method.measures import DETECTOR
from forgetting.rundir.storage import write_atomically
from forgetting.studies import ALL_KINDS, NO_VALUE, as_markdown

SINGLE = {"base loss": "base_loss", "influence": "influence", "IFD": IFD}
"""Scores without a detector that stand next to it."""
ENDS = 5
"""Points at either end of a loss curve that are averaged."""
Findings = Mapping[Cell, Found]
Trainings = Mapping[Cell, Trained]


def write_results(cells: Iterable[Cell], output: Path) -> Path:
    """Write `results.md` and the figures from the finished cells among these.

    Returns:
        The Markdown file.
    """
    results = {cell: result for cell in cells if (result := read_result(cell, output)) is not None}
    found = {cell: r.found for cell, r in results.items() if r.found is not None}
    trained = {
        cell: r.trained
        for cell, r in results.items()
        if r.trained is not None and cell.task == "training"
    }
    paper = {
        cell: r.trained
        for cell, r in results.items()
        if r.trained is not None and cell.task == "paper"
    }
    parts = ["# Evidence on a real language model"]
    if found:
        parts += ["## Finding", finding_table(found), kinds_table(found)]
        if any(cell.reference for cell in found):
            parts.append(measures_table(found))
        draw_finding(found, output)
    if trained:
        parts += ["## Training", training_table(trained), benchmark_table(trained)]
        if small := {cell: r for cell, r in trained.items() if not cell.is_large}:
            draw_training(small, output)
    if paper:
        parts += ["## The paper's recipe", training_table(paper), benchmark_table(paper)]
        parts.append(curves_table(paper))
    parts += ["## Cost, in minutes", cost_table({**found, **trained, **paper})]
    file = output / "results.md"
    write_atomically(file, "\n\n".join(parts) + "\n")
    return file


def finding_table(found: Findings) -> str:
    """One line a cell: what the detector finds, next to base loss, influence and IFD."""
    header = [
        "corpus", "noisy records", "bad tokens", "detector AUROC / AP", *SINGLE, "precision",
        "recall", "estimated share",
    ]  # fmt: skip
    rows = []
    for cell, result in _by_corpus(found):
        verdict = result.verdict
        estimate = NO_VALUE
        if verdict.found and verdict.share is not None:
            estimate = f"{_percent(verdict.share)} ({_percent(verdict.low)} to "
            estimate += f"{_percent(verdict.high)})"
        elif not verdict.found:
            estimate = "nothing found"
        noise = _percent(cell.rate)
        if cell.rate == 0 and verdict.true_share:
            noise = "spans marked by people"
        rows.append(
            [
                cell.corpus,
                noise + ", with a reference" * cell.reference,
                _percent(verdict.true_share),
                *(_pair(result, name) for name in (DETECTOR, *SINGLE.values())),
                _number(verdict.precision, 2),
                _number(verdict.recall, 2),
                estimate,
            ]
        )
    return as_markdown(header, rows, 2)


def measures_table(found: Findings) -> str:
    """AUROC and average precision of every measure, in the cells that have a reference."""
    cells = [(cell, result) for cell, result in _by_corpus(found) if cell.reference]
    names = dict.fromkeys(name for _, result in cells for name in result.scores)
    rows = [
        [name.replace("_", " "), *(_pair(result, name) for _, result in cells)] for name in names
    ]
    return as_markdown(["AUROC / AP", *(cell.corpus for cell, _ in cells)], rows, 1)


def kinds_table(found: Findings) -> str:
    """AUROC by kind of injected noise, means over the cells without a reference that have it."""
    values: dict[str, dict[str, list[float]]] = {}
    for cell, result in found.items():
        if cell.reference:
            continue
        for name in (DETECTOR, "base_loss", "entropy_gap"):
            for kind, score in result.scores[name].items():
                if kind not in (ALL_KINDS, MARKED_KIND) and score.auroc is not None:
                    values.setdefault(kind, {}).setdefault(name, []).append(score.auroc)
    rows = [
        [
            kind + (" (never planted)" if kind in NEVER_PLANTED else ""),
            *(
                f"{np.mean(own[name]):.3f} ({min(own[name]):.2f} to {max(own[name]):.2f})"
                for name in own
            ),
            str(len(own[DETECTOR])),
        ]
        for kind, own in sorted(values.items())
    ]
    return as_markdown(["kind", "detector", "base loss", "entropy gap", "cells"], rows, 1)


def training_table(trained: Trainings) -> str:
    """Loss and accuracy on clean held-out responses minus those of `full`, by rate and model."""
    header = [
        "noisy records", "model", "loss", "loss minus full", "accuracy",
        "accuracy minus full, points", "seeds",
    ]  # fmt: skip
    rows = []
    for noise, results in _by_noise(trained):
        for name in results[0].models:
            models = [result.models[name] for result in results]
            rows.append(
                [
                    noise,
                    name,
                    f"{np.mean([m.loss.mean for m in models]):.3f}",
                    _differences([m.loss for m in models], 1, 4),
                    f"{100 * np.mean([m.accuracy.mean for m in models]):.1f} %",
                    _differences([m.accuracy for m in models], 100, 2),
                    str(len(models)),
                ]
            )
    return as_markdown(header, rows, 2)


def benchmark_table(trained: Trainings) -> str:
    """Accuracy of every model on the benchmarks, in percent with standard errors."""
    rows = []
    for noise, results in _by_noise(trained):
        with_tasks = [result for result in results if result.models[FULL].tasks]
        for result in with_tasks:
            for name, model in result.models.items():
                scores = [model.tasks.get(task) for task in TASKS]
                cells = [
                    NO_VALUE
                    if score is None
                    else f"{100 * score.value:.1f} ± {100 * (score.stderr or 0):.1f}"
                    for score in scores
                ]
                rows.append([noise, name, *cells])
    return as_markdown(["noisy records", "model", *TASKS], rows, 2)


def curves_table(trained: Trainings) -> str:
    """Training loss of the tokens to learn, at the start and at the end of each curve."""
    rows = []
    for noise, results in _by_noise(trained):
        for name in results[0].models:
            curves = [[loss for _, loss in result.models[name].losses] for result in results]
            if all(curves):
                ends = ([np.mean(c[:ENDS]) for c in curves], [np.mean(c[-ENDS:]) for c in curves])
                rows.append([noise, name, *(f"{np.mean(end):.3f}" for end in ends)])
    header = ["noisy records", "model", "training loss, first steps", "last steps"]
    return as_markdown(header, rows, 2)


def cost_table(results: Mapping[Cell, Found | Trained]) -> str:
    """Minutes by stage and task, means over cells."""
    spent: dict[str, dict[str, list[float]]] = {}
    for cell, result in results.items():
        task = f"{cell.task}, large" if cell.is_large else cell.task
        stages: dict[str, float] = {}
        for name, seconds in result.seconds.items():
            stage = name.partition(":")[0]
            stages[stage] = stages.get(stage, 0) + seconds
        for stage, seconds in stages.items():
            spent.setdefault(task, {}).setdefault(stage, []).append(seconds)
    stages_seen = list(dict.fromkeys(stage for own in spent.values() for stage in own))
    rows = [
        [task, *(f"{np.mean(own[s]) / 60:.1f}" if s in own else NO_VALUE for s in stages_seen)]
        for task, own in spent.items()
    ]
    return as_markdown(["task", *stages_seen], rows, 1)


def _by_corpus(found: Findings) -> list[tuple[Cell, Found]]:
    return sorted(found.items(), key=lambda pair: (pair[0].corpus, pair[0].rate, pair[0].reference))


def _by_noise(trained: Trainings) -> list[tuple[str, list[Trained]]]:
    """The corpora, smaller ones first, with the results of all seeds."""
    groups: dict[tuple[int, float], list[Trained]] = {}
    for cell in sorted(trained, key=lambda cell: (cell.num_train, cell.rate, cell.seed)):
        groups.setdefault((cell.num_train, cell.rate), []).append(trained[cell])
    return [(f"{_percent(rate)} of {size:,}", own) for (size, rate), own in groups.items()]


def _differences(gaps: Sequence[Gap], scale: float, digits: int) -> str:
    """Mean and deviation over seeds; of one seed, its interval over samples."""
    values = [scale * gap.difference for gap in gaps if gap.difference is not None]
    if not values:
        return NO_VALUE
    if len(values) > 1:
        return f"{np.mean(values):+.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
    low, high = scale * (gaps[0].low or 0), scale * (gaps[0].high or 0)
    return f"{values[0]:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _pair(result: Found, name: str) -> str:
    score = result.scores.get(name, {}).get(ALL_KINDS)
    if score is None or score.auroc is None:
        return NO_VALUE
    return f"{score.auroc:.3f} / {score.average_precision:.3f}"


def _percent(share: float | None) -> str:
    return NO_VALUE if share is None else f"{100 * share:.3g} %"


def _number(value: float | None, digits: int) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f}"
