"""A stage is done exactly when its files are the ones it wrote; nothing is there by halves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from forgetting.console import report_errors
from forgetting.errors import InputError
from forgetting.rundir.directory import RunDir, Work, work_folder
from forgetting.rundir.manifest import FORMAT_VERSION, Manifest, read_manifest, stage_is_done
from forgetting.rundir.storage import digest, file_sha256, write_atomically

FIRST, SECOND = "1" * 64, "2" * 64
RENAMES = ("rename to the work folder", "rename into place")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "mine"


def do(directory, stage="prepare", fingerprint=FIRST, target="data", **files):
    """Do a stage that writes the given files."""
    with directory.stage(stage, fingerprint, target) as work:
        for name, text in files.items():
            (work.output / name).write_text(text)
        work.details["files"] = len(files)


class Cut(BaseException):
    """What ends a process in a test."""


def cut_rename(monkeypatch, number):
    """Raise `Cut` in place of the n-th rename from now on, counted from 1."""
    renames = []
    rename = Path.rename

    def counted_rename(self, target):
        renames.append(target)
        if len(renames) == number:
            raise Cut
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", counted_rename)


def be_cut_off(directory, stage, fingerprint, target):
    """Begin a stage and leave it half done."""
    with directory.stage(stage, fingerprint, target) as work:
        (work.path / "scratch").write_text("half way")
        (work.output / "a").write_text("new")
        raise RuntimeError("cut off")


def test_what_a_stage_wrote_is_published_and_recorded(path):
    with RunDir(path, "mine") as directory:
        do(directory, a="one", b="two")
    assert {f.name: f.read_text() for f in (path / "data").iterdir()} == {"a": "one", "b": "two"}
    entry = read_manifest(path).stages["prepare"]
    assert entry.fingerprint == FIRST
    assert entry.outputs.keys() == {"data/a", "data/b"}
    assert entry.outputs["data/a"].sha256 == file_sha256(path / "data" / "a")
    assert entry.details == {"files": 2}
    assert entry.peak_memory_bytes > 0
    assert not list((path / ".work").iterdir())


def test_the_peak_on_accelerators_is_that_of_the_stage(path, monkeypatch):
    """What was allocated before does not count; without an accelerator there is no figure."""
    peaks = [9, 9]
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        reset_peak_memory_stats=lambda device: peaks.__setitem__(device, 0),
        max_memory_allocated=lambda device: peaks[device],
    )
    with RunDir(path, "mine") as directory:
        do(directory)
        assert directory.manifest.stages["prepare"].peak_device_memory_bytes is None
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        with directory.stage("score", FIRST, "scores"):
            peaks[:] = [3, 4]
    assert read_manifest(path).stages["score"].peak_device_memory_bytes == 7


def test_a_stage_that_fails_publishes_nothing_and_goes_on_from_its_scratch(path):
    with RunDir(path, "mine") as directory:
        do(directory, a="old")
        with pytest.raises(RuntimeError, match="cut off"):
            be_cut_off(directory, "prepare", SECOND, "data")
        assert (path / "data" / "a").read_text() == "old"
        assert directory.is_done("prepare", FIRST)
        with directory.stage("prepare", SECOND, "data") as work:
            assert (work.path / "scratch").read_text() == "half way"
        assert directory.is_done("prepare", SECOND)


def test_scratch_for_other_inputs_is_removed(path):
    with RunDir(path, "mine") as directory:
        for name in ("train:a", "train:a-b"):
            with pytest.raises(RuntimeError, match="cut off"):
                be_cut_off(directory, name, FIRST, f"models/{name[6:]}")
        with directory.stage("train:a", SECOND, "models/a") as work:
            assert not (work.path / "scratch").exists()
        with directory.stage("train:a-b", FIRST, "models/a-b") as work:
            assert (work.path / "scratch").exists()


def test_a_new_result_replaces_the_old_one_whole(path):
    with RunDir(path, "mine") as directory:
        do(directory, a="old", b="old")
        do(directory, fingerprint=SECOND, a="new")
        assert [f.name for f in (path / "data").iterdir()] == ["a"]
        assert not directory.is_done("prepare", FIRST)
        assert directory.is_done("prepare", SECOND)


@pytest.mark.parametrize("cut", [*RENAMES, "manifest"])
def test_publishing_cut_off_anywhere_leaves_a_stage_undone_or_done(path, monkeypatch, cut):
    """Cut between any two steps, the manifest never names files other than those that are there."""
    with RunDir(path, "mine") as directory:
        do(directory, a="old")

        write = RunDir._write_manifest

        def counted_write(self):
            if SECOND in str(self.manifest.stages):
                raise Cut
            write(self)

        if cut == "manifest":
            monkeypatch.setattr(RunDir, "_write_manifest", counted_write)
        else:
            cut_rename(monkeypatch, RENAMES.index(cut) + 1)
        with pytest.raises(Cut):
            do(directory, fingerprint=SECOND, a="new")
        monkeypatch.undo()
    with RunDir(path, "mine") as directory:
        assert not directory.is_done("prepare", FIRST)
        assert not directory.is_done("prepare", SECOND)
        do(directory, fingerprint=SECOND, a="new")
        assert directory.is_done("prepare", SECOND)
    assert (path / "data" / "a").read_text() == "new"


@pytest.mark.parametrize("change", ["content", "length", "removed"])
def test_a_stage_whose_output_changed_is_not_done(path, change):
    with RunDir(path, "mine") as directory:
        do(directory, a="one", b="two")
        file = path / "data" / "a"
        if change == "removed":
            file.unlink()
        else:
            file.write_text("eno" if change == "content" else "one more")
            os.utime(file, ns=(1, 1))
        assert not directory.is_done("prepare", FIRST)


def test_a_touched_output_with_the_same_content_is_still_done(path):
    with RunDir(path, "mine") as directory:
        do(directory, a="one")
        os.utime(path / "data" / "a", ns=(1, 1))
        assert directory.is_done("prepare", FIRST)


def test_without_manifest_or_entry_nothing_is_done(path):
    assert not stage_is_done(path, None, "prepare", FIRST)
    assert not stage_is_done(path, Manifest(name="mine"), "prepare", FIRST)


def test_stages_that_the_recipe_no_longer_has_are_forgotten(path):
    with RunDir(path, "mine") as directory:
        do(directory, a="one")
        do(directory, stage="train:x", target="models/x", weights="1")
        directory.forget_stages({"prepare"})
    assert read_manifest(path).stages.keys() == {"prepare"}
    assert (path / "models" / "x" / "weights").exists()


def test_entries_are_in_the_order_of_the_plan_whenever_they_were_done(path):
    plan = ["prepare", "score", "train:x"]
    with RunDir(path, "mine") as directory:
        for stage in ("train:x", "score", "prepare", "old"):
            do(directory, stage=stage, target=stage.replace(":", "/"), a="one")
        directory.forget_stages(plan)
        assert list(read_manifest(path).stages) == plan
        do(directory, stage="score", fingerprint=SECOND, target="score", a="two")
    assert list(read_manifest(path).stages) == plan


HOLD_THE_LOCK = """
import sys
from pathlib import Path
from forgetting.rundir.directory import RunDir, Work, work_folder
with RunDir(Path(sys.argv[1]), "mine"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_live_process_is_respected_and_that_of_a_dead_one_is_free(path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        before = sorted(path.iterdir())
        with pytest.raises(InputError, match=rf"in use by process {holder.pid}\b"):
            RunDir(path, "mine").__enter__()
        assert sorted(path.iterdir()) == before
    finally:
        holder.kill()
        holder.wait()
    with RunDir(path, "mine") as directory:
        do(directory, a="one")


def test_the_lock_is_free_again_at_the_end_and_after_an_error(path):
    with pytest.raises(RuntimeError), RunDir(path, "mine"):
        raise RuntimeError
    with RunDir(path, "mine"):
        pass


def test_a_directory_of_another_recipe_is_refused(path):
    with RunDir(path, "mine") as directory:
        do(directory, a="one")
    with pytest.raises(
        InputError, match=r"belongs to the recipe 'mine', not to 'yours'.*--run-dir"
    ):
        RunDir(path, "yours").__enter__()
    assert read_manifest(path).name == "mine"


def test_a_directory_with_other_things_in_it_is_refused_and_left_alone(path):
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"no run directory \(it holds thesis\.tex\)"):
        RunDir(path, "mine").__enter__()
    assert [f.name for f in path.iterdir()] == ["thesis.tex"]


def test_an_empty_directory_and_one_of_a_run_that_was_killed_at_once_are_taken(path):
    path.mkdir(parents=True)
    for name in (".lock", ".lock-owner", "..lock-owner.partial", ".manifest.json.partial"):
        (path / name).write_text("")
    with RunDir(path, "mine"):
        assert read_manifest(path).name == "mine"


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_is_no_run_directory(tmp_path, inside):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="file; a run needs a directory"):
        RunDir(file / "run" if inside else file, "mine").__enter__()
    assert file.read_text() == "x"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 2}', '{"version": null, "name": "mine"}', "\x00"]
)
def test_a_damaged_manifest_is_refused(path, text):
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json cannot be read"):
        RunDir(path, "mine").__enter__()


