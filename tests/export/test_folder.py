"""An output is there whole or not at all, and nothing that is not ours is replaced."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgetting.errors import InputError
from forgetting.export.folder import check_output, whole_folder, write_rows


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write(output, text, replace=False):
    with whole_folder(output, {"what": "data"}, replace) as folder:
        (folder / "rows").write_text(text)
        assert not output.exists() or (output / "rows").read_text() != text


def interrupt(output):
    with whole_folder(output, {}, replace=True) as folder:
        (folder / "rows").write_text("two")
        raise KeyboardInterrupt


def test_it_appears_when_all_is_written(tmp_path):
    write(tmp_path / "a" / "out", "one")
    assert files(tmp_path) == ["a", "a/out", "a/out/export.json", "a/out/rows"]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    output = tmp_path / "out"
    write(output, "one")
    with pytest.raises(KeyboardInterrupt):
        interrupt(output)
    assert (output / "rows").read_text() == "one"
    assert files(tmp_path) == ["out", "out/export.json", "out/rows"]


def test_an_earlier_export_is_replaced_only_when_asked(tmp_path):
    output = tmp_path / "out"
    check_output(output, False)
    write(output, "one")
    with pytest.raises(InputError, match="--force"):
        check_output(output, False)
    check_output(output, True)
    with pytest.raises(InputError, match="--force"):
        write(output, "two")
    assert (output / "rows").read_text() == "one"
    write(output, "two", replace=True)
    assert (output / "rows").read_text() == "two"
    assert files(tmp_path) == ["out", "out/export.json", "out/rows"]


def test_files_that_were_added_to_an_export_are_not_replaced(tmp_path):
    output = tmp_path / "out"
    write(output, "one")
    (output / "deep").mkdir()
    (output / "deep" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out holds deep/notes\.txt, which .* did not write"):
        write(output, "two", replace=True)
    assert (output / "rows").read_text() == "one"


def test_a_file_that_is_added_while_an_export_is_replaced_is_not_lost(tmp_path):
    output = tmp_path / "out"
    write(output, "one")

    def write_while_a_file_comes():
        with whole_folder(output, {}, replace=True) as folder:
            (folder / "rows").write_text("two")
            (output / "late.txt").write_text("mine")

    with pytest.raises(InputError, match=r"holds late\.txt"):
        write_while_a_file_comes()
    assert files(tmp_path) == ["out", "out/export.json", "out/late.txt", "out/rows"]


@pytest.mark.parametrize("mark", ["", "{}", "[1]", '{"files": 3}', "\udcff", '{"files": []}'])
def test_a_folder_that_holds_some_export_json_is_not_replaced(tmp_path, mark):
    (tmp_path / "export.json").write_bytes(mark.encode(errors="surrogateescape"))
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not replaced"):
        check_output(tmp_path, True)


def test_what_is_no_export_is_never_replaced(tmp_path):
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.mkdir()
    check_output(mine, False)
    (mine / "thesis.tex").write_text("")
    link.symlink_to(mine)
    for output in (mine, link, mine / "thesis.tex"):
        with pytest.raises(InputError, match="--output"):
            check_output(output, True)


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not a folder"):
        write(tmp_path / "file" / "out", "one")


def test_rows_are_written_in_order_whatever_the_tables(tmp_path):
    rows = pa.table({"n": list(range(171))})
    parts = [rows.slice(0, 150), rows.slice(150, 0), rows.slice(150)]
    done = []
    for format in ("parquet", "jsonl"):
        path = tmp_path / f"rows.{format}"
        amount = write_rows(iter(parts), path, format, lambda n, note: done.append(n))
        assert amount == sum(done) == 171
        done.clear()
    assert pq.read_table(tmp_path / "rows.parquet")["n"].to_pylist() == list(range(171))
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert lines == [f'{{"n": {n}}}' for n in range(171)]
