"""The probe: copies of D_train records with planted noise, as samples, and their scores.

`PlantedWriter` writes the samples, `planted_file` and `scored_copies` read them. All carry the
fingerprint of D_train, from whose records the copies were made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.method.corruptions import CLEAN
from forgetting.rundir import layout
from forgetting.rundir.samples import (
    FINGERPRINT_KEY,
    ROWS_PER_GROUP,
    SAMPLE_SCHEMA,
    SampleFile,
    TableWriter,
    check_fingerprint,
    list_column,
    rows_in_parts,
)
from forgetting.rundir.scores import ScoredSamples

PLANTED_SCHEMA = SAMPLE_SCHEMA.append(pa.field("copy_of", pa.int64()))
"""Samples whose noise was planted: `noise` flags the tokens, `noise_kind` names the corruption.
`copy_of` is the sample_id of the record in D_train."""


class PlantedWriter(TableWriter):
    """Writes copies by groups of rows; the file is whole or not there.

    Args:
        path: the file, see `layout.probe_file`.
        fingerprint: of D_train.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        schema = PLANTED_SCHEMA.with_metadata({FINGERPRINT_KEY: fingerprint.encode()})
        super().__init__(path, schema, ROWS_PER_GROUP)

    def write(self, row: dict[str, Any]) -> None:
        """Write a row of `PLANTED_SCHEMA`."""
        super().write(row)


def planted_file(probe: Path, fingerprint: str) -> SampleFile:
    """The copies in the folder of the probe.

    Args:
        fingerprint: of D_train.

    Raises:
        InputError: the copies are missing or damaged, or were made of other records.
    """
    file = layout.probe_file(probe)
    check_fingerprint(file, fingerprint)
    return SampleFile(file)


def scored_copies(run: Path, fingerprint: str) -> ScoredSamples:
    """The copies of a run with their scores.

    Args:
        fingerprint: of D_train.

    Raises:
        InputError: as `planted_file` and `ScoredSamples`.
    """
    probe = layout.probe_dir(run)
    own = planted_file(probe, fingerprint).fingerprint
    return ScoredSamples(layout.probe_file(probe), probe, own, stage="probe")


def token_kinds(table: pa.Table) -> NDArray[np.str_]:
    """Name of the corruption of each response token, `clean` where nothing was planted.

    Args:
        table: copies, with the columns `noise` and `noise_kind`.
    """
    flags, starts = list_column(table, "noise")
    kinds = np.array([kind or CLEAN for kind in table["noise_kind"].to_pylist()], dtype=str)
    return np.where(flags.astype(bool), np.repeat(kinds, np.diff(starts)), CLEAN)


def copies_of(samples: SampleFile) -> NDArray[np.int64]:
    """The sample_id of the record that each copy was made of, shape (copies,)."""
    parts = [part["copy_of"].to_numpy() for part in rows_in_parts(samples.path, ["copy_of"])]
    return np.concatenate([np.zeros(0, np.int64), *parts])
