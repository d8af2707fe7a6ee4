"""The results of a run: variants by metrics, differences to a baseline, and one sentence.

Input: evaluations. Output: a `ResultsTable`, which `result_files` writes. This module
alone decides what counts as a difference: an interval of paired differences without 0, or, if items
cannot be paired, more than the combined standard error of two values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from forgetting.escaping import visible
from forgetting.method.comparison import LEVEL, Difference, wilson_interval
from forgetting.report.paired import Paired, paired_results
from forgetting.report.sentences import verdict_sentence
from forgetting.report.verdict import Verdict, copies, run_verdict
from forgetting.rundir.reader import RunReader, in_order
from forgetting.rundir.results import ANSWERS, HELDOUT, Evaluation, Group, Metric

HELDOUT_METRICS = ("exact_match", "loss", "perplexity")
# Below this a model answers almost nothing correctly, differences are chance, and loss says more.
LEAST_EXACT_MATCH = 0.02
SHARES = re.compile(r"acc|exact_match|^em$|^f1$|^mc[12]$|^average$|^chrf$")
TITLES = {"chrf": "chrF"}
# Shares of items that are right or wrong, unlike F1, an average of tasks, or a share of tokens.
COUNTED = re.compile(r"(?<!token_)acc|exact_match|^em$|^mc1$")
INTERVALS = (
    f"Brackets hold {100 * LEVEL:.0f}% intervals. A share has Wilson's, and a difference is paired "
    "over the items."
)
"""Explains the numbers of a table."""
SPOKEN = {
    "full": "training on all tokens",
    "base": "the base model without fine-tuning",
    "ignoring": "ignoring",
    "forgetting": "forgetting",
}


@dataclass(frozen=True)
class Column:
    """One metric of one task, over all items or one group of items."""

    task: str
    metric: str
    group: str | None
    num_items: int
    higher_is_better: bool
    percent: bool
    """Whether values are shares of 1 that are shown in percent."""
    local: bool = False
    """Whether items come from local files."""

    @property
    def is_counted(self) -> bool:
        """Whether values are shares of items that are right or wrong."""
        return self.percent and COUNTED.search(self.metric.split(",")[0]) is not None

    @property
    def key(self) -> str:
        """Unique in a table."""
        return "/".join(filter(None, (self.task, self.metric, self.group)))

    @property
    def task_title(self) -> str:
        """The task, for people."""
        if self.task == HELDOUT:
            return "held-out"
        if self.task == ANSWERS:
            return "held-out answers"
        return f"{self.task} (local build)" if self.local else self.task

    @property
    def metric_title(self) -> str:
        """The metric, for people."""
        return TITLES.get(self.metric, self.metric.replace("_", " ").removesuffix(",none"))

    @property
    def title(self) -> str:
        """The metric and the group, for people."""
        return self.metric_title if self.group is None else f"{self.metric_title}, {self.group}"

    def number(self, value: float) -> str:
        """`value` with the digits that this column shows."""
        if not math.isfinite(value):
            return "not finite"
        if self.percent:
            return f"{100 * value:.1f}"
        if abs(value) >= 1e5:
            return f"{value:.1e}"
        return f"{value:.{3 if abs(value) < 10 else 2 if abs(value) < 100 else 1}f}"

    def difference(self, found: Difference) -> str:
        """A difference as `-0.9 [-1.9, +0.1]`, with two digits of half its interval."""
        scale = 100 if self.percent else 1
        value, low, high = (scale * each for each in (found.value, found.low, found.high))
        half = (high - low) / 2 if found.has_interval else abs(value)
        digits = 3 if half <= 0 else 1 - math.floor(math.log10(half))
        digits = min(max(digits, int(self.percent)), 6)
        texts = [f"{each:+.{digits}f}" for each in (value, low, high)]
        return f"{texts[0]} [{texts[1]}, {texts[2]}]" if found.has_interval else texts[0]


@dataclass(frozen=True)
class Cell:
    """One result. `best`: better than every other by more than the combined standard error."""

    value: float
    stderr: float | None
    best: bool = False
    interval: tuple[float, float] | None = None
    """Wilson's interval of a share of items; None for other values."""


