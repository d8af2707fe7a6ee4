"""The results of the noise benchmark: one table, as Markdown, LaTeX and CSV.

Goes in: what came of the cells that are done. Comes out: for each figure its mean and standard
deviation over seeds, and the tables as text. A line is a model or a measure, a column a corpus.
Runs nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.noise.cell import Detection, Outcome
from experiments.noise.design import BASE, Cell
from forgetting.demo.noise import NOISE_KINDS
from forgetting.method import MEASURES
from forgetting.method.metrics import mean_and_deviation
from forgetting.studies import ALL_KINDS, DIVERGED, NO_VALUE, as_latex, as_markdown

ACCURACY, TO_FULL = "accuracy", "accuracy - full"
AUROC, AVERAGE_PRECISION = "AUROC", "average precision"
PRECISION, RECALL = "precision of negatives", "recall of negatives"
SHARE, IGNORED = "share negative", "share ignored"
LOSS, AMONG_WORST, SHARE_OF_TOKENS = "loss", "among the worst 30 %", "share of tokens"
GROUPS = ("right answers", "right answers about new", "other words", "ends", *NOISE_KINDS)
MODELS = (BASE, "reference")
FULL = "full"


@dataclass(frozen=True)
class CellResult:
    """What came of a cell."""

    cell: Cell
    detection: Detection
    outcomes: Mapping[str, Outcome]
    """By variant, and `base`."""


@dataclass(frozen=True, order=True)
class Corpus:
    """Cells that differ in their seed alone."""

    world: str
    reference: str
    rate: float
    kind: str
    """Of the noise; `all`: every kind alike."""


@dataclass(frozen=True)
class Mean:
    """Over seeds."""

    mean: float
    deviation: float | None
    num_seeds: int


@dataclass(frozen=True)
class Figures:
    """Means of all figures, by corpus, figure, who it is of (a model or a measure) and group (of
    the held-out questions, or of the noise)."""

    means: Mapping[tuple[Corpus, str, str, str], Mean]
    num_diverged: Mapping[tuple[Corpus, str], int]
    """Trainings that diverged, by corpus and variant; they are in no mean."""
    names: Sequence[str]
    """Models and measures, in their order."""

    def mean(self, corpus: Corpus, figure: str, of: str, group: str = ALL_KINDS) -> Mean | None:
        """One of them; None where nothing was measured."""
        return self.means.get((corpus, figure, of, group))

    @property
    def corpora(self) -> list[Corpus]:
        """All of them, in order."""
        return sorted({key[0] for key in self.means})


def gather(results: Sequence[CellResult], variants: Sequence[str]) -> Figures:
    """Means over seeds.

    Args:
        variants: their names, in the order in which they are shown.

    Where there is no noise, a clean reference is the noisy one: such cells stand with both.
    """
    values: dict[tuple[Corpus, str, str, str], list[float]] = {}
    num_diverged: dict[tuple[Corpus, str], int] = {}
    references = sorted({result.cell.reference for result in results})
    # No reference model has a part in it, and so it is trained with one of them.
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
    """Figure, of whom, group and value."""
    for name, outcome in result.outcomes.items():
        for group, value in outcome.accuracy.items():
            yield ACCURACY, name, group, value
            # Of the same corpus and seed, so that what both share is in no difference.
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


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    world: str
    reference: str
    figure: str
    of: str
    group: str


def lines(figures: Figures) -> list[Line]:
    """What is shown of the figures: of the held-out questions all, known and new ones, of the noise
    all, and wrong answers against right ones; the losses of groups of tokens."""
    wanted = {
        ACCURACY: (ALL_KINDS, "known", "new", "new_fact"),
        PRECISION: (ALL_KINDS,),
        RECALL: (ALL_KINDS,),
        AUROC: (ALL_KINDS, "answers", "answers about new"),
        AVERAGE_PRECISION: (ALL_KINDS,),
        LOSS: GROUPS,
    }
    found = {
        Line(corpus.world, corpus.reference, figure, of, group)
        for corpus, figure, of, group in figures.means
    }
    names = list(wanted)
    with_new = {line.world for line in found if line.group == "new"}

    def is_shown(line: Line) -> bool:
        # Without new entities all questions are known ones.
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
    """Rate and kind of noise of each column: of all kinds by rate, then of each by itself."""
    found = {(corpus.rate, corpus.kind) for corpus in figures.corpora}
    kinds = [ALL_KINDS, *NOISE_KINDS]
    return sorted(found, key=lambda column: (kinds.index(column[1]), column[0]))


def column_title(rate: float, kind: str) -> str:
    """Such as `20 %`, or `junk phrase 20 %`."""
    words = "" if kind == ALL_KINDS else kind.replace("_", " ") + " "
    return f"{words}{100 * rate:g} %"


def texts(figures: Figures) -> tuple[list[str], list[list[str]], int]:
    """Header and rows as people see them, and how many columns on the left are words."""
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
    """The part that fits on a terminal of 80 columns: means, of accuracy and AUROC, with the noisy
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
    # What is no such figure is a share, in percent.
    scale, digits = (100, 1) if digits is None else (1, digits)
    if is_short:
        return f"{scale * mean.mean:.{digits - 1}f}"
    text = f"{scale * mean.mean:.{digits}f}"
    if mean.deviation is not None:
        text += f" ± {scale * mean.deviation:.{digits}f}"
    return text + (f" ({diverged} diverged)" if diverged else "")


LEGEND = (
    "Mean ± standard deviation over seeds. Accuracy, precision and recall in percent, losses in "
    "nats. Columns: share of the records that are noisy, of all kinds of noise alike or of one "
    "kind. AUROC and average precision are of noise against all clean tokens, but for `answers`: "
    "wrong answers against right ones."
)


def to_markdown(figures: Figures, title: str) -> str:
    """The title, the table and what its signs mean."""
    return f"# {title}\n\n{as_markdown(*texts(figures))}\n\n{LEGEND}\n"


def to_latex(figures: Figures, title: str) -> str:
    """A `table` for the package booktabs."""
    return as_latex(*texts(figures), f"{title}. {LEGEND}")


FIELDS = ("world", "reference", "rate", "noise", "figure", "of", "among")
NUMBERS = ("mean", "deviation", "seeds", "diverged")


def _rows(figures: Figures) -> Iterator[tuple[str | float | None, ...]]:
    """One for every mean, and for every model of which all trainings diverged; shares from 0 to 1,
    None where there is no value."""
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
    """One line for every mean, shares from 0 to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIELDS, *NUMBERS])
    for row in _rows(figures):
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def to_json(figures: Figures) -> str:
    """The same as JSON, one object for every mean."""
    names = (*FIELDS, *NUMBERS)
    rows = [dict(zip(names, row, strict=True)) for row in _rows(figures)]
    return json.dumps({"rows": rows}, allow_nan=False) + "\n"
