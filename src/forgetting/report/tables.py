"""The tables of the report, for people and as CSV.

Input: what was read and counted. Output: tables whose cells have a text and the values behind
it. A CSV holds the values, unrounded and without units. Knows no HTML.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from forgetting.escaping import visible
from forgetting.method.tally import PolarityCounts
from forgetting.report.counts import Ints, Negatives, SplitLengths
from forgetting.rundir import layout
from forgetting.rundir.selections import ExtremeSample, SelectionSummary
from forgetting.rundir.stats import DataSummary, StageCost

DASH = "–"
Value = str | int | float | None


@dataclass(frozen=True)
class TableColumn:
    """A column of a table."""

    title: str
    names: tuple[str, ...]
    """Names of its columns in a CSV; none if it repeats another column."""
    is_text: bool = False


@dataclass(frozen=True)
class TableCell:
    """The text that is shown, and the values in a CSV: one for each of the column's names."""

    text: str
    values: tuple[Value, ...]
    is_best: bool = False
    spread: str = ""
    """Shown below the text, smaller: an interval or a standard error."""
    parts: Sequence[tuple[str, bool]] = ()
    """Parts of the text, and whether each is marked; empty if no part is."""


@dataclass(frozen=True)
class Table:
    """A table. Its first column names the rows."""

    key: str
    """Unique in the page; also the name of the CSV file."""
    caption: str
    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[TableCell]]
    note: str = ""

    def to_csv(self) -> str:
        """A header and one line per row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([name for column in self.columns for name in column.names])
        for row in self.rows:
            writer.writerow([_plain(value) for cell in row for value in cell.values])
        return text.getvalue()

    @property
    def csv_link(self) -> str:
        """A data URL with the CSV."""
        return f"data:text/csv;charset=utf-8,{quote(self.to_csv())}"


def _plain(value: Value) -> Value:
    """Text that a spreadsheet does not run as a formula."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if re.match(r"[=+\-@\t\r].", text, re.DOTALL) else text


def text_column(title: str) -> TableColumn:
    """A column of text."""
    return TableColumn(title, (title,), is_text=True)


def column(title: str, name: str | None = None) -> TableColumn:
    """A column of numbers. `name` is its name in a CSV, by default the title."""
    return TableColumn(title, (name or title,))


def text(value: str) -> TableCell:
    """A text."""
    return TableCell(value, (value,))


def marked_text(parts: Sequence[tuple[str, bool]]) -> TableCell:
    """A text with marked parts. In a CSV, double brackets enclose them."""
    plain = "".join(part for part, _ in parts)
    in_file = "".join(f"⟦{part}⟧" if is_marked else part for part, is_marked in parts)
    return TableCell(plain, (in_file,), parts=parts)


def count(number: int | None) -> TableCell:
    """A whole number."""
    return TableCell(DASH if number is None else f"{number:,}", (number,))


def decimals(number: float | None, digits: int = 3) -> TableCell:
    """A number."""
    return TableCell(DASH if number is None else f"{number:.{digits}f}", (number,))


def percent(share: float | None) -> TableCell:
    """A share of 1, shown in percent."""
    return TableCell(DASH if share is None else f"{100 * share:.1f}%", (share,))


def memory(size: int | None) -> TableCell:
    """A number of bytes."""
    return TableCell(DASH if size is None else f"{size / 2**30:.2f} GiB", (size,))


def duration(seconds: float) -> TableCell:
    """A number of seconds."""
    if seconds < 60:
        return TableCell(f"{seconds:.1f} s", (seconds,))
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    shown = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
    return TableCell(shown, (seconds,))


def token_text(value: str) -> str:
    """A token's text with visible spaces and line breaks."""
    return value.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥") or "(no text)"


def noise_rows(selections: Sequence[SelectionSummary]) -> Table:
    """How well quality finds known noise, for each variant."""
    known = [(s.variant, s.noise) for s in selections if s.noise is not None]
    recalls = {name: {kind.kind: kind.recall for kind in n.by_kind} for name, n in known}
    kinds = sorted({kind for recall in recalls.values() for kind in recall})
    rows = [
        [
            text(variant),
            count(noise.num_noisy),
            percent(noise.share_noisy),
            decimals(noise.auroc),
            decimals(noise.average_precision),
            percent(noise.precision),
            percent(noise.recall),
            percent(noise.precision_negative),
            *(percent(recalls[variant].get(kind)) for kind in kinds),
        ]
        for variant, noise in known
    ]
    if known:
        noise = known[0][1]
        share = percent(noise.share_noisy)
        chance = [text("chance"), count(noise.num_noisy), share, decimals(0.5)]
        chance += [decimals(noise.share_noisy), share, percent(None), share]
        rows.append([*chance, *(percent(None) for _ in kinds)])
    titles = ["noisy tokens", "share noisy", "AUROC", "average precision", "precision", "recall"]
    return Table(
        "known-noise",
        "Known noise among the tokens that are not learned",
        [
            text_column("variant"),
            *map(column, titles),
            column("precision, negative"),
            *(column(f"recall, {kind}") for kind in kinds),
        ],
        rows,
        "AUROC and average precision rank all tokens by quality, lowest first. Precision and "
        "recall are those of the tokens that are not learned; “precision, negative” is that of the "
        "negative tokens.",
    )