@dataclass(frozen=True)
class ResultsTable:
    """Variants by columns. `cells` has no entry if a variant lacks a metric."""

    variants: Sequence[str]
    columns: Sequence[Column]
    cells: Mapping[tuple[str, str], Cell]
    """By variant and `Column.key`."""
    headline: Column | None
    """The column that `sentence` is about."""
    sentence: str
    """The verdict, if there is one, and the main difference."""
    verdict: Verdict | None = None
    """Which model to use; None if variants cannot be compared."""
    paired: Paired | None = None
    """Differences to a baseline, item by item; None if there is no baseline."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """`Column.key` by another name: a suite's column by the metric of its only task."""

    def column(self, key: str) -> Column | None:
        """The column of a key or of another name for it; None if there is none."""
        known = (key, self.aliases.get(key))
        return next((column for column in self.columns if column.key in known), None)

    def cell(self, variant: str, column: Column) -> Cell | None:
        """The result of a variant; None if there is none."""
        return self.cells.get((variant, column.key))

    def text(self, variant: str, column: Column) -> str:
        """The cell as `62.1 [58.9, 65.2]` or `1.93 ± 0.02`, percentages without a sign; a dash if
        there is no result."""
        cell = self.cell(variant, column)
        return "–" if cell is None else _text(column, cell)

    def short_text(self, variant: str, column: Column) -> str:
        """The cell with a standard error, for narrow tables. A share whose standard error is 0 has
        its interval."""
        cell = self.cell(variant, column)
        if cell is None:
            return "–"
        return _text(column, replace(cell, interval=None) if cell.stderr else cell)

    def difference(self, variant: str, column: Column) -> Difference | None:
        """The result of a variant minus that of the baseline; None if they were not paired."""
        return None if self.paired is None else self.paired.differences.get((variant, column.key))

    @property
    def compared(self) -> Sequence[str]:
        """The variants with a difference to the baseline."""
        with_any = set() if self.paired is None else {name for name, _ in self.paired.differences}
        return [name for name in self.variants if name in with_any]

    @property
    def compared_columns(self) -> Sequence[Column]:
        """The columns with a difference to the baseline."""
        return [c for c in self.columns if any(self.difference(v, c) for v in self.compared)]


def results_table(run_dir: Path) -> ResultsTable:
    """The results of a run, complete or not.

    Raises:
        InputError: `run_dir` is not a run directory, or a result cannot be read.
    """
    return table_of_run(RunReader(run_dir))


def table_of_run(run: RunReader) -> ResultsTable:
    """The results of a run with its verdict and its paired differences.

    Raises:
        InputError: an artifact is damaged, or belongs to other tokens.
    """
    verdict = run_verdict(run)
    paired = paired_results(run, verdict)
    return tabulate(run.evaluations, verdict, paired, copies(run, run.evaluations))


