"""Alternatives of tokens on disk: what is written comes back, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from forgetting.errors import InputError
from forgetting.rundir.samples import Samples, read_table, write_table
from forgetting.rundir.token_alternatives import (
    TokenAlternatives,
    join_alternatives,
    read_alternatives,
    write_alternatives,
)


@pytest.fixture
def samples():
    random = np.random.default_rng(0)
    ids = [random.integers(0, 50, size).tolist() for size in (5, 9, 4, 7)]
    labels = [[-100, -100, *row[2:]] for row in ids]
    return Samples.from_lists(ids, labels, [30, 10, 20, 40])


def some(tokens, num_kept=3):
    random = np.random.default_rng(1)
    tokens = np.asarray(tokens)
    log_probs = np.log(random.dirichlet(np.ones(num_kept + 1), len(tokens))).astype(np.float32)
    ids = random.integers(0, 50, (len(tokens), num_kept)).astype(np.int32)
    return TokenAlternatives(tokens, ids, log_probs)


def test_what_is_written_comes_back_in_half_precision(samples, tmp_path):
    given = some([0, 2, 3, 9, 10, 15])
    write_alternatives(tmp_path / "a.parquet", samples, given, "print")
    found = read_alternatives(tmp_path / "a.parquet", samples, "print")
    assert np.array_equal(found.tokens, given.tokens)
    assert np.array_equal(found.ids, given.ids)
    assert np.array_equal(found.log_probs, given.log_probs.astype(np.float16))
    types = [str(kind) for kind in read_table(tmp_path / "a.parquet").schema.types]
    assert types == [
        "int64",
        "int32",
        "list<element: int32>",
        "list<element: halffloat>",
        "halffloat",
    ]


def test_models_are_joined_in_the_order_of_the_tokens(samples, tmp_path):
    whole = some(range(17))
    halves = []
    # Samples 0 and 3 by one model, the others by another.
    for name, rows in (("b", (1, 2)), ("a", (0, 3))):
        places = np.concatenate(
            [np.arange(samples.response_starts[r], samples.response_starts[r + 1]) for r in rows]
        )
        halves.append(tmp_path / f"{name}.parquet")
        part = TokenAlternatives(places, whole.ids[places], whole.log_probs[places])
        write_alternatives(halves[-1], samples, part, "print")
    joined = tmp_path / "joined.parquet"
    assert join_alternatives(halves, samples, joined, "print") == 17
    found = read_alternatives(joined, samples, "print")
    assert np.array_equal(found.tokens, np.arange(17))
    assert np.array_equal(found.ids, whole.ids)


def test_no_tokens_are_a_shard_too(samples, tmp_path):
    none = TokenAlternatives(
        np.zeros(0, np.int64), np.zeros((0, 0), np.int32), np.zeros((0, 1), np.float32)
    )
    write_alternatives(tmp_path / "a.parquet", samples, none, "print")
    write_alternatives(tmp_path / "b.parquet", samples, some([4]), "print")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert read_alternatives(files[0], samples, "print").tokens.size == 0
    assert join_alternatives(files, samples, tmp_path / "c.parquet", "print") == 1


def changed(table, name, change):
    index = table.column_names.index(name)
    return table.set_column(index, name, pa.array(change(table[name].to_pylist())))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sample_id", lambda ids: [*ids[:-1], 99], "a token of sample 99 that D_train lacks"),
        ("position", lambda places: [*places[:-1], 40], "a token of sample 40 that D_train lacks"),
        ("position", lambda places: [places[1], *places[1:]], "in order"),
        ("ids", lambda rows: [rows[0][:-1], *rows[1:]], "as many log-probabilities as tokens"),
        ("log_rest", lambda values: [float("nan"), *values[1:]], "as many log-probabilities"),
    ],
)
def test_what_does_not_fit_is_refused(samples, tmp_path, name, change, message):
    file = tmp_path / "a.parquet"
    write_alternatives(file, samples, some([0, 1, 2, 16]), "print")
    write_table(changed(read_table(file), name, change), file, "print")
    with pytest.raises(InputError, match=message):
        read_alternatives(file, samples, "print")


def test_alternatives_of_other_tokens_are_refused(samples, tmp_path):
    write_alternatives(tmp_path / "a.parquet", samples, some([0]), "print")
    with pytest.raises(InputError, match="belongs to other tokens"):
        read_alternatives(tmp_path / "a.parquet", samples, "another")
