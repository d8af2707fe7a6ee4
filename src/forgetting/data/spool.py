"""Records in a scratch file.

In: records, one after the other. Out: the same records, in any order. Knows nothing about what
the records are for.
"""

from __future__ import annotations

from array import array
from pathlib import Path

from forgetting.data.records import Record


class Spool:
    """Records in a scratch file, read back in any order. Only their positions are in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._ends = array("q", [0])
        self.source_index = array("l")
        """Index of each record's source in the recipe."""
        self.is_negative = array("b")
        """Whether each record is one to forget."""
        self.copies = array("l")
        """How often each record was read, duplicates included."""

    def __len__(self) -> int:
        return len(self.copies)

    def append(self, record: Record, source_index: int) -> None:
        """Append a record."""
        self._ends.append(self._ends[-1] + self._file.write(record.dump()))
        self.source_index.append(source_index)
        self.is_negative.append(record.is_negative)
        self.copies.append(1)

    def __getitem__(self, index: int) -> Record:
        begin, end = self._ends[index], self._ends[index + 1]
        self._file.seek(begin)
        return Record.load(self._file.read(end - begin))

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)
