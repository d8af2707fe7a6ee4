"""Files are read record by record, and a broken one says where it is broken."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.config import SourceSettings, WorldSettings, named_sources
from forgetting.data import files
from forgetting.data.sources import is_local, read_source, source_fingerprint
from forgetting.errors import InputError

RECORDS = [{"prompt": "a", "completion": "é"}, {"prompt": "b\u2028c", "completion": "d"}]


def read(path, **settings):
    return list(read_source(SourceSettings(path=str(path), **settings), seed=0))


def written(folder, name, content):
    path = folder / name
    data = content if isinstance(content, bytes) else content.encode()
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
    path.write_bytes(compress.get(path.suffix, bytes)(data))
    return path


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


LINES = "\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(RECORDS)),
        ("a.json", "\ufeff" + json.dumps(RECORDS)),
        ("a.json", LINES),
        ("a.jsonl", LINES + "\n\n"),
        ("a.jsonl.gz", LINES),
        ("a.jsonl.bz2", LINES),
        ("a.jsonl.xz", LINES),
        ("a.jsonl.zst", LINES),
        ("a.json.gz", json.dumps(RECORDS)),
        ("a.csv.xz", 'prompt,completion\na,é\n"b\u2028c",d\n'),
        ("a.csv", 'prompt,completion\na,é\n"b\u2028c",d\n'),
        ("a.tsv", "prompt\tcompletion\na\té\nb\u2028c\td\n"),
    ],
)
def test_text_files_give_their_records_in_order(tmp_path, name, content):
    pairs = read(written(tmp_path, name, content))
    assert [record for _, record in pairs] == RECORDS
    assert [(origin.name, origin.record) for origin, _ in pairs] == [(name, 1), (name, 2)]


def arrow_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def arrow_file(table, path):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("write", "name"),
    [(pq.write_table, "a.parquet"), (arrow_stream, "a.arrow"), (arrow_file, "a.arrow")],
)
def test_columnar_files_give_their_records(tmp_path, write, name):
    records = [{"prompt": f"é{i}", "completion": "\U0001f642"} for i in range(600)]
    write(pa.Table.from_pylist(records), tmp_path / name)
    pairs = read(tmp_path / name)
    assert [record for _, record in pairs] == records
    assert str(pairs[-1][0]) == f"{name}, record 600"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(values, min_size=1, max_size=8),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 30),
)
def test_a_json_list_is_read_alike_wherever_the_chunks_end(
    tmp_path_factory, records, indent, ascii_only, chunk
):
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only)
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk)
        try:
            text.encode()
        except UnicodeEncodeError:
            with pytest.raises(InputError, match="not UTF-8: line"):
                list(files.read_file(path))
            return
        assert [record for _, record in files.read_file(path)] == records


def test_records_of_a_text_file_carry_the_line_at_which_they_begin(tmp_path):
    record = json.dumps(RECORDS[0], indent=1)
    cases = {
        "a.json": (f"[\n{record},\n\n{record}]", [2, 7]),
        "b.json": (f"\n{record}\n{record}", [2, 6]),
        "a.jsonl": ('\n{"a": 1}\n\n{"a": 2}\n', [2, 4]),
        "a.csv": ('a,b\n"x\ny",1\n\nz,2\n', [2, 5]),
    }
    for name, (content, lines) in cases.items():
        assert [o.line for o, _ in read(written(tmp_path, name, content))] == lines, name


def test_a_file_larger_than_a_batch_is_never_whole_in_memory(tmp_path):
    number, text = 3000, "x" * 10_000
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[" + ",".join(f'{{"prompt": "{i}", "completion": "{text}"}}' for i in range(1)))
        for index in range(1, number):
            file.write(f',{{"prompt": "{index}", "completion": "{text}"}}')
        file.write("]")
    tracemalloc.start()
    assert sum(1 for _ in files.read_file(path)) == number
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 30e6
    assert peak < 8e6


def test_a_table_without_a_header_takes_its_columns_from_the_recipe(tmp_path):
    content = '"Q" said he?\\nOptions:\\t\\\\n\tno\twhy\n'
    path = written(tmp_path, "a.tsv", content)
    columns = ["question", "answer", "rationale"]
    ((origin, record),) = read(path, columns=columns, escaped=True)
    assert record == {"question": '"Q" said he?\nOptions:\t\\n', "answer": "no", "rationale": "why"}
    assert origin.line == 1


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
        ("a.csv", "a,b\n1,2,3\n", "line 2 has more fields.*`--columns`"),
        ("a.csv", 'a,b\n"1,2\n', "broken at line.*`--escaped`"),
        ("a.csv", b"a,b\n1,\xff\n", "not UTF-8: line 2 holds the byte 0xff"),
        ("a.json", b'[{"a": "x"},\n\n{"a": "\xff"}]', "not UTF-8: line 3 holds the byte 0xff"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "broken JSON at line 2: Expecting ',' delimiter"),
        ("a.json", '[{"a": 1}]\n3', "broken JSON at line 2: Extra data"),
        ("a.json", '[{"a": "x', "broken JSON at line 1: Unterminated string"),
        ("a.json", "3", "found int"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, "(nested too deeply|broken JSON) at line 2"),
        ("a.arrow", b"nothing", "not a readable Arrow"),
        ("a.parquet", b"nothing", "not a readable Parquet"),
        ("a.txt", "text", "unknown file type"),
    ],
)
def test_a_broken_file_says_what_and_where(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_a_cut_off_or_false_archive_is_an_error_of_the_input(tmp_path, ending):
    path = written(tmp_path, f"a.jsonl{ending}", "".join(f'{{"a": {i}}}\n' for i in range(5000)))
    for content in (path.read_bytes()[:-12], b"not at all what it says"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.jsonl\..* cannot be read to its end"):
            read(path)


def test_a_missing_file_is_named_and_so_is_a_folder_without_data(tmp_path):
    with pytest.raises(InputError, match=r"no data file at .*gone.jsonl"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match=f"the folder {tmp_path} cannot be read as a dataset"):
        read(tmp_path)


def test_what_is_no_file_may_be_a_hub_id():
    assert not is_local(SourceSettings(path="someone/some-data"))
    with pytest.raises(InputError, match=r"someone/some-data .*cannot be read from the Hub"):
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


def test_a_folder_is_read_as_datasets_reads_one(tmp_path):
    written(tmp_path, "train-0.jsonl", LINES)
    assert [record for _, record in read(tmp_path)] == RECORDS
    first = source_fingerprint(SourceSettings(path=str(tmp_path)))
    written(tmp_path, "train-1.jsonl", LINES)
    assert source_fingerprint(SourceSettings(path=str(tmp_path))) != first
    assert len(read(tmp_path)) == 4
    with pytest.raises(InputError, match=f"the folder {tmp_path} cannot be read.*nowhere"):
        read(tmp_path, split="nowhere")


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    import datasets

    saved = datasets.Dataset.from_list(RECORDS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "all")
    assert [record for _, record in read(tmp_path / "one")] == RECORDS
    assert [record for _, record in read(tmp_path / "all")] == RECORDS


@pytest.mark.parametrize("name", named_sources())
def test_a_known_data_set_is_asked_for_by_its_hub_id(monkeypatch, name):
    import datasets

    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return iter(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = SourceSettings.model_validate(name)
    pairs = list(read_source(source, seed=0))
    hub_id = named_sources()[name]["hub"]["path"]
    assert [record for _, record in pairs] == RECORDS
    assert str(pairs[0][0]) == f"{hub_id}, record 1"
    options = {"split": "train", "revision": None, "streaming": True}
    assert asked == [((hub_id, None), options)]
    assert source.label == name
