"""The results of the noise benchmark as one table, in Markdown, LaTeX, CSV and JSON.

In: the results of finished cells. Out: means and standard deviations over seeds, and the table as
text. A line is a model or a measure, a column is a corpus. Runs nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.known_noise import DetectorVerdict
from experiments.noise.cell import Detection, Outcome
from experiments.noise.design import BASE, Cell
from forgetting.demo.noise import NOISE_KINDS
from forgetting.method import MEASURES
from forgetting.method.measures import DETECTOR
from forgetting.method.metrics import mean_and_deviation
from forgetting.studies import ALL_KINDS, DIVERGED, NO_VALUE, as_latex, as_markdown

ACCURACY, TO_FULL = "accuracy", "accuracy - full"
AUROC, AVERAGE_PRECISION = "AUROC", "average precision"
PRECISION, RECALL = "precision of negatives", "recall of negatives"
SHARE, IGNORED = "share negative", "share ignored"
LOSS, AMONG_WORST, SHARE_OF_TOKENS = "loss", "among the worst 30 %", "share of tokens"
TRUE_SHARE, FOUND_SHARE, HOLDS = "share of noise", "estimated share", "interval holds it"
MARKED, MARKED_PRECISION, MARKED_RECALL = "marked", "precision of marks", "recall of marks"
GROUPS = ("right answers", "right answers about new", "other words", "ends", *NOISE_KINDS)
MODELS = (BASE, "reference")
FULL = "full"


@dataclass(frozen=True)
class CellResult:
    """The results of a cell."""

    cell: Cell
    detection: Detection
    outcomes: Mapping[str, Outcome]
    """Outcomes by variant, and of `base`."""


@dataclass(frozen=True, order=True)
class Corpus:
    """The cells that differ only in their seed."""

    world: str
    reference: str
    rate: float
    kind: str
    """Kind of noise; `all`: equal parts of every kind."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds."""

    mean: float
    deviation: float | None
    num_seeds: int


@dataclass(frozen=True)
class Figures:
    """All means, by corpus, figure, model or measure, and group of questions or of noise."""

    means: Mapping[tuple[Corpus, str, str, str], Mean]
    num_diverged: Mapping[tuple[Corpus, str], int]
    """Trainings that diverged, by corpus and variant. No mean includes them."""
    names: Sequence[str]
    """Models and measures, in order."""

    def mean(self, corpus: Corpus, figure: str, of: str, group: str = ALL_KINDS) -> Mean | None:
        """One of the means; None if nothing was measured."""
        return self.means.get((corpus, figure, of, group))

    @property
    def corpora(self) -> list[Corpus]:
        """All corpora, in order."""
        return sorted({key[0] for key in self.means})


def gather(results: Sequence[CellResult], variants: Sequence[str]) -> Figures:
    """Average over seeds.

    Args:
        variants: names of the variants, in the order in which they are shown.

    Without noise, a clean reference is the same as a noisy one: such cells count for both.
    """
    values: dict[tuple[Corpus, str, str, str], list[float]] = {}
    num_diverged: dict[tuple[Corpus, str], int] = {}
    references = sorted({result.cell.reference for result in results})
    # It does not depend on the reference model, so it is trained with one of them only.
    full = {
        _same_corpus(result.cell): result.outcomes[FULL]
        for result in results
        if FULL in result.outcomes
    }
    for result in results:
        cell = result.cell
        for reference in references if cell.rate == 0 else [cell.reference]:
            corpus = Corpus(cell.world, reference, cell.rate, cell.kind)
            for figure, of, group, value in _figures(result, full.get(_same_corpus(cell))):
                values.setdefault((corpus, figure, of, group), []).append(value)
            for name, outcome in result.outcomes.items():
                if outcome.diverged is not None:
                    num_diverged[corpus, name] = num_diverged.get((corpus, name), 0) + 1
    means = {key: Mean(*mean_and_deviation(found), len(found)) for key, found in values.items()}
    return Figures(means, num_diverged, [BASE, "reference", *variants, *MEASURES])


def _same_corpus(cell: Cell) -> tuple[str, float, str, int]:
    return cell.world, cell.rate, cell.kind, cell.seed


