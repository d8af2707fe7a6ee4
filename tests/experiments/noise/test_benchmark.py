"""The benchmark from start to end, and what goes wrong on the way."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.noise import benchmark as runs
from experiments.noise import design
from experiments.noise.__main__ import main
from experiments.noise.benchmark import cell_path, run_benchmark
from experiments.noise.design import load_benchmark
from forgetting.errors import DivergenceError, InputError
from tests.conftest import few_trees
from tests.forked import run_python

pytestmark = pytest.mark.usefixtures("restored_logging")

ROOT = Path(__file__).parents[3]


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
    with few_trees():
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
        (["--cell", "x", "--output", "{}"], "there is no cell 'x'"),
        (
            ["--cell", "known-0-all-noisy-11", "--output", "{}"],
            "Did you mean known-0-all-noisy-1",
        ),
        (["--seeds", "x"], "--seeds x: expected whole numbers"),
        (["--set", "training.epochs=no"], "training.epochs"),
        (["--jobs", "0"], "--jobs"),
        (["--quik"], "--quik"),
    ],
)
def test_a_wrong_command_line_is_one_message_and_2(arguments, message, capsys, tmp_path):
    arguments = [argument.format(tmp_path / "out") for argument in arguments]
    try:
        code = main(arguments)
    except SystemExit as leave:
        code = leave.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_ctrl_c_is_one_message_and_130(small, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_benchmark", interrupted)
    assert main(["--output", str(tmp_path / "out")]) == 130
    expected = "Interrupted. Run the same command again to continue.\n"
    assert capsys.readouterr().err.endswith(expected)


def test_the_command_prints_means_and_where_the_results_are(
    small, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(design, "load_benchmark", lambda quick, seeds, overrides: small)
    shutil.copytree(finished[0], tmp_path / "out")
    output = str(tmp_path / "out")
    assert main(["--output", output]) == 0
    printed = capsys.readouterr().out
    assert "forgetting" in printed
    assert "base_loss" in printed
    assert f"Results are in {output}" in printed
    assert main(["--output", output, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == output
    assert {row["of"] for row in document["rows"]} >= {"base", "full", "forgetting", "influence"}


def test_listed_commands_are_the_cells(small, tmp_path, monkeypatch, capsys):
    output = str(tmp_path / "out")
    words = ["--quick", "--seeds", "1", "--set", "training.epochs=0.2", "--output", output]
    assert main([*words, "--list"]) == 0
    commands = [command.split() for command in capsys.readouterr().out.splitlines()]
    quick = load_benchmark(quick=True, seeds="1")
    assert [command[-1] for command in commands] == [c.name for c in quick.cells()]
    assert commands[0][0] == "python"
    assert (Path(commands[0][1]) / "__main__.py").is_file()
    assert commands[0][2:-1] == [*words, "--cell"]
    done = []
    monkeypatch.setattr(runs, "run_cell", lambda cell, path: done.append(cell.name))
    assert main(commands[-1][2:]) == 0
    assert done == [quick.cells()[-1].name]
    assert not (tmp_path / "out" / "results.md").exists()


def test_it_is_started_as_a_folder_or_as_a_module(tmp_path):
    assert "--quick" in run_python("-m", "experiments.noise", "--help", folder=ROOT).stdout
    words = ["--quick", "--seeds", "7", "--list", "--output", tmp_path / "out"]
    done = run_python("experiments/noise", *words, folder=ROOT)
    assert done.returncode == 0
    assert done.stdout.count("--cell") == len(load_benchmark(quick=True, seeds="7").cells())
    assert "4 cells, 4 to do" in done.stderr
