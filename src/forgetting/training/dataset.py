"""D_train as a trainer takes it: tokens, labels and the polarity that a variant gave them.

Goes in: a run directory in which `prepare` is done, and `select` and `score` where they are asked
for. Comes out: samples with one polarity, and the scores, for each response token, a part at a
time; and the table of columns that `ForgettingTrainer` reads. The stage `train` and `forgetting
export` both take it from here, so that what is exported is what was trained on. Memory is bounded
by a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.rundir.samples import (
    ROWS_PER_GROUP,
    SampleFile,
    Samples,
    check_fingerprint,
    list_column,
    rows_in_parts,
)
from forgetting.rundir.scores import ScoredCorpus

TOKENS = ("input_ids", "labels")


@dataclass(frozen=True)
class SelectedPart:
    """Some neighbouring samples."""

    samples: Samples
    polarity: NDArray[np.int8]
    """Shape (response tokens of these samples,): +1 learn, -1 forget, 0 ignore."""
    scores: dict[str, NDArray]
    """By name, each of the shape of `polarity`."""


def selected_parts(
    run: Path,
    variant: str | None,
    scores: Sequence[str] = (),
    columns: Sequence[str] = TOKENS,
) -> Iterator[SelectedPart]:
    """D_train's samples in order, with what was selected.

    Args:
        run: the run directory.
        variant: whose selection; None: every response token is positive.
        scores: columns of the shards of scores.
        columns: of the samples, `input_ids` and `labels` among them.

    Raises:
        InputError: selection or scores are missing, broken, or of other tokens.
    """
    train = run / "data" / "train.parquet"
    corpus = ScoredCorpus(run) if scores else None
    sizes = corpus.shard_sizes if corpus else _sizes(len(SampleFile(train)))
    if corpus:
        found = ((s.samples, s.columns) for s in corpus.scores(scores, columns))
    else:
        found = ((table, {}) for table in rows_in_parts(train, columns, sizes))
    if variant is None:
        for table, values in found:
            samples = Samples(table)
            yield SelectedPart(samples, np.ones(samples.response_ids.size, np.int8), values)
        return
    selection = run / "selection" / variant / "polarity.parquet"
    check_fingerprint(selection, corpus.fingerprint if corpus else SampleFile(train).fingerprint)
    chosen = rows_in_parts(selection, ["polarity"], sizes)
    for (table, values), part in zip(found, chosen, strict=True):
        samples = Samples(table)
        polarity, starts = list_column(part, "polarity")
        if not np.array_equal(starts, samples.response_starts):
            raise InputError(
                f"{selection} does not hold one polarity for each response token. Select again "
                "with `forgetting select`"
            )
        yield SelectedPart(samples, polarity, values)


def _sizes(num_samples: int) -> list[int]:
    starts = range(0, num_samples, ROWS_PER_GROUP)
    return [min(ROWS_PER_GROUP, num_samples - start) for start in starts]


def trainer_columns(
    samples: Samples, polarity: NDArray[np.int8], base_log_probs: NDArray | None = None
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The columns that `ForgettingTrainer` reads: each has one value for each token of a sample,
    zero outside the response.

    Args:
        polarity: shape (response tokens,).
        base_log_probs: of the same shape, for the terms that compare with the base model.
    """
    columns = {name: samples.table[name] for name in TOKENS}
    columns["polarity"] = samples.aligned(polarity)
    if base_log_probs is not None:
        columns["base_log_probs"] = samples.aligned(base_log_probs)
    return columns


def write_stream(tables: Iterable[pa.Table], path: Path) -> None:
    """Write tables as the file that `datasets.Dataset.from_file` maps into memory; whole or not
    at all."""
    partial = path.with_name(f".{path.name}.partial")
    writer = None
    try:
        with partial.open("wb") as file:
            for table in tables:
                if writer is None:
                    writer = pa.ipc.new_stream(file, table.schema)
                writer.write_table(table)
            if writer is not None:
                writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