def _figures(result: CellResult, full: Outcome | None) -> Iterator[tuple[str, str, str, float]]:
    """Figure, model or measure, group and value."""
    for name, outcome in result.outcomes.items():
        for group, value in outcome.accuracy.items():
            yield ACCURACY, name, group, value
            # Paired: both are of the same corpus and seed.
            if full is not None and name != FULL and group in full.accuracy:
                yield TO_FULL, name, group, value - full.accuracy[group]
        negatives = outcome.negatives
        if negatives is None:
            continue
        yield SHARE, name, ALL_KINDS, negatives.share
        yield IGNORED, name, ALL_KINDS, negatives.share_ignored
        for figure, found in ((PRECISION, negatives.precision), (RECALL, negatives.recall)):
            if found is not None:
                yield figure, name, ALL_KINDS, found
        for kind, recall in negatives.recall_by_kind.items():
            yield RECALL, name, kind, recall
    for figure, value in _of_verdict(result.detection.verdict).items():
        if value is not None:
            yield figure, DETECTOR, ALL_KINDS, value
    for name, tokens in result.detection.groups.items():
        yield SHARE_OF_TOKENS, "corpus", name, tokens.share
        for model, loss in zip(MODELS, (tokens.base_loss, tokens.reference_loss), strict=True):
            yield LOSS, model, name, loss
        for measure, share in tokens.among_worst.items():
            yield AMONG_WORST, measure, name, share
    for measure, by_kind in result.detection.found.items():
        for kind, found_noise in by_kind.items():
            if found_noise.auroc is not None and found_noise.average_precision is not None:
                yield AUROC, measure, kind, found_noise.auroc
                yield AVERAGE_PRECISION, measure, kind, found_noise.average_precision


def _of_verdict(verdict: DetectorVerdict) -> dict[str, float | None]:
    holds = None
    if verdict.found and verdict.low is not None and verdict.high is not None:
        holds = float(verdict.low <= verdict.true_share <= verdict.high)
    return {
        TRUE_SHARE: verdict.true_share,
        FOUND_SHARE: verdict.share if verdict.found else 0.0,
        HOLDS: holds,
        MARKED: verdict.marked,
        MARKED_PRECISION: verdict.precision,
        MARKED_RECALL: verdict.recall,
    }


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    world: str
    reference: str
    figure: str
    of: str
    group: str


def lines(figures: Figures) -> list[Line]:
    """The lines of the table: accuracy on all, known and new questions; detection of all noise, and
    of wrong answers against right ones; losses of groups of tokens."""
    wanted = {
        ACCURACY: (ALL_KINDS, "known", "new", "new_fact"),
        PRECISION: (ALL_KINDS,),
        RECALL: (ALL_KINDS,),
        AUROC: (ALL_KINDS, "answers", "answers about new"),
        AVERAGE_PRECISION: (ALL_KINDS,),
        TRUE_SHARE: (ALL_KINDS,),
        FOUND_SHARE: (ALL_KINDS,),
        HOLDS: (ALL_KINDS,),
        MARKED: (ALL_KINDS,),
        MARKED_PRECISION: (ALL_KINDS,),
        MARKED_RECALL: (ALL_KINDS,),
        LOSS: GROUPS,
    }
    found = {
        Line(corpus.world, corpus.reference, figure, of, group)
        for corpus, figure, of, group in figures.means
    }
    names = list(wanted)
    with_new = {line.world for line in found if line.group == "new"}

    def is_shown(line: Line) -> bool:
        # Without new entities, all questions are about known ones.
        is_repeat = line.group == "known" and line.world not in with_new
        return line.figure in wanted and line.group in wanted[line.figure] and not is_repeat

    return sorted(
        filter(is_shown, found),
        key=lambda line: (
            line.world,
            line.reference != "noisy",
            names.index(line.figure),
            wanted[line.figure].index(line.group),
            figures.names.index(line.of),
        ),
    )


def columns(figures: Figures) -> list[tuple[float, str]]:
    """Rate and kind of noise of each column: all kinds by rate, then each kind alone."""
    found = {(corpus.rate, corpus.kind) for corpus in figures.corpora}
    kinds = [ALL_KINDS, *NOISE_KINDS]
    return sorted(found, key=lambda column: (kinds.index(column[1]), column[0]))


def column_title(rate: float, kind: str) -> str:
    """Such as `20 %` or `junk phrase 20 %`."""
    words = "" if kind == ALL_KINDS else kind.replace("_", " ") + " "
    return f"{words}{100 * rate:g} %"


