"""A record that has no single meaning, or is too large, is rejected; the records around it are
read."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgetting.data.files import TOO_LARGE, Unreadable, read_file
from forgetting.errors import InputError
from tests.data.test_hostile import ORDINARY, build

LIMIT = 200
FIRST, LAST = {"a": 1}, {"a": 2}
LARGE = {
    "text": {"a": "x" * 300},
    "brackets in a text": {"a": '\\"]}[{' * 60},
    "many parts": {"a": [{"b": [n]} for n in range(60)]},
    "two bytes a character": {"a": "é" * 150},
    "a list": ["x" * 300],
    "a text alone": 'x\\"' * 100,
}
TWICE = ['{"a": 1, "a": 2}', '{"a": [{"b": 1, "b": 1}]}', '{"a": {"": 1, "c": 2, "": 3}}']


def written(folder, name, records):
    """A file with some JSON texts as records."""
    path = folder / name
    text = "[" + ",\n".join(records) + "]" if name.startswith("list") else "\n".join(records)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.fixture(params=["list.json", "objects.json", "lines.jsonl", "lines.jsonl.gz"])
def name(request):
    return request.param


@pytest.mark.parametrize("chunk", [1 << 20, 7])
@pytest.mark.parametrize("kind", LARGE)
def test_a_record_that_is_too_large_is_passed_over(tmp_path, monkeypatch, name, kind, chunk):
    monkeypatch.setattr("forgetting.data.files.CHUNK_BYTES", chunk)
    large = json.dumps(LARGE[kind], ensure_ascii=False)
    path = written(tmp_path, name, [json.dumps(FIRST), large, json.dumps(LAST)])
    found = list(read_file(path, max_record_bytes=LIMIT))
    assert found == [(1, FIRST), (2, TOO_LARGE), (3, LAST)]
    kept = list(read_file(path, max_record_bytes=len(large.encode()) + 1))
    assert kept[1] == (2, LARGE[kind])


def test_a_record_without_an_end_is_an_error(tmp_path, name):
    path = written(tmp_path, name, [json.dumps(FIRST), '{"a": "' + "x" * 5000])
    if "json." in f"{name}." and not name.startswith("lines"):
        with pytest.raises(InputError, match="broken JSON at line 2: Unterminated value"):
            list(read_file(path, max_record_bytes=LIMIT))
    else:
        # A line has an end.
        assert list(read_file(path, max_record_bytes=LIMIT)) == [(1, FIRST), (2, TOO_LARGE)]


@pytest.mark.parametrize("name", ["blank.jsonl", "blank.json", "blank.csv"])
def test_a_file_of_blank_lines_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("\n" * 300 + '{"a": 1}\n')
    with pytest.raises(InputError, match="more than 200 bytes"):
        list(read_file(path, max_record_bytes=LIMIT))


def test_a_row_of_a_table_that_is_too_large_is_refused_with_its_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n"' + "x\n" * 300 + '",2\n3,4\n')
    with pytest.raises(InputError, match=r"rows\.csv: the record of line 3 takes more than 200"):
        list(read_file(path, max_record_bytes=LIMIT))
    rows = list(read_file(path, max_record_bytes=700))
    assert [line for line, _ in rows] == [2, 3, 304]


@pytest.mark.parametrize("twice", TWICE)
def test_a_field_that_is_there_twice_rejects_its_record(tmp_path, name, twice):
    path = written(tmp_path, name, [json.dumps(FIRST), twice, json.dumps(LAST)])
    first, (line, found), last = read_file(path)
    assert (first, last) == ((1, FIRST), (3, LAST))
    assert (line, found.reason) == (2, "a field is there twice")


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    table = pa.table([[1], [2]], names=["a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match=rf"{path.name} has 2 columns named a\. Rename"):
            list(read_file(path))
    (tmp_path / "b.csv").write_text("1,2\n")
    with pytest.raises(InputError, match="2 columns named x"):
        list(read_file(tmp_path / "b.csv", columns=["x", "x"]))
    (tmp_path / "c.csv").write_text("a,,\n1,2,\n")
    assert [row["a"] for _, row in read_file(tmp_path / "c.csv")] == ["1"]


def test_a_value_that_python_has_no_object_for_rejects_its_record(tmp_path):
    seconds = pa.array([1, 2**48, 3], pa.int64())
    times = {"s": seconds.cast(pa.timestamp("s")), "days": pa.array([1, 2**30, 3], pa.int32())}
    times["days"] = times["days"].cast(pa.date32())
    for name, column in times.items():
        pq.write_table(pa.table({"a": column, "b": ["x", "y", "z"]}), tmp_path / f"{name}.parquet")
        rows = [row for _, row in read_file(tmp_path / f"{name}.parquet")]
        assert isinstance(rows[1], Unreadable), name
        assert [rows[0]["b"], rows[2]["b"]] == ["x", "z"]


def test_a_large_row_of_a_columnar_file_is_rejected(tmp_path):
    pq.write_table(pa.table({"a": ["x", "y" * 300, "z"]}), tmp_path / "a.parquet")
    rows = [row for _, row in read_file(tmp_path / "a.parquet", max_record_bytes=LIMIT)]
    assert rows == [{"a": "x"}, TOO_LARGE, {"a": "z"}]


def test_what_cannot_be_read_is_counted_and_listed(tmp_path):
    lines = [json.dumps(record) for record in ORDINARY]
    large = json.dumps({"prompt": "p", "completion": "x" * 2000})
    twice = '{"prompt": "p", "completion": "x", "completion": "y"}'
    # The first record, too: the format is that of the first that can be read.
    path = written(tmp_path, "data.jsonl", [large, twice, *lines])
    account, samples, rejected = build(tmp_path, path, max_record_bytes=1000)
    (counts,) = account.sources.values()
    assert counts.rejected == {TOO_LARGE.reason: 1, "a field is there twice": 1}
    assert counts.read == len(ORDINARY) + 2
    assert [(row["line"], row["detail"]) for row in rejected] == [(1, ""), (2, "'completion'")]
    assert all(len(split) == 1 for split in samples.values())
