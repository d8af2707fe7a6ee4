"""Files are read record by record, and a broken one says where it is broken."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgetting.data.sources import is_local, read_source, source_fingerprint
from forgetting.errors import InputError
from forgetting.recipe import SourceSettings, WorldSettings

RECORDS = [{"prompt": "a", "completion": "é"}, {"prompt": "b\u2028c", "completion": "d"}]


def read(path, **settings):
    return list(read_source(SourceSettings(path=str(path), **settings), seed=0))


def written(folder, name, content):
    path = folder / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


LINES = "\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(RECORDS)),
        ("a.json", "\ufeff" + json.dumps(RECORDS)),
        ("a.json", LINES),
        ("a.jsonl", LINES + "\n\n"),
        ("a.jsonl.gz", LINES),
        ("a.csv", 'prompt,completion\na,é\n"b\u2028c",d\n'),
        ("a.tsv", "prompt\tcompletion\na\té\nb\u2028c\td\n"),
    ],
)
def test_text_files_give_their_records_in_order(tmp_path, name, content):
    pairs = read(written(tmp_path, name, content))
    assert [record for _, record in pairs] == RECORDS
    assert [(origin.name, origin.record) for origin, _ in pairs] == [(name, 1), (name, 2)]


def test_parquet_gives_its_records(tmp_path):
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    assert [record for _, record in read(tmp_path / "a.parquet")] == RECORDS


def test_limit_takes_the_first(tmp_path):
    assert len(read(written(tmp_path, "a.jsonl", LINES), limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "holds no records"),
        ("a.json", "[]", "holds no records"),
        ("a.jsonl", "\n", "holds no records"),
        ("a.json", '[\n{"a": 1},\n{"a": }\n]', "broken JSON at line 3"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "broken JSON at line 2"),
        ("a.json", '{"a": 1}', "expected a list of records"),
        ("a.json", "[" * 100_000, "nested too deeply|broken JSON"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n', "not UTF-8: line 2 holds the byte 0xff"),
        ("a.csv", "a,b\n1,2,3\n", "line 2 has more fields"),
        ("a.csv", 'a,b\n"1,2\n', "broken at line"),
        ("a.parquet", b"nothing", "no readable Parquet"),
        ("a.txt", "text", "expected a file that ends in"),
    ],
)
def test_a_broken_file_says_what_and_where(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_cut_off_archive_is_an_error_of_the_input(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode() * 50)[:-12])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz"):
        read(path)


def test_a_missing_file_is_named_and_so_is_a_folder_without_data(tmp_path):
    with pytest.raises(InputError, match=r"no data file at .*gone.jsonl"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match=f"the folder {tmp_path} cannot be read as a data set"):
        read(tmp_path)


def test_what_is_no_file_may_be_a_hub_id():
    assert not is_local(SourceSettings(path="someone/some-data"))
    with pytest.raises(InputError, match=r"someone/some-data .*cannot be read from the hub"):
        read("someone/some-data")


def test_the_world_is_a_source(tmp_path):
    source = SourceSettings(world=WorldSettings(num_records=40, noise_rate=0.5))
    pairs = list(read_source(source, seed=3))
    assert len(pairs) == 40
    assert {"prompt", "completion", "noise_spans"} <= set(pairs[0][1])
    assert pairs == list(read_source(source, seed=3))
    too_many = SourceSettings(world=WorldSettings(num_records=10**9))
    with pytest.raises(InputError, match="world"):
        list(read_source(too_many, seed=0))


def test_the_fingerprint_follows_content_and_settings(tmp_path):
    path = written(tmp_path, "a.jsonl", LINES)
    first = source_fingerprint(SourceSettings(path=str(path)))
    moved = written(tmp_path, "b.jsonl", LINES)
    assert source_fingerprint(SourceSettings(path=str(moved))) == first
    assert source_fingerprint(SourceSettings(path=str(path), limit=1)) != first
    path.write_text(LINES + "\n{}")
    assert source_fingerprint(SourceSettings(path=str(path))) != first
