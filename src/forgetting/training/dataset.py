"""D_train in the form that a trainer takes: one table with the columns of `ForgettingTrainer`.

`trainer_columns` makes the columns from samples and their polarity, `correct_shard` finds what is
learned in the place of bad tokens, and `write_stream` writes the columns to a file that `datasets`
maps into memory. The stage `train` and `forgetting export` both make the columns here, so what is
exported is what was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.method.columns import CORRECTED_FROM
from forgetting.method.measures import not_bad
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples
from forgetting.rundir.selections import TOKENS, SelectedPart
from forgetting.rundir.token_alternatives import AGAIN, TokenAlternatives, read_alternatives


@dataclass(frozen=True)
class Corrections:
    """Which response tokens of some samples are corrected, and by what."""

    weights: NDArray[np.float32]
    """Weight of the cross-entropy to the alternatives, shape (response tokens,); 0: not
    corrected."""
    alternatives: TokenAlternatives
    """What is expected in the place of each token with a weight above 0."""


def correct_shard(
    run: Path,
    fingerprint: str,
    shard: int,
    part: SelectedPart,
    posterior: NDArray[np.float32],
) -> tuple[NDArray[np.float32], Corrections]:
    """Weights of the tokens of a shard, and what is expected in the place of the bad ones.

    Args:
        run: the run directory.
        fingerprint: of D_train.
        shard: number of the shard.
        part: its samples and their polarity.
        posterior: probability that each token is bad, shape (response tokens,).

    Raises:
        InputError: the alternatives are missing or damaged, or belong to other tokens.
    """
    folder = layout.alternatives_dir(run)
    files = layout.alternatives_files(folder)
    if not files:
        raise InputError(f"{folder} holds no alternatives. {AGAIN}")
    file = layout.alternatives_file(folder, shard, layout.num_shards(files[0]))
    found = read_alternatives(file, part.samples, fingerprint)
    weights = np.where(posterior >= CORRECTED_FROM, posterior, np.float32(0))
    if not np.array_equal(found.tokens, np.flatnonzero(weights)):
        raise InputError(f"{file} belongs to another posterior. {AGAIN}")
    # Tokens that are not learned, and weights of turns, count for what replaces a token as well.
    learned = weights * (part.polarity > 0) * part.samples.weights
    return not_bad(weights), Corrections(learned, found)


def trainer_columns(
    samples: Samples,
    polarity: NDArray[np.int8],
    base_log_probs: NDArray | None = None,
    token_weights: NDArray | None = None,
    reference_log_probs: NDArray | None = None,
    corrections: Corrections | None = None,
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The columns that `ForgettingTrainer` reads, with one value per token of a sample.

    Values are zero outside the response.

    Args:
        polarity: shape (response tokens,).
        base_log_probs: of the same shape, for the terms that compare with the base model.
        token_weights: of the same shape, at least 0: weight of each token in the loss. Default: 1.
        reference_log_probs: of the same shape, for the losses that compare with the reference.
        corrections: of tokens to correct. Default: none is.
    """
    columns = {name: samples.table[name] for name in TOKENS}
    columns["polarity"] = samples.aligned(polarity)
    if base_log_probs is not None:
        columns["base_log_probs"] = samples.aligned(base_log_probs)
    if token_weights is not None:
        columns["token_weights"] = samples.aligned(token_weights)
    if reference_log_probs is not None:
        columns["reference_log_probs"] = samples.aligned(reference_log_probs)
    if corrections is not None:
        found = corrections.alternatives
        columns["alternative_weights"] = samples.aligned(corrections.weights)
        columns["alternative_ids"] = _nested(samples, found.tokens, found.ids)
        columns["alternative_log_probs"] = _nested(samples, found.tokens, found.log_probs)
    return columns


def _nested(samples: Samples, tokens: NDArray[np.int64], rows: NDArray) -> pa.ListArray:
    """A list for each token of each sample: that of some response tokens, empty elsewhere."""
    sizes = np.zeros(samples.input_ids.size, dtype=np.int64)
    sizes[np.flatnonzero(samples.is_response)[tokens]] = rows.shape[1]
    inner = pa.ListArray.from_arrays(
        pa.array(np.r_[0, np.cumsum(sizes)], pa.int32()), pa.array(rows.ravel())
    )
    return pa.ListArray.from_arrays(pa.array(samples.token_starts, pa.int32()), inner)


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
