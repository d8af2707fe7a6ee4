"""Scores on disk: shards of Parquet, one row a sample, one value a response token.

A shard holds the samples of a range of the corpus, in its order, and carries the fingerprint of
the whole corpus. Its columns are `sample_id` and, for `base` and `reference`, `log_probs`
(float32, nats) and where they were asked for `entropy` (float32, nats, of the whole prediction)
and `rank` (int32, how many tokens of the vocabulary are more probable; 0: greedy). Knows nothing
of models or of what the scores are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forgetting.data.samples import Samples, list_column, lists, read_table, write_table
from forgetting.errors import InputError

MODELS = ("base", "reference")
LOG_PROBS = ("base_log_probs", "reference_log_probs")
AGAIN = "Score again with `forgetting score`"


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


def read_scores(
    run: Path, samples: Samples, columns: Sequence[str] = LOG_PROBS
) -> tuple[NDArray[Any], ...]:
    """Columns of all shards, one array each, in the one order of response tokens.

    Args:
        run: the run directory.
        samples: those of `data/train.parquet`.

    Raises:
        InputError: a shard or a column is missing, a shard belongs to other tokens or holds other
            samples, or a number is not finite; the message names the shard, and the sample where
            there is one.
    """
    fingerprint = samples.fingerprint
    counts, sample_ids = samples.num_response_tokens, samples.sample_ids
    arrays: list[NDArray[Any]] = []
    num_samples = num_tokens = 0
    for file in _shards(run / "scores"):
        table = read_table(file, fingerprint)
        found = table["sample_id"].to_numpy()
        expected = sample_ids[num_samples : num_samples + len(found)]
        if not np.array_equal(found, expected):
            raise InputError(f"{file} does not hold the samples of data/train.parquet. {AGAIN}")
        for place, name in enumerate(columns):
            if name not in table.column_names:
                raise InputError(f"{file} has no {name}. {AGAIN}")
            values, starts = list_column(table, name)
            expected_counts = counts[num_samples : num_samples + len(found)]
            different = np.flatnonzero(np.diff(starts) != expected_counts)
            if different.size:
                row = int(different[0])
                raise InputError(
                    f"{file}: {name} of sample {found[row]} has {starts[row + 1] - starts[row]} "
                    f"values for {expected_counts[row]} response tokens. {AGAIN}"
                )
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                row = int(np.searchsorted(starts, bad[0], side="right")) - 1
                raise InputError(
                    f"{file}: {name} of sample {found[row]} holds {values[bad[0]]}. {AGAIN}"
                )
            if len(arrays) == place:
                arrays.append(np.empty(int(counts.sum()), dtype=values.dtype))
            arrays[place][num_tokens : num_tokens + values.size] = values
        num_samples += len(found)
        num_tokens += int(expected_counts.sum())
    if num_samples != len(samples):
        raise InputError(
            f"{run / 'scores'} holds {num_samples} of the {len(samples)} samples of "
            f"data/train.parquet. {AGAIN}"
        )
    return tuple(arrays)


def _shards(folder: Path) -> list[Path]:
    files = sorted(folder.glob("scores-*-of-*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no scores. {AGAIN}")
    num_shards = int(files[0].stem.rsplit("-", 1)[1])
    expected = [folder / shard_name(index, num_shards) for index in range(num_shards)]
    missing = [file.name for file in expected if file not in files]
    if missing or len(files) != num_shards:
        which = f", without {missing[0]}" if missing else ""
        raise InputError(f"{folder} holds {len(files)} of {num_shards} shards{which}. {AGAIN}")
    return files
