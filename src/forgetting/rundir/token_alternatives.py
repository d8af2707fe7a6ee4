"""What a model expects in the place of bad tokens of D_train: Parquet shards, one row per token.

A shard holds the tokens of the samples in the shard of the scores with the same number, in order,
and carries the fingerprint of D_train. A row has the sample's id, the token's position among the
sample's response tokens, the ids of the K most likely other tokens and their log-probabilities, and
the log-probability of all remaining tokens together. The token itself is taken out and the rest
renormalized. Ids are int32, log-probabilities float16, in nats: a relative error of a probability
of at most 0.4 % above e^-16.

`write_alternatives` writes what one model makes of some samples, `join_alternatives` puts models
side by side, and `read_alternatives` reads a shard and refuses what does not fit its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.rundir.samples import Samples, list_column, lists, read_table, write_table

AGAIN = "Look for them again with `forgetting alternatives`"


@dataclass(frozen=True)
class TokenAlternatives:
    """Alternatives of some response tokens of some samples."""

    tokens: NDArray[np.int64]
    """Which tokens: places among all response tokens of the samples, ascending, shape (tokens,)."""
    ids: NDArray[np.int32]
    """Most likely first, shape (tokens, K)."""
    log_probs: NDArray[np.float32]
    """Log-probabilities of the K tokens in nats and, last, of all remaining tokens together, shape
    (tokens, K + 1)."""


def write_alternatives(
    path: Path, samples: Samples, alternatives: TokenAlternatives, fingerprint: str
) -> None:
    """Write the alternatives of tokens of some samples.

    Args:
        fingerprint: of D_train.
    """
    tokens = alternatives.tokens
    row = np.searchsorted(samples.response_starts, tokens, side="right") - 1
    starts = alternatives.ids.shape[1] * np.arange(len(tokens) + 1)
    table = pa.table(
        {
            "sample_id": samples.sample_ids[row],
            "position": (tokens - samples.response_starts[row]).astype(np.int32),
            "ids": lists(alternatives.ids.ravel(), starts),
            "log_probs": lists(alternatives.log_probs[:, :-1].ravel().astype(np.float16), starts),
            "log_rest": alternatives.log_probs[:, -1].astype(np.float16),
        }
    )
    write_table(table, path, fingerprint)


def join_alternatives(files: Sequence[Path], samples: Samples, path: Path, fingerprint: str) -> int:
    """Write a shard from the files of all models; returns its number of tokens.

    Args:
        files: of `write_alternatives`.
        samples: of the shard.
        fingerprint: of D_train.
    """
    table = pa.concat_tables(read_table(file, fingerprint) for file in files)
    order = np.argsort(_tokens(path, table, samples), kind="stable")
    write_table(table.take(pa.array(order)), path, fingerprint)
    return int(table.num_rows)


def read_alternatives(path: Path, samples: Samples, fingerprint: str) -> TokenAlternatives:
    """Read a shard.

    Args:
        samples: of the shard.
        fingerprint: of D_train.

    Raises:
        InputError: the shard is missing or damaged, or belongs to other tokens.
    """
    table = read_table(path, fingerprint)
    tokens = _tokens(path, table, samples)
    ids, id_starts = list_column(table, "ids")
    log_probs, starts = list_column(table, "log_probs")
    log_rest = table["log_rest"].to_numpy()
    count = len(tokens)
    width = int(id_starts[1]) if count else 0
    expected = width * np.arange(count + 1)
    fits = np.array_equal(id_starts, expected) and np.array_equal(starts, expected)
    if not fits or not np.isfinite(log_probs).all() or not np.isfinite(log_rest).all():
        raise InputError(
            f"{path} does not hold as many log-probabilities as tokens in each row. {AGAIN}"
        )
    if (np.diff(tokens) <= 0).any():
        raise InputError(f"{path} does not hold its tokens in order. {AGAIN}")
    whole = np.c_[log_probs.reshape(count, width), log_rest].astype(np.float32)
    return TokenAlternatives(tokens, ids.reshape(count, width), whole)


def _tokens(path: Path, table: pa.Table, samples: Samples) -> NDArray[np.int64]:
    """The place of each row's token among the response tokens of the samples."""
    own = samples.sample_ids
    order = np.argsort(own)
    sample_ids, positions = table["sample_id"].to_numpy(), table["position"].to_numpy()
    found = np.searchsorted(own[order], sample_ids).clip(max=len(own) - 1)
    rows = order[found]
    counts = samples.num_response_tokens[rows]
    wrong = (own[rows] != sample_ids) | (positions < 0) | (positions >= counts)
    if wrong.any():
        sample = sample_ids[np.flatnonzero(wrong)[0]]
        raise InputError(f"{path} holds a token of sample {sample} that D_train lacks. {AGAIN}")
    return samples.response_starts[rows] + positions
