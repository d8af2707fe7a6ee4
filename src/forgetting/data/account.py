"""What became of every record of a corpus.

In: records that were read, rejected or used. Out: the counts of each source and split, and a table
of the records that could not be used. Knows nothing about how records become samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from forgetting.config import DataSettings
from forgetting.console import logger
from forgetting.data.alignment import Tokens
from forgetting.data.records import Record, Rejected
from forgetting.data.usage import TrackedFields, example_of, find_template_mark
from forgetting.errors import UnusableRecords
from forgetting.rundir.layout import SPLITS
from forgetting.rundir.samples import IGNORE_INDEX, TableWriter
from forgetting.rundir.stats import DataSummary, SourceCounts, SplitCounts, UnusedKey

REJECTED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("record", pa.int64()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
ROW_GROUP = 1000
MAX_UNUSED_KEYS = 200
"""Paths of unused keys that are counted for each source."""
MAX_SHARE_OF_MARKS = 0.01
"""Share of a source's records with written-out template marks above which there is a warning."""


class Account:
    """Counts of all records, and the list of those that could not be used."""

    def __init__(self, settings: DataSettings, rejected_path: Path) -> None:
        self.settings = settings
        self.sources: dict[str, SourceCounts] = {}
        self.splits = {name: SplitCounts() for name in SPLITS}
        self._suffix = ""
        self._first_marks: dict[str, str] = {}
        self._writer = TableWriter(rejected_path, REJECTED_SCHEMA, ROW_GROUP)

    def __enter__(self) -> Account:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, traceback)

    def turn_to(self, settings: DataSettings, suffix: str) -> None:
        """Count from now on for other settings; a suffix is added to the names of sources."""
        self.settings = settings
        self._suffix = suffix
        self._first_marks.clear()

    def of(self, source: str) -> SourceCounts:
        """The counts of a source."""
        name = f"{source}{self._suffix}"
        return self.sources.setdefault(name, SourceCounts(name))

    def reject(self, record: Rejected) -> None:
        """Count and list a record that cannot be used."""
        rejected = self.of(record.source).rejected
        rejected[record.reason] = rejected.get(record.reason, 0) + 1
        row = {"source": record.source, "reason": record.reason, "detail": record.detail}
        origin = record.origin
        place = {"file": origin.name, "record": origin.record, "line": origin.line}
        self._writer.write({**row, **place})

    def note_unread(self, source: str, fields: TrackedFields) -> None:
        """Count the keys of a record that no reader used."""
        unused = self.of(source).unused_keys
        for path, value in fields.unread():
            if path in unused:
                unused[path].count += 1
            elif len(unused) < MAX_UNUSED_KEYS:
                unused[path] = UnusedKey(1, example_of(value))

    def note_marks(self, record: Record) -> None:
        """Count a record that holds written-out marks of a chat template."""
        found = (find_template_mark(message.content) for message in record.messages)
        mark = next(filter(None, found), None)
        if mark is not None:
            self.of(record.source).template_marks += 1
            self._first_marks.setdefault(record.source, mark)

    def warn(self) -> None:
        """Log what is probably wrong with the sources read so far."""
        for source, mark in self._first_marks.items():
            count = self.of(source)
            if count.template_marks > MAX_SHARE_OF_MARKS * count.read:
                logger.warning(
                    "%s: %d of %d records hold marks of a chat template, such as %s. They are "
                    "trained as ordinary text. If the records are already rendered, split them "
                    "into turns",
                    source,
                    count.template_marks,
                    count.read,
                    mark,
                )

    def take(self, split: str, record: Record, tokens: Tokens, was_cut: bool) -> None:
        """Count a sample, with its tokens as they are written."""
        count, part = self.of(record.source), self.splits[split]
        count.used += 1
        count.cut += was_cut
        count.negatives += record.is_negative
        count.weightless_turns += record.num_weightless_turns
        count.context_turns += tokens.num_context_turns
        count.split_tokens += tokens.num_split_tokens
        count.other_prompts += tokens.has_other_prompt
        part.samples += 1
        for counted in (count, part):
            counted.tokens += len(tokens.input_ids)
            counted.response_tokens += len(tokens.labels) - tokens.labels.count(IGNORE_INDEX)
            counted.weighted_tokens += sum(weight != 1 for weight in tokens.weights or ())

    def num_dropped(self) -> int:
        """Records that were dropped: rejected, duplicates, or with a prompt that is too long."""
        return sum(
            sum(c.rejected.values()) + c.duplicates + c.near_duplicates + c.prompt_too_long
            for c in self.sources.values()
        )

    def summary(
        self,
        end_token_ids: Iterable[int],
        date: str | None = None,
        tokenizer: str | None = None,
    ) -> DataSummary:
        """The counts, as `data/summary.json` holds them.

        Args:
            date: that the chat template read from the clock, ISO 8601.
            tokenizer: its fingerprint.
        """
        return DataSummary(
            max_length=self.settings.max_length,
            sources=list(self.sources.values()),
            splits=self.splits,
            end_token_ids=sorted(end_token_ids),
            date=date,
            tokenizer=tokenizer,
        )


def too_many_rejected(
    source: str, first: Sequence[Rejected], number: int, num_read: int, settings: DataSettings
) -> UnusableRecords:
    """The error of a source with more unusable records than the recipe allows."""
    shown = "\n".join(f"  {record}" for record in first)
    return UnusableRecords(
        f"{number} of the {num_read} records of source {source} cannot be used, more than "
        f"{100 * settings.max_rejected_share:g} %. The first:\n{shown}\n",
        "Fix the records, rename their fields with the source's `fields`, or raise "
        f"data.max_rejected_share ({settings.max_rejected_share:g})",
    )
