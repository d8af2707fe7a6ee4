"""Every damage of a run directory is found, and a whole one has none."""

from __future__ import annotations

import json
import os

import pytest

from forgetting.cli import main
from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.directory import RunDir
from forgetting.rundir.verify import num_files, verify


@pytest.fixture
def run(tmp_path):
    """A run with two stages done and one interrupted."""
    path = tmp_path / "run"
    with RunDir(path, "mine") as directory:
        for stage in ("data", "scores"):
            with directory.stage(stage, "a" * 64, stage) as work:
                (work.output / "one").write_text(stage)
                (work.output / "two").write_text("x" * 100)
        with pytest.raises(KeyboardInterrupt):
            interrupt(directory)
    (path / "recipe.yaml").write_text("name: mine\n")
    return path


def interrupt(directory):
    with directory.stage("train:full", "b" * 64, "models/full") as work:
        (work.path / "shard").write_text("y" * 100)
        work.keep(work.path / "shard")
        raise KeyboardInterrupt


def flip(file):
    """Change one bit, as a failing disk does: size and time stay the same."""
    content, times = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_whole_run_has_no_damage(run):
    found = verify(run)
    assert (found.num_files, found.stages, found.damages) == (4, ["data", "scores"], [])
    assert found.num_bytes == 210
    assert num_files(run) == 4


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip, "has changed since it was written"),
        (lambda file: file.write_text(""), "has 0 bytes instead of 100"),
        (lambda file: file.unlink(), "is missing"),
        (lambda file: (file.unlink(), file.mkdir()), "is missing"),
    ],
)
def test_a_damaged_file_is_named_with_its_stage(run, damage, problem):
    damage(run / "scores" / "two")
    (found,) = verify(run).damages
    assert (found.stage, found.file, found.problem) == ("scores", run / "scores" / "two", problem)
    assert f"forgetting run {run / 'recipe.yaml'} --run-dir {run}" in found.advice


@pytest.mark.parametrize("name", ["shard", "kept/shard.sha256"])
def test_a_file_that_waits_for_a_resumed_stage_is_checked(run, name):
    (work,) = (run / ".work").iterdir()
    flip(work / name)
    (found,) = verify(run).damages
    assert found.stage == "train:full"
    assert found.advice.startswith("Nothing")


def test_a_damaged_manifest_is_named_and_written_again_from_its_copy(run):
    whole = (run / "manifest.json").read_bytes()
    flip(run / "manifest.json")
    (found,) = verify(run).damages
    assert found.file == run / "manifest.json"
    with RunDir(run, "mine"):
        pass
    assert (run / "manifest.json").read_bytes() == whole
    assert not verify(run).damages


@pytest.mark.parametrize("damage", [flip, lambda file: file.write_text("")])
def test_a_damaged_copy_of_the_manifest_is_named_and_written_again(run, damage):
    copy = run / layout.MANIFEST_COPY
    whole = copy.read_bytes()
    damage(copy)
    (found,) = verify(run).damages
    assert found.file == copy
    with RunDir(run, "mine"):
        pass
    assert copy.read_bytes() == whole
    assert not verify(run).damages


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a recipe"),
        (b"name: mi\xffe", "is not YAML: "),
        (b"name: mine\nname: mine", "is not YAML: "),
        (b"[" * 5000, "is not YAML: "),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(run, content, problem):
    (run / "recipe.yaml").write_bytes(content)
    (found,) = verify(run).damages
    assert (found.stage, found.file) == (None, run / "recipe.yaml")
    assert found.problem.startswith(problem)


def test_the_command_says_what_is_damaged_and_exits_with_1(run, capsys):
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.endswith("4 files of 2 stages, 0.0 MiB: none damaged.\n")
    flip(run / "data" / "one")
    assert main(["verify", str(run), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{run / 'data' / 'one'} has changed since it was written. ")
    assert main(["verify", str(run), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["damaged"][0]["stage"] == "data"
    # An audit is a folder with a folder `run`.
    assert main(["verify", str(run.parent), "--quiet"]) == 1


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        verify(tmp_path)