def tabulate(
    evaluations: Sequence[Evaluation],
    verdict: Verdict | None = None,
    paired: Paired | None = None,
    same: Mapping[str, str] | None = None,
) -> ResultsTable:
    """Arrange evaluations: held-out first, with groups for the headline metric, then the tasks.

    A task's metric that a suite shows as its member is not shown again.

    Args:
        verdict: which model to use.
        paired: differences to a baseline.
        same: variants whose model is that of another, and that one; see `copies`. The sentence says
            so instead of comparing them.
    """
    variants = in_order({evaluation.variant for evaluation in evaluations})
    exact = [e.metrics.get("exact_match") for e in evaluations if e.task == HELDOUT]
    answers = any(metric is not None and metric.value >= LEAST_EXACT_MATCH for metric in exact)
    grouped = "exact_match" if answers else "loss"
    in_suites = {
        tasks[0]: f"{e.task}/{next(iter(e.metrics))}/{group}"
        for e in evaluations
        for group, tasks in e.members.items()
        if len(tasks) == 1
    }
    columns: dict[str, Column] = {}
    cells: dict[tuple[str, str], Cell] = {}
    for task in sorted({e.task for e in evaluations}, key=lambda name: (name != HELDOUT, name)):
        of_task = [e for e in evaluations if e.task == task]
        for metric, group in _metrics(of_task, grouped):
            if group is None and f"{task}/{metric}" in in_suites:
                continue
            found = {
                e.variant: m for e in of_task if (m := _measured(e, metric, group)) is not None
            }
            column = _column(task, metric, group, list(found.values()))
            column = replace(column, local=any(e.local for e in of_task))
            columns[column.key] = column
            for variant, cell in _cells({v: m.metrics[metric] for v, m in found.items()}).items():
                interval = _interval(column, cell.value, found[variant].num_items)
                cells[variant, column.key] = replace(cell, interval=interval)
    headline = columns.get(f"{HELDOUT}/{grouped}") or next(iter(columns.values()), None)
    said = {} if verdict is None else verdict.same
    same = {**said, **(same or {})}
    shown = [name for name in variants if name not in same]
    sentences = [] if verdict is None else [verdict_sentence(verdict)]
    sentences.append(_sentence(headline, shown, cells, paired))
    sentences += [f"{x} is the same model as {y}." for x, y in same.items() if x not in said]
    return ResultsTable(
        variants=variants,
        columns=list(columns.values()),
        cells=cells,
        headline=headline,
        sentence=" ".join(sentences),
        verdict=verdict,
        paired=paired,
        aliases=in_suites,
    )


def _metrics(evaluations: Sequence[Evaluation], grouped: str) -> list[tuple[str, str | None]]:
    """Metrics of a task in the order of its columns. A single held-out group is omitted, because it
    would repeat the whole."""
    names = list(dict.fromkeys(name for e in evaluations for name in e.metrics))
    if evaluations[0].task != HELDOUT:
        # The members of a suite follow its average.
        members = dict.fromkeys(group for e in evaluations for group in e.groups)
        return [(name, group) for name in names for group in (None, *members)]
    names.sort(
        key=lambda n: HELDOUT_METRICS.index(n) if n in HELDOUT_METRICS else len(HELDOUT_METRICS)
    )
    groups = sorted({group for e in evaluations for group in e.groups})
    columns: list[tuple[str, str | None]] = []
    for name in names:
        columns.append((name, None))
        if name == grouped and len(groups) > 1:
            columns += [(name, group) for group in groups]
    return columns


def _measured(evaluation: Evaluation, metric: str, group: str | None) -> Group | None:
    measurement = evaluation if group is None else evaluation.groups.get(group)
    return measurement if measurement is not None and metric in measurement.metrics else None


def _column(task: str, metric: str, group: str | None, found: Sequence[Group]) -> Column:
    values = [m.metrics[metric].value for m in found]
    in_unit_range = all(0 <= value <= 1 for value in values if math.isfinite(value))
    return Column(
        task=task,
        metric=metric,
        group=group,
        num_items=max((m.num_items for m in found), default=0),
        higher_is_better=all(m.metrics[metric].higher_is_better for m in found),
        percent=in_unit_range and SHARES.search(metric.split(",")[0]) is not None,
    )


def _cells(metrics: Mapping[str, Metric]) -> dict[str, Cell]:
    cells = {variant: Cell(m.value, m.stderr) for variant, m in metrics.items()}
    sign = 1 if all(m.higher_is_better for m in metrics.values()) else -1
    finite = [variant for variant in cells if math.isfinite(cells[variant].value)]
    ranked = sorted(finite, key=lambda variant: -sign * cells[variant].value)
    if len(ranked) > 1 and all(_differs(cells[ranked[0]], cells[other]) for other in ranked[1:]):
        best = cells[ranked[0]]
        cells[ranked[0]] = Cell(best.value, best.stderr, best=True)
    return cells


def _differs(one: Cell, other: Cell) -> bool:
    """Whether two values differ by more than their combined standard error; False if unknown."""
    if one.stderr is None or other.stderr is None:
        return False
    return abs(one.value - other.value) > math.hypot(one.stderr, other.stderr)