def test_a_manifest_of_an_older_version_is_refused_and_left_alone(path):
    path.mkdir(parents=True)
    older = json.dumps({"version": FORMAT_VERSION - 1, "name": "mine", "stages": {}})
    (path / "manifest.json").write_text(older)
    with pytest.raises(InputError, match=r"older version of forgetting.*--run-dir"):
        RunDir(path, "mine").__enter__()
    assert [f.name for f in path.iterdir()] == ["manifest.json"]
    assert (path / "manifest.json").read_text() == older


def test_a_manifest_of_a_newer_version_is_refused_without_advice_to_remove_it(path):
    path.mkdir(parents=True)
    newer = {"version": FORMAT_VERSION + 1, "name": "mine", "stages": {"prepare": "otherwise"}}
    (path / "manifest.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match="newer version") as caught:
        RunDir(path, "mine").__enter__()
    assert "Remove" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "state.json"
    write_atomically(file, "old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["state.json"]


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    (tmp_path / ".state.json.partial").write_text("half of what was")
    write_atomically(tmp_path / "state.json", "new")
    assert [f.name for f in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_text() == "new"


def test_digest_tells_values_apart_but_not_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest({"a": v}) for v in (1, 2, "1", None, [1], {"a": 1})}) == 6


@pytest.mark.parametrize("cut", [*RENAMES, "manifest"])
def test_a_stage_that_ended_before_a_kill_is_not_done_again(path, monkeypatch, cut):
    with RunDir(path, "mine") as directory:
        do(directory, a="old")

        def no_write(self, work, stage, entry):
            raise Cut

        if cut == "manifest":
            monkeypatch.setattr(RunDir, "_enter", no_write)
        else:
            cut_rename(monkeypatch, RENAMES.index(cut) + 1)
        with pytest.raises(Cut):
            do(directory, fingerprint=SECOND, a="new")
        monkeypatch.undo()
    with RunDir(path, "mine") as directory:
        assert not directory.is_done("prepare", SECOND)
        assert not directory.finish("prepare", FIRST, "data")
        assert directory.finish("prepare", SECOND, "data")
        assert directory.is_done("prepare", SECOND)
    assert (path / "data" / "a").read_text() == "new"
    assert read_manifest(path).stages["prepare"].details == {"files": 1}
    assert not list((path / ".work").iterdir())


@pytest.mark.parametrize("damaged", ["output/a", "entry.json"])
def test_an_ended_stage_that_is_damaged_is_done_again(path, monkeypatch, damaged):
    def no_publishing(self, work, target, stage, entry):
        raise KeyboardInterrupt

    with RunDir(path, "mine") as directory:
        monkeypatch.setattr(RunDir, "_publish", no_publishing)
        with pytest.raises(KeyboardInterrupt):
            do(directory, a="new")
        monkeypatch.undo()
        (work,) = (path / ".work").iterdir()
        content = (work / damaged).read_bytes()
        (work / damaged).write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
        assert not directory.finish("prepare", FIRST, "data")


def test_the_work_folder_of_a_stage_that_is_done_is_removed(path):
    with RunDir(path, "mine") as directory:
        do(directory, a="one")
        left = work_folder(path, "prepare", FIRST)
        other = work_folder(path, "prepare", SECOND)
        for folder in (left, other):
            (folder / "output").mkdir(parents=True)
        assert directory.finish("prepare", FIRST, "data")
        # The work for another recipe may go on.
        assert (left.exists(), other.exists()) == (False, True)


def test_inputs_whose_bytes_changed_are_refused(path):
    with RunDir(path, "mine") as directory:
        do(directory, a="one")
        # What this process wrote is not read again.
        directory.check_content(["prepare"])
    file = path / "data" / "a"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text("two")
    os.utime(file, ns=times)
    with RunDir(path, "mine") as directory:
        assert directory.is_done("prepare", FIRST)
        with pytest.raises(InputError, match=r"data/a is not the file that prepare wrote.*Remove"):
            directory.check_content(["prepare"])
        file.unlink()
        assert not directory.is_done("prepare", FIRST)


def test_a_file_that_waits_counts_only_as_it_was_noted(tmp_path):
    work = Work(tmp_path)
    file = tmp_path / "shard"
    file.write_bytes(b"x" * 100)
    assert not work.has(file)
    work.keep(file)
    assert work.has(file)
    for content in (b"", b"x" * 99, b"x" * 99 + b"y"):
        file.write_bytes(content)
        assert not work.has(file)
    file.write_bytes(b"x" * 100)
    assert work.has(file)
    file.unlink()
    assert not work.has(file)
    file.mkdir()
    assert not work.has(file)


def test_of_half_a_folder_the_noted_files_stay_unless_one_is_damaged(tmp_path):
    work = Work(tmp_path)
    work.output.mkdir()
    for name in ("a", "b", "c"):
        (work.output / name).write_text(name)
    for name in ("a", "b"):
        work.keep(work.output / name)
    work.keep_only_whole(work.output)
    assert sorted(file.name for file in work.output.iterdir()) == ["a", "b"]
    (work.output / "b").write_text("B")
    work.keep_only_whole(work.output)
    assert list(work.output.iterdir()) == []
    (work.output / "b").write_text("b")
    assert not work.has(work.output / "b")


def test_any_wrong_byte_of_the_manifest_is_noticed_and_its_copy_is_used(path, caplog):
    with RunDir(path, "mine") as directory:
        do(directory, a="one")
    whole = read_manifest(path)
    file = path / "manifest.json"
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert read_manifest(path) == whole
    file.write_bytes(content[: len(content) // 2])
    with RunDir(path, "mine") as directory:
        assert directory.is_done("prepare", FIRST)
    assert file.read_bytes() == content
    (path / ".manifest-copy.json").write_text("{")
    file.write_text("{")
    with pytest.raises(InputError, match="no copy of it that can"):
        read_manifest(path)


@pytest.mark.parametrize("name", [".work", ".lock", ".lock-owner", ".manifest-copy.json"])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "loop"])
def test_something_odd_in_the_place_of_a_file_of_ours_is_one_message(path, capsys, name, kind):
    path.mkdir(parents=True)
    with RunDir(path, "mine"):
        pass
    for stale in (path / name, path / ".lock"):
        stale.unlink(missing_ok=True)
    target = path.parent / "elsewhere"
    {
        "file": lambda: (path / name).write_text("x"),
        "folder": (path / name).mkdir,
        "link": lambda: (path / name).symlink_to(target),
        "loop": lambda: (path / name).symlink_to(name),
    }[kind]()

    def work():
        with RunDir(path, "mine") as directory:
            do(directory, a="one")

    assert report_errors(work) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
    assert not target.exists() or name != ".lock"
