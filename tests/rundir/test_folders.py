"""A folder is whole or absent, whoever is killed and whoever else writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forgetting.errors import InputError
from forgetting.rundir.folders import new_folder

WRITE = """
import os, sys
from pathlib import Path
from forgetting.rundir import folders
output, text, cut = sys.argv[1:]
renamed = Path.rename
def rename(path, target):
    if path.name == cut or path.suffix == cut:
        os._exit(9)
    return renamed(path, target)
Path.rename = rename
with folders.new_folder(Path(output), lambda folder: True) as folder:
    (folder / "text").write_text(text)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(output, text="new", may_replace=True):
    with new_folder(output, lambda folder: may_replace) as folder:
        (folder / "text").write_text(text)


def killed(output, cut):
    """Write in a process that is killed at the rename of the old or the new folder."""
    done = subprocess.run([sys.executable, "-c", WRITE, str(output), "new", cut], check=False)
    assert done.returncode == 9


@pytest.mark.parametrize("was_there", [False, True])
def test_what_a_killed_process_left_is_removed(tmp_path, was_there):
    output = tmp_path / "out"
    if was_there:
        write(output, "old")
    killed(output, ".partial")
    assert len(names(tmp_path)) > was_there
    write(output)
    assert names(tmp_path) == ["out"]
    assert (output / "text").read_text() == "new"


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path):
    output = tmp_path / "out"
    write(output, "old")
    killed(output, ".partial")
    assert not output.exists()

    def look_and_stop():
        with new_folder(output):
            assert (output / "text").read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_and_stop()
    assert names(tmp_path) == ["out"]
    assert (output / "text").read_text() == "old"


def test_the_folders_of_others_are_left_alone(tmp_path):
    mine = [".out.partial", ".out.replaced", ".out.0123abcd.partial", ".out.backup"]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("")
    write(tmp_path / "out", "old")
    killed(tmp_path / "out", "out")
    write(tmp_path / "out")
    assert names(tmp_path) == sorted([*mine, "out"])
    assert all(names(tmp_path / name) == ["thesis"] for name in mine)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"name": "../../home"}',
        b'{"name": ".out.partial"}',
        b"{}",
        b"1" * 9999,
    ],
)
def test_a_damaged_journal_removes_nothing(tmp_path, content):
    (tmp_path / ".out.forgetting.json").write_bytes(content)
    (tmp_path / ".out.partial").mkdir()
    write(tmp_path / "out")
    assert names(tmp_path) == [".out.partial", "out"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    output = tmp_path / "out"

    def write_while_another_does():
        with new_folder(output) as folder:
            (folder / "text").write_text("new")
            output.mkdir()
            (output / "text").write_text("mine")

    with pytest.raises(InputError, match="out appeared while it was being written"):
        write_while_another_does()
    assert names(tmp_path) == ["out"]
    assert (output / "text").read_text() == "mine"


def test_two_do_not_write_one_folder(tmp_path):
    output = tmp_path / "out"
    with new_folder(output) as folder:
        (folder / "text").write_text("first")
        with pytest.raises(InputError, match=f"is being written by process {os.getpid()}"):
            write(output, "second")
    assert (output / "text").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_many_processes_leave_one_whole_folder(tmp_path):
    output = tmp_path / "out"
    many = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(output), str(n), "-"], stderr=subprocess.DEVNULL
        )
        for n in range(4)
    ]
    codes = [process.wait(timeout=900) for process in many]
    assert 0 in codes
    assert names(tmp_path) == ["out"]
    assert codes[int((output / "text").read_text())] == 0


@pytest.mark.parametrize("place", [".", "..", "/", "", "../{}"])
def test_the_current_folder_is_not_written(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="current folder"):
        write(Path(place.format(tmp_path.name)))
    assert names(tmp_path) == []


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    output = tmp_path / ("é" * 127)
    write(output)
    write(output, "newer")
    assert names(tmp_path) == [output.name]
    assert (output / "text").read_text() == "newer"
