"""Tables of samples: one order of response tokens, and a fingerprint that no change escapes."""

import gc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.errors import InputError
from forgetting.rundir import samples as samples_module
from forgetting.rundir.samples import (
    SAMPLE_SCHEMA,
    SampleFile,
    Samples,
    list_column,
    lists,
    read_table,
    rows_in_parts,
    write_table,
)

IDS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
LABELS = [[-100, 6, -100, 8], [-100, 10], [-100, -100, -100]]


@pytest.fixture
def samples():
    return Samples.from_lists(IDS, LABELS)


def test_response_tokens_come_left_to_right_sample_by_sample(samples):
    assert samples.response_ids.tolist() == [6, 8, 10]
    assert samples.response_starts.tolist() == [0, 2, 3, 3]
    assert samples.num_response_tokens.tolist() == [2, 1, 0]
    assert samples.lengths.tolist() == [4, 2, 3]
    assert samples.per_response_token(np.array([1, 2, 3])).tolist() == [1, 1, 2]


def test_a_first_token_is_no_response_since_nothing_predicts_it():
    samples = Samples.from_lists([[5, 6]], [[5, 6]])
    assert samples.response_ids.tolist() == [6]


def test_aligned_puts_each_value_at_its_token(samples):
    rows = samples.aligned(np.array([1, -1, 2], np.int8)).to_pylist()
    assert rows == [[0, 1, 0, -1], [0, 2], [0, 0, 0]]


rows = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=6), max_size=6
)


@given(rows)
def test_aligned_values_are_read_back_in_order(sample_rows):
    ids = [[token for token, _ in row] for row in sample_rows]
    labels = [[token if is_label else -100 for token, is_label in row] for row in sample_rows]
    samples = Samples.from_lists(ids, labels)
    expected = [
        token for row in sample_rows for i, (token, is_label) in enumerate(row) if is_label and i
    ]
    assert samples.response_ids.tolist() == expected
    aligned = samples.aligned(np.arange(len(expected), dtype=np.int64), fill=-1)
    flat = [value for row in aligned.to_pylist() for value in row]
    assert [value for value in flat if value >= 0] == list(range(len(expected)))
    assert [len(row) for row in aligned.to_pylist()] == [len(row) for row in ids]


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=4), max_size=5))
def test_lists_is_the_inverse_of_list_column(given_rows):
    table = pa.table({"values": pa.array(given_rows, pa.list_(pa.float32()))})
    values, starts = list_column(table, "values")
    assert lists(values, starts).to_pylist() == table["values"].to_pylist()


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ([[5, 6, 7, 8], [9, 10], [11, 12, 14]], LABELS),
        (IDS, [[-100, 6, 7, 8], [-100, 10], [-100, -100, -100]]),
        ([[5, 6, 7], [8, 9, 10], [11, 12, 13]], [[-100, 6, -100], [8, -100, 10], [-100] * 3]),
    ],
)
def test_a_changed_token_label_or_boundary_changes_the_fingerprint(samples, ids, labels):
    assert Samples.from_lists(ids, labels).fingerprint != samples.fingerprint
    assert Samples.from_lists(IDS, LABELS).fingerprint == samples.fingerprint


def test_other_sample_ids_change_the_fingerprint(samples):
    renamed = samples.table.set_column(0, "sample_id", pa.array([0, 2, 1]))
    assert Samples(renamed).fingerprint != samples.fingerprint


def test_noise_is_known_only_if_it_is_for_every_sample(samples):
    assert samples.noise() is None
    flags = pa.array([[0, 1], [1], []], pa.list_(pa.int8()))
    column = samples.table.schema.get_field_index("noise")
    known = Samples(samples.table.set_column(column, "noise", flags))
    assert known.noise().tolist() == [False, True, True]
    partly = pa.array([[0, 1], None, []], pa.list_(pa.int8()))
    assert Samples(samples.table.set_column(column, "noise", partly)).noise() is None


