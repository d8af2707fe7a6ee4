"""Scores on disk: shards of Parquet, one row a sample, one value a response token.

A shard holds the samples of a range of the corpus, in its order, and carries the fingerprint of
the whole corpus. Its columns are `sample_id` and, for `base` and `reference`, `log_probs`
(float32, nats) and where they were asked for `entropy` (float32, nats, of the whole prediction)
and `rank` (int32, how many tokens of the vocabulary are more probable; 0: greedy). `shards` reads
them. Knows nothing of models or of what the scores are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forgetting.rundir.samples import Samples, list_column, lists, read_table, write_table

MODELS = ("base", "reference")
LOG_PROBS = ("base_log_probs", "reference_log_probs")


def write_scores(
    path: Path,
    samples: Samples,
    rows: NDArray[np.integer],
    columns: dict[str, NDArray[Any]],
    fingerprint: str,
) -> None:
    """Write what one model makes of some of a range of samples.

    Args:
        rows: which of `samples`, in order.
        columns: by name, without the model's; each of shape (response tokens of these,).
        fingerprint: of the whole corpus.
    """
    starts = np.r_[0, np.cumsum(samples.num_response_tokens[rows])]
    table = pa.table(
        {
            "sample_id": samples.sample_ids[rows],
            **{name: lists(values, starts) for name, values in columns.items()},
        }
    )
    write_table(table, path, fingerprint)


def join_scores(base: Path, references: Sequence[Path], path: Path, fingerprint: str) -> int:
    """Put what the models make of the same samples side by side; gives the response tokens.

    Args:
        base: a file of `write_scores`, whose samples are those of the shard, in its order.
        references: such files, which together hold the same samples.
    """
    untrained = read_table(base, fingerprint)
    tuned = pa.concat_tables(read_table(part, fingerprint) for part in references)
    tuned = tuned.take(pc.index_in(untrained["sample_id"], tuned["sample_id"]))
    columns = {"sample_id": untrained["sample_id"]}
    for model, table in zip(MODELS, (untrained, tuned), strict=True):
        columns |= {f"{model}_{name}": table[name] for name in table.column_names[1:]}
    joined = pa.table(columns)
    write_table(joined, path, fingerprint)
    _, starts = list_column(joined, LOG_PROBS[0])
    return int(starts[-1])


def shard_name(index: int, num_shards: int) -> str:
    """File name of a shard."""
    return f"scores-{index:05d}-of-{num_shards:05d}.parquet"
