"""The benchmark from start to end, and what goes wrong on the way."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from forgetting.cli import main
from forgetting.errors import DivergenceError, InputError
from forgetting.studies.noise import run as runs
from forgetting.studies.noise.design import load_benchmark
from forgetting.studies.noise.run import cell_path, run_benchmark


@pytest.fixture(scope="module")
def small():
    """A benchmark of two cells with two models each."""
    sets = ["data.num_train=40", "data.num_reference=16", "data.num_heldout=16"]
    benchmark = load_benchmark(seeds="1", overrides=[*sets, "training.epochs=0.2"])
    chosen = {name: benchmark.variants[name] for name in ("full", "forgetting")}
    update = {"variants": chosen, "rates": [0.2], "worlds": {"known": 0}}
    return benchmark.model_copy(update={**update, "rate_of_single_kinds": None})


@pytest.fixture(scope="module", autouse=True)
def threads():
    """In place of processes, which take seconds to begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runs,
            "ProcessPoolExecutor",
            lambda jobs, mp_context, initializer: ThreadPoolExecutor(jobs),
        )
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """Its folder when it is done, and its figures. Copy it to change it."""
    output = tmp_path_factory.mktemp("finished") / "noise"
    return output, run_benchmark(small, output, jobs=1)


def test_a_benchmark_ends_in_its_results(small, finished):
    output, figures = finished
    names = ("results.md", "results.csv", "results.tex", "results.json", "figure.svg", "figure.png")
    assert all((output / name).stat().st_size for name in names)
    assert {path.name for path in (output / "cells").iterdir()} == {c.name for c in small.cells()}
    (noisy, clean) = sorted(figures.corpora, key=lambda corpus: corpus.reference, reverse=True)
    # The base and `full` have no reference: they are measured once, and compared with both.
    assert figures.mean(noisy, "accuracy", "full") is not None
    assert figures.mean(clean, "accuracy", "full") is None
    assert figures.mean(clean, "accuracy - full", "forgetting") is not None


def test_what_is_done_is_not_done_again(small, finished, tmp_path, monkeypatch):
    output, figures = finished
    shutil.copytree(output, tmp_path / "again")

    def not_again(*args):
        raise AssertionError(args)

    monkeypatch.setattr(runs, "run_cell", not_again)
    assert run_benchmark(small, tmp_path / "again", jobs=1) == figures


def test_a_cell_whose_reference_diverges_is_left_out(small, finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "noise")
    broken = next(cell for cell in small.cells() if cell.reference == "noisy")
    shutil.rmtree(cell_path(tmp_path / "noise", broken))

    def diverges(cell, path):
        assert cell.name == broken.name
        raise DivergenceError("training diverged at step 1")

    monkeypatch.setattr(runs, "run_cell", diverges)
    figures = run_benchmark(small, tmp_path / "noise", jobs=1)
    assert {corpus.reference for corpus in figures.corpora} == {"clean"}


def test_the_folder_of_another_study_is_refused(small, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"name": "noise-quick"}))
    with pytest.raises(InputError, match="belongs to the study 'noise-quick', not to 'noise'"):
        run_benchmark(small, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise", "--scale", "tiny"], "noise takes no --scale, --model, --data or --metric"),
        (["noise", "--metric", "heldout/loss"], "noise takes no --scale, --model, --data"),
        (["noise", "--data", "x"], "`forgetting detect` measures a model on marked data"),
        (["noise", "--model", "x"], "`forgetting detect` measures a model on marked data"),
        (["noise", "--cell", "x", "--output", "{}"], "there is no cell 'x'"),
        (["noise", "--seeds", "x"], "--seeds x: expected whole numbers"),
        (["table3", "--quick"], "go with the study noise"),
        (["table3", "--jobs", "2"], "go with the study noise"),
        (["table3", "--cell", "x"], "go with the study noise"),
        (["noise", "--set", "training.epochs=no"], "training.epochs"),
    ],
)
def test_options_that_do_not_go_together_are_one_message_and_2(
    arguments, message, capsys, tmp_path
):
    arguments = [argument.format(tmp_path / "out") for argument in arguments]
    assert main(["reproduce", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_command_prints_means_and_where_everything_is(
    small, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "forgetting.studies.noise.load_benchmark", lambda quick, seeds, overrides: small
    )
    shutil.copytree(finished[0], tmp_path / "out")
    output = str(tmp_path / "out")
    assert main(["reproduce", "noise", "--output", output]) == 0
    printed = capsys.readouterr().out
    assert "forgetting" in printed
    assert "base_loss" in printed
    assert f"Everything is in {output}" in printed
    assert main(["reproduce", "noise", "--output", output, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == output
    assert {row["of"] for row in document["rows"]} >= {"base", "full", "forgetting", "influence"}


def test_listed_commands_are_the_cells(small, tmp_path, monkeypatch, capsys):
    output = str(tmp_path / "out")
    words = ["--quick", "--seeds", "1", "--set", "training.epochs=0.2", "--output", output]
    assert main(["reproduce", "noise", *words, "--list"]) == 0
    commands = capsys.readouterr().out.splitlines()
    quick = load_benchmark(quick=True, seeds="1")
    assert [command.split()[-1] for command in commands] == [c.name for c in quick.cells()]
    assert commands[0].split()[:-1] == ["forgetting", "reproduce", "noise", *words, "--cell"]
    done = []
    monkeypatch.setattr(runs, "run_cell", lambda cell, path: done.append(cell.name))
    assert main(commands[-1].split()[1:]) == 0
    assert done == [quick.cells()[-1].name]
    assert not (tmp_path / "out" / "results.md").exists()