def test_weights_are_one_unless_a_sample_has_its_own(samples):
    assert samples.weights.tolist() == [1.0] * samples.response_ids.size
    lengths = samples.num_response_tokens.tolist()
    rows = samples.table.to_pylist()
    rows[1] = {**rows[1], "weights": [0.5] * lengths[1], "is_negative": True}
    weighted = Samples(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    expected = np.repeat([0.5 if row == 1 else 1.0 for row in range(len(rows))], lengths)
    assert weighted.weights.tolist() == expected.tolist()
    assert np.flatnonzero(weighted.is_negative).tolist() == [1]
    # They say how tokens are learned, not which they are.
    assert weighted.fingerprint == samples.fingerprint


def test_a_split_may_have_no_samples():
    samples = Samples(SAMPLE_SCHEMA.empty_table())
    assert len(samples) == 0
    assert samples.response_ids.tolist() == []
    assert samples.noise() is None
    assert samples.fingerprint == Samples.from_lists([], []).fingerprint


def test_lists_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="2 samples, but labels for 1"):
        Samples.from_lists([[1], [2]], [[1]])
    with pytest.raises(ValueError, match="sample 1 has 2 tokens and 1 labels"):
        Samples.from_lists([[1], [2, 3]], [[1], [2]])
    with pytest.raises(ValueError, match="sample 0 has 0 tokens"):
        Samples.from_lists([[]], [[]])


def test_a_table_comes_back_as_it_was_written(tmp_path, samples):
    write_table(samples.table, tmp_path / "train.parquet")
    again = Samples.read(tmp_path / "train.parquet")
    assert again.table == samples.table
    assert again.fingerprint == samples.fingerprint


def test_a_table_of_other_tokens_is_refused(tmp_path, samples):
    path = tmp_path / "scores.parquet"
    write_table(samples.table, path, samples.fingerprint)
    assert read_table(path, samples.fingerprint).num_rows == 3
    with pytest.raises(InputError, match=r"scores\.parquet belongs to other tokens"):
        read_table(path, "0" * 64)
    write_table(samples.table, path)
    with pytest.raises(InputError, match="fingerprint missing"):
        read_table(path, samples.fingerprint)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and then nothing"])
def test_a_missing_or_broken_table_is_named(tmp_path, content):
    path = tmp_path / "train.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"train\.parquet"):
        read_table(path)


def test_a_write_that_fails_leaves_the_old_table(tmp_path, samples, monkeypatch):
    path = tmp_path / "train.parquet"
    write_table(samples.table, path)
    before = path.read_bytes()

    def fail(table, where, **options):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write_table(samples.table, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["train.parquet"]


def test_a_range_of_a_file_is_that_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(samples_module, "ROWS_PER_GROUP", 3)
    random = np.random.default_rng(0)
    ids = [random.integers(0, 50, random.integers(1, 6)).tolist() for _ in range(11)]
    whole = Samples.from_lists(ids, ids)
    path = tmp_path / "train.parquet"
    write_table(whole.table, path)
    file = SampleFile(path)
    assert pq.ParquetFile(path).metadata.num_row_groups == 4
    assert len(file) == 11
    assert file.fingerprint == whole.fingerprint
    for begin, end in [(0, 11), (0, 3), (2, 4), (3, 9), (4, 5), (10, 11)]:
        part = file.read(begin, end)
        assert part.table.to_pylist() == whole.table.slice(begin, end - begin).to_pylist()
        first, last = whole.response_starts[[begin, end]]
        assert part.response_ids.tolist() == whole.response_ids[first:last].tolist()


def test_a_file_without_samples_has_the_fingerprint_of_none(tmp_path):
    nothing = Samples.from_lists([], [])
    write_table(nothing.table, tmp_path / "train.parquet")
    file = SampleFile(tmp_path / "train.parquet")
    assert len(file) == 0
    assert file.fingerprint == nothing.fingerprint


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"train.parquet cannot be read"):
        SampleFile(tmp_path / "train.parquet")


@pytest.mark.parametrize("size", [None, 1500])
def test_a_walk_in_parts_holds_as_much_of_a_long_table_as_of_a_short_one(tmp_path, size):
    """As many tokens of a large vocabulary in every row group as a real corpus has."""

    def most_held(num_rows, length=20):
        random = np.random.default_rng(0)
        values = random.integers(0, 100_000, num_rows * length).astype(np.int32)
        column = lists(values, np.arange(0, num_rows * length + 1, length))
        path = tmp_path / f"{num_rows}.parquet"
        write_table(pa.table({"input_ids": column, "labels": column}), path)
        sizes = None if size is None else [size] * (num_rows // size)
        gc.collect()
        before, most, found = pa.total_allocated_bytes(), 0, []
        for part in rows_in_parts(path, ["input_ids", "labels"], sizes):
            most = max(most, pa.total_allocated_bytes() - before)
            found.append(list_column(part, "labels")[0].copy())
        assert np.array_equal(np.concatenate(found), values)
        return most

    assert most_held(36_000) < 1.5 * most_held(9_000)