def selection_rows(selections: Sequence[SelectionSummary]) -> Table:
    """What each variant selects, and how."""
    rows = []
    for s in selections:
        how = f"{s.granularity}, {s.threshold_kind if s.by == 'quality' else s.by}"
        how += ", by source" if s.balance == "source" else ""
        counts = (s.num_positive, s.num_negative, s.num_ignored)
        rows.append(
            [
                text(s.variant),
                text(s.quality),
                text(how),
                decimals(s.rho, 2),
                decimals(s.threshold),
                *map(count, counts),
                percent(s.auto_rho),
            ]
        )
    columns = [text_column("variant"), text_column("quality"), text_column("selected by")]
    titles = ("rho", "threshold", "learned", "negative", "ignored", "quality > 0")
    return Table("chosen", "Response tokens by variant", [*columns, *map(column, titles)], rows)


def negative_shares(
    key: str, caption: str, heading: str, rows: Mapping[str, Mapping[str, tuple[int, int]]]
) -> Table:
    """Negative tokens by group and variant.

    Args:
        rows: (tokens, negative tokens) by group and variant.
    """
    variants = list(dict.fromkeys(variant for row in rows.values() for variant in row))
    columns = [text_column(heading), column("tokens")]
    columns += [TableColumn(v, (f"{v}: negative", f"{v}: share")) for v in variants]
    cells = []
    for group, row in rows.items():
        line = [text(group), count(max((number for number, _ in row.values()), default=None))]
        for variant in variants:
            number, negative = row.get(variant, (0, 0))
            share = negative / number if number else None
            line.append(TableCell(percent(share).text, (negative, share)))
        cells.append(line)
    return Table(key, caption, columns, cells, "Share of the group's tokens that are negative.")


def shares_by_source(
    selections: Sequence[SelectionSummary],
) -> dict[str, dict[str, tuple[int, int]]]:
    """(tokens, negative tokens) by source and variant, largest source first."""
    return _by_group(
        {s.variant: {c.source: c for c in s.by_source} for s in selections}, largest_first=True
    )


def shares_by_position(
    selections: Sequence[SelectionSummary],
) -> dict[str, dict[str, tuple[int, int]]]:
    """(tokens, negative tokens) by variant and bin of positions, named by its first position."""
    bins = {s.variant: {str(c.start): c for c in s.by_position} for s in selections}
    return _by_group(bins)


