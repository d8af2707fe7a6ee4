"""D_train in the form that a trainer takes: one table with the columns of `ForgettingTrainer`.

`trainer_columns` makes the columns from samples and their polarity, `write_stream` writes them to
a file that `datasets` maps into memory. The stage `train` and `forgetting export` both use them,
so what is exported is what was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.rundir.samples import Samples
from forgetting.rundir.selections import TOKENS


def trainer_columns(
    samples: Samples,
    polarity: NDArray[np.int8],
    base_log_probs: NDArray | None = None,
    token_weights: NDArray | None = None,
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The columns that `ForgettingTrainer` reads, with one value per token of a sample.

    Values are zero outside the response.

    Args:
        polarity: shape (response tokens,).
        base_log_probs: of the same shape, for the terms that compare with the base model.
        token_weights: of the same shape, at least 0: weight of each token in the loss. Default: 1.
    """
    columns = {name: samples.table[name] for name in TOKENS}
    columns["polarity"] = samples.aligned(polarity)
    if base_log_probs is not None:
        columns["base_log_probs"] = samples.aligned(base_log_probs)
    if token_weights is not None:
        columns["token_weights"] = samples.aligned(token_weights)
    return columns


def write_stream(tables: Iterable[pa.Table], path: Path) -> None:
    """Write tables to the file that `datasets.Dataset.from_file` maps into memory.

    The file is complete or not there.
    """
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
