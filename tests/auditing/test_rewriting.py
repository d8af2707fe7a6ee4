"""A copy without some records holds all others, byte for byte, in every form of files."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgetting.auditing.rewriting import copy_without
from forgetting.data.files import read_file

RECORDS = [{"prompt": f'say "{i}", é\n', "completion": f"it is\t{i}\u2028"} for i in range(5)]
COMPACT = [json.dumps(record) for record in RECORDS]
TEXTS = {
    "lines.jsonl": "\n".join([COMPACT[0], "", *COMPACT[1:]]),
    "ended.jsonl": "\ufeff" + "\r\n".join([*COMPACT, ""]),
    "list.json": json.dumps(RECORDS, indent=2, ensure_ascii=False) + "\n",
    "flat.json": "[" + ",".join(COMPACT) + "]",
    "windows.json": "\ufeff[ " + " ,\r\n".join(COMPACT) + " ]\r\n\r\n",
    "stream.json": "\n\n".join(COMPACT),
    "table.csv": "prompt,completion\n" + "".join(f'"say\n{i}",it is {i}\n' for i in range(5)),
    "quoted.csv": "\ufeffprompt,completion\r\n\r\n"
    + "".join(f'"a ""b""",{i}\r\n' for i in range(5)),
    "tabs.tsv": "prompt\tcompletion\n" + "".join(f"q\ta{i}\n" for i in range(5)),
}


def records_of(path):
    return [record for _, record in read_file(path)]


@pytest.fixture(params=[*TEXTS, "zipped.jsonl.gz", "rows.parquet", "file.arrow", "stream.arrow"])
def source(request, tmp_path):
    path = tmp_path / request.param
    table = pa.Table.from_pylist(RECORDS).replace_schema_metadata({"mine": "kept"})
    if path.name in TEXTS:
        path.write_bytes(TEXTS[path.name].encode())
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(COMPACT).encode()))
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2, compression="zstd")
    else:
        new = pa.ipc.new_file if path.name == "file.arrow" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("left_out", [(), (1,), (5,), (2, 3), (1, 5), (4, 5), (1, 2, 3, 4, 5)])
def test_the_others_stay_as_they_are(source, tmp_path, left_out):
    target = tmp_path / "out" / source.name
    target.parent.mkdir()
    copy_without(source, target, set(left_out))
    expected = [r for i, r in enumerate(records_of(source), 1) if i not in left_out]
    assert records_of(target) == expected
    if not left_out and source.name in TEXTS:
        assert target.read_bytes() == source.read_bytes()
    if source.suffix == ".parquet":
        assert pq.read_schema(target).equals(pq.read_schema(source), check_metadata=True)


@pytest.mark.parametrize("name", TEXTS)
def test_no_byte_of_a_kept_record_changes(name, tmp_path):
    source, target = tmp_path / name, tmp_path / f"copy-{name}"
    source.write_bytes(TEXTS[name].encode())
    copy_without(source, target, {3})
    before, after = source.read_bytes(), target.read_bytes()
    # What is left out is one stretch.
    start = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
    cut = len(before) - len(after)
    found = [i for i in range(start + 1) if before[:i] + before[i + cut :] == after]
    assert found
    assert cut < 2 * len(before) / 5


def test_a_table_without_a_header_has_a_first_record(tmp_path):
    source, target = tmp_path / "bare.csv", tmp_path / "copy.csv"
    source.write_text("a,1\nb,2\n")
    copy_without(source, target, {1}, has_header=False)
    assert target.read_text() == "b,2\n"