def _interval(column: Column, value: float, num_items: int) -> tuple[float, float] | None:
    if not column.is_counted or not math.isfinite(value) or not num_items:
        return None
    return wilson_interval(value, num_items)


def _text(column: Column, cell: Cell) -> str:
    value = column.number(cell.value)
    if cell.interval is not None:
        low, high = map(column.number, cell.interval)
        return f"{value} [{low}, {high}]"
    return value if cell.stderr is None else f"{value} ± {column.number(cell.stderr)}"


def _sentence(
    column: Column | None,
    variants: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    paired: Paired | None = None,
) -> str:
    if column is None:
        return "Nothing has been evaluated yet."
    present = [variant for variant in variants if (variant, column.key) in cells]
    others = [variant for variant in present if variant not in SPOKEN]
    subject = _first(["forgetting", "ignoring", *others, "full", "base"], present)
    rivals = ["full", "ignoring", "base", *others]
    if paired is not None and subject is not None:
        # Whatever was paired with the subject comes first, because pairs say more.
        rivals = [
            *(name for name in rivals if _paired_difference(paired, subject, name, column.key)),
            *rivals,
        ]
    rival = _first(rivals, [v for v in present if v != subject])
    if column.task != HELDOUT:
        where = f"On {column.task}"
    else:
        where = "On held-out questions" if column.percent else "On held-out responses"
    measure = column.title
    if subject is None:
        return "Nothing has been evaluated yet."
    cell, spoken = cells[subject, column.key], SPOKEN.get(subject, subject)
    if rival is None:
        return f"{where}, {spoken} has {measure} {_text(column, cell)}. Nothing else was evaluated."
    rival_cell, rival_spoken = cells[rival, column.key], SPOKEN.get(rival, rival)
    both = f"{_text(column, cell)} versus {_text(column, rival_cell)}"
    for name, value in ((spoken, cell.value), (rival_spoken, rival_cell.value)):
        if not math.isfinite(value):
            return (
                f"{where}, the {measure} of {name} is not a finite number and cannot be compared."
            )
    found = None
    if paired is not None:
        found = _paired_difference(paired, subject, rival, column.key)
    if found is not None:
        both += f"; paired difference {column.difference(found)}"
    elif cell.stderr is None or rival_cell.stderr is None:
        return (
            f"{where}, {spoken} and {rival_spoken} have {measure} {both}. Without standard errors, "
            "this may or may not be a real difference."
        )
    if not (_differs(cell, rival_cell) if found is None else found.is_apart):
        chance = "the standard error" if found is None else "chance"
        return (
            f"{where}, {spoken} and {rival_spoken} do not differ beyond {chance} "
            f"({measure} {both})."
        )
    difference = cell.value - rival_cell.value
    verdict = "better" if (difference > 0) == column.higher_is_better else "worse"
    if column.percent:
        direction = "above" if difference > 0 else "below"
        points = f"{100 * abs(difference):.1f} points {direction} {rival_spoken}"
        note = "" if column.higher_is_better else f"{verdict}; "
        return f"{where}, {spoken} is {points} ({note}{both})."
    direction = "higher" if difference > 0 else "lower"
    return (
        f"{where}, the {measure} of {spoken} is {abs(difference):.3g} {direction} than the "
        f"{measure} of {rival_spoken}, which is {verdict} ({both})."
    )


def _paired_difference(paired: Paired, one: str, other: str, key: str) -> Difference | None:
    """The result of `one` minus that of `other`; None if there is no interval of it."""
    if other == paired.baseline:
        found = paired.differences.get((one, key))
    elif one == paired.baseline:
        found = paired.differences.get((other, key))
        found = found and Difference(-found.value, -found.high, -found.low, found.num_pairs)
    else:
        return None
    return found if found is not None and found.has_interval else None


def _first(wanted: Sequence[str], present: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in present), None)


def plain(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", visible(" ".join(text.split())))