def shares_by_type(negatives: Mapping[str, Negatives]) -> dict[str, dict[str, tuple[int, int]]]:
    """(tokens, negative tokens) by token type and variant."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for variant, counted in negatives.items():
        for name, share in counted.by_type.items():
            found.setdefault(name, {})[variant] = (share.num_tokens, share.num_negative)
    return found


def _by_group(
    by_variant: Mapping[str, Mapping[str, PolarityCounts]], *, largest_first: bool = False
) -> dict[str, dict[str, tuple[int, int]]]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for variant, groups in by_variant.items():
        for group, counts in groups.items():
            found.setdefault(group, {})[variant] = (counts.num_tokens, counts.num_negative)
    if not largest_first:
        return found
    sizes = {group: max(number for number, _ in row.values()) for group, row in found.items()}
    return {group: found[group] for group in sorted(found, key=lambda g: (-sizes[g], g))}


def token_rows(variant: str, negatives: Negatives) -> Table:
    """The tokens that are most often negative."""
    rows = []
    for token in negatives.most_frequent:
        number, negative = token.count.num_tokens, token.count.num_negative
        shown = [text(token_text(token.text)), TableCell(str(token.token_id), (token.token_id,))]
        rows.append([*shown, count(number), count(negative), percent(negative / number)])
    titles = ("id", "in responses", "negative", "share negative")
    return Table(
        "tokens",
        f"Tokens that are most often negative in {variant}",
        [text_column("token"), *map(column, titles)],
        rows,
        "␣ is a space, ↵ a line break, � part of a character.",
    )


def sample_rows(
    title: str, samples: Sequence[ExtremeSample], quality: str, previews: Mapping[int, str]
) -> Table:
    """Samples with extreme mean quality.

    Args:
        previews: beginning of the response by sample id.
    """
    rows = [
        [
            TableCell(str(sample.sample_id), (sample.sample_id,)),
            text(sample.source),
            decimals(sample.mean_quality),
            count(sample.num_tokens),
            text(previews.get(sample.sample_id, DASH)),
        ]
        for sample in samples
    ]
    titles = ("mean quality", "response tokens")
    left, right = [text_column("sample"), text_column("source")], text_column("response")
    return Table(
        f"{title}-samples",
        f"Samples with the {title} mean quality ({quality})",
        [*left, *map(column, titles), right],
        rows,
    )


def split_rows(data: DataSummary) -> Table:
    """The parts of the corpus."""
    rows = [
        [text(name), *map(count, (split.samples, split.tokens, split.response_tokens))]
        for name in layout.SPLITS
        if (split := data.splits.get(name)) is not None
    ]
    titles = ("samples", "tokens", "response tokens")
    return Table("splits", "Parts of the corpus", [text_column("part"), *map(column, titles)], rows)


def source_rows(splits: Sequence[SplitLengths]) -> Table:
    """Samples and tokens of each source, for each part of the corpus."""
    names = sorted({source for split in splits for source in split.by_source})
    rows = []
    for name in names:
        row = [text(name)]
        for split in splits:
            found = split.by_source.get(name)
            numbers = (found.num_samples, found.num_tokens) if found else (None, None)
            row += map(count, numbers)
        rows.append(row)
    columns = [
        column(f"{split.name}: {what}") for split in splits for what in ("samples", "tokens")
    ]
    return Table("sources", "Samples and tokens by source", [text_column("source"), *columns], rows)


def length_rows(splits: Sequence[SplitLengths]) -> Table:
    """Median, 95th percentile and maximum of the lengths."""
    rows = []
    for split in splits:
        if len(split.lengths):
            figures = [_quantiles(a) for a in (split.lengths, split.response_lengths)]
            rows.append([text(split.name), *map(count, figures[0] + figures[1])])
    columns = [
        column(f"{what}: {figure}")
        for what in ("sample", "response")
        for figure in ("median", "95th percentile", "longest")
    ]
    return Table("lengths", "Lengths in tokens", [text_column("part"), *columns], rows)


def _quantiles(lengths: Ints) -> list[int]:
    return [int(q) for q in np.quantile(lengths, (0.5, 0.95, 1.0), method="inverted_cdf")]


def record_rows(data: DataSummary) -> Table:
    """What happened to the records of each source."""
    rows = []
    for source in data.sources:
        reasons = ", ".join(f"{why} ({n:,})" for why, n in sorted(source.rejected.items()))
        numbers = (
            source.read,
            source.used,
            source.duplicates + source.near_duplicates,
            source.prompt_too_long,
            source.cut,
            sum(source.rejected.values()),
        )
        rows.append(
            [text(source.name), *map(count, numbers), TableCell(reasons or DASH, (reasons,))]
        )
    titles = ("read", "used", "duplicates", "prompt too long", "cut", "rejected")
    return Table(
        "records",
        "What happened to the records",
        [text_column("source"), *map(column, titles), text_column("reasons")],
        rows,
        f"Samples longer than {data.max_length:,} tokens are cut. Records that were neither used "
        "nor dropped for one of these reasons were not needed.",
    )


def cost_rows(stages: Sequence[StageCost]) -> Table:
    """The cost of each stage, and the total."""
    has_device = any(stage.peak_device_memory_bytes is not None for stage in stages)
    peaks = [s.peak_memory_bytes for s in stages]
    rows = []
    for stage in stages:
        cells = [text(stage.name), duration(stage.seconds), count(stage.num_tokens)]
        cells.append(memory(stage.peak_memory_bytes))
        rows.append([*cells, *([memory(stage.peak_device_memory_bytes)] if has_device else [])])
    total = [text("total"), duration(sum(stage.seconds for stage in stages)), count(None)]
    total.append(memory(max(peaks, default=None)))
    if has_device:
        devices = [s.peak_device_memory_bytes or 0 for s in stages]
        total.append(memory(max(devices, default=None)))
    columns = [text_column("stage"), column("time", "seconds"), column("tokens")]
    columns.append(column("peak memory", "peak memory, bytes"))
    if has_device:
        columns.append(column("peak on accelerators", "peak on accelerators, bytes"))
    return Table(
        "costs",
        "Time, tokens and memory",
        columns,
        [*rows, total],
        "Tokens include prompts and count once per pass. For an evaluation, they are the tokens of "
        "the held-out samples. Memory is the peak of the main process.",
    )