def texts(figures: Figures) -> tuple[list[str], list[list[str]], int]:
    """Header and rows as text, and the number of columns of words on the left."""
    left = ["world", "D_ref", "figure", "of", "among"]
    header = [*left, *(column_title(*column) for column in columns(figures))]
    rows = []
    for line in lines(figures):
        row = [line.world, line.reference, line.figure, line.of, line.group]
        for rate, kind in columns(figures):
            row.append(_text(figures, line, Corpus(line.world, line.reference, rate, kind)))
        rows.append(row)
    return header, rows, len(left)


def short_texts(figures: Figures) -> tuple[list[str], list[list[str]], int]:
    """The part that fits a terminal of 80 columns: mean accuracy and AUROC, with the noisy
    reference and all kinds of noise."""
    shown = [column for column in columns(figures) if column[1] == ALL_KINDS]
    header = ["world", "of", *(column_title(*column) for column in shown)]
    rows = []
    for line in lines(figures):
        is_main = line.figure in (ACCURACY, AUROC) and line.group == ALL_KINDS
        if is_main and line.reference == "noisy":
            texts_of_line = [
                _text(figures, line, Corpus(line.world, "noisy", *column), is_short=True)
                for column in shown
            ]
            is_measure = line.figure == AUROC
            of = f"{line.of} (AUROC)" if is_measure else line.of
            rows.append([line.world, of, *texts_of_line])
    return header, rows, 2


def _text(figures: Figures, line: Line, corpus: Corpus, *, is_short: bool = False) -> str:
    mean = figures.mean(corpus, line.figure, line.of, line.group)
    diverged = figures.num_diverged.get((corpus, line.of), 0)
    if mean is None:
        return DIVERGED if diverged else NO_VALUE
    digits = {AUROC: 3, AVERAGE_PRECISION: 3, LOSS: 2}.get(line.figure)
    # Every other figure is a share, in percent.
    scale, digits = (100, 1) if digits is None else (1, digits)
    if is_short:
        return f"{scale * mean.mean:.{digits - 1}f}"
    text = f"{scale * mean.mean:.{digits}f}"
    if mean.deviation is not None:
        text += f" ± {scale * mean.deviation:.{digits}f}"
    return text + (f" ({diverged} diverged)" if diverged else "")


LEGEND = (
    "Mean ± standard deviation over seeds. Accuracy, precision and recall are in percent, losses "
    "in nats. Columns: share of records that are noisy, with all kinds of noise or with one kind. "
    "AUROC and average precision compare noise with all clean tokens, except for `answers`, which "
    "compares wrong answers with right ones."
)


def to_markdown(figures: Figures, title: str) -> str:
    """The title, the table and its legend."""
    return f"# {title}\n\n{as_markdown(*texts(figures))}\n\n{LEGEND}\n"


def to_latex(figures: Figures, title: str) -> str:
    """A `table` for the package booktabs."""
    return as_latex(*texts(figures), f"{title}. {LEGEND}")


FIELDS = ("world", "reference", "rate", "noise", "figure", "of", "among")
NUMBERS = ("mean", "deviation", "seeds", "diverged")


def _rows(figures: Figures) -> Iterator[tuple[str | float | None, ...]]:
    """One row per mean, and per model whose trainings all diverged. Shares are from 0 to 1, missing
    values None."""
    rows: list[tuple[str | float | None, ...]] = []
    for (corpus, figure, of, group), mean in figures.means.items():
        diverged = figures.num_diverged.get((corpus, of), 0)
        place = (corpus.world, corpus.reference, corpus.rate, corpus.kind, figure, of, group)
        rows.append((*place, mean.mean, mean.deviation, mean.num_seeds, diverged))
    for (corpus, of), diverged in figures.num_diverged.items():
        if figures.mean(corpus, ACCURACY, of) is None:
            where = (corpus.world, corpus.reference, corpus.rate, corpus.kind)
            rows.append((*where, ACCURACY, of, ALL_KINDS, None, None, 0, diverged))
    yield from sorted(rows, key=lambda row: row[: len(FIELDS)])


def to_csv(figures: Figures) -> str:
    """One line per mean. Shares are from 0 to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIELDS, *NUMBERS])
    for row in _rows(figures):
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def to_json(figures: Figures) -> str:
    """The same as JSON, one object per mean."""
    names = (*FIELDS, *NUMBERS)
    rows = [dict(zip(names, row, strict=True)) for row in _rows(figures)]
    return json.dumps({"rows": rows}, allow_nan=False) + "\n"
