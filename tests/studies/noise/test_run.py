"""The benchmark from start to end, and what goes wrong on the way."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from forgetting.cli import main
from forgetting.errors import DivergenceError, InputError
from forgetting.studies.noise import run as runs
from forgetting.studies.noise.design import load_benchmark
from forgetting.studies.noise.run import cell_path, run_benchmark


@pytest.fixture
def small(monkeypatch):
    """Two cells with two models each, done by a thread in place of processes."""

    def threads(jobs, mp_context, initializer):
        del mp_context, initializer
        return ThreadPoolExecutor(jobs)

    monkeypatch.setattr(runs, "ProcessPoolExecutor", threads)
    sets = ["data.num_train=40", "data.num_reference=16", "data.num_heldout=16"]
    benchmark = load_benchmark(seeds="1", overrides=[*sets, "training.epochs=0.2"])
    chosen = {name: benchmark.variants[name] for name in ("full", "forgetting")}
    update = {"variants": chosen, "rates": [0.2], "worlds": {"known": 0}}
    return benchmark.model_copy(update={**update, "rate_of_single_kinds": None})


def test_a_benchmark_ends_in_its_results_and_is_not_done_again(small, tmp_path, monkeypatch):
    output = tmp_path / "noise"
    figures = run_benchmark(small, output, jobs=1)
    names = ("results.md", "results.csv", "results.tex", "results.json", "figure.svg", "figure.png")
    assert all((output / name).stat().st_size for name in names)
    assert {path.name for path in (output / "cells").iterdir()} == {c.name for c in small.cells()}
    (noisy, clean) = sorted(figures.corpora, key=lambda corpus: corpus.reference, reverse=True)
    # The base and `full` have no reference: they are measured once, and compared with both.
    assert figures.mean(noisy, "accuracy", "full") is not None
    assert figures.mean(clean, "accuracy", "full") is None
    assert figures.mean(clean, "accuracy - full", "forgetting") is not None

    def not_again(*args):
        raise AssertionError(args)

    monkeypatch.setattr(runs, "run_cell", not_again)
    assert run_benchmark(small, output, jobs=1) == figures


def test_a_cell_whose_reference_diverges_is_left_out(small, tmp_path, monkeypatch):
    broken, run_cell = small.cells()[0], runs.run_cell

    def diverges(cell, path):
        if cell.name == broken.name:
            raise DivergenceError("training diverged at step 1")
        run_cell(cell, path)

    monkeypatch.setattr(runs, "run_cell", diverges)
    figures = run_benchmark(small, tmp_path / "noise", jobs=1)
    assert not cell_path(tmp_path / "noise", broken).exists()
    assert {corpus.reference for corpus in figures.corpora} == {"clean"}


def test_the_folder_of_another_study_is_refused(small, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"name": "noise-quick"}))
    with pytest.raises(InputError, match="belongs to the study 'noise-quick', not to 'noise'"):
        run_benchmark(small, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise", "--scale", "tiny"], "takes no --scale, --metric or --list"),
        (["noise", "--list"], "takes no --scale, --metric or --list"),
        (["noise", "--metric", "heldout/loss"], "takes no --scale, --metric or --list"),
        (["noise", "--seeds", "x"], "--seeds x: expected whole numbers"),
        (["noise", "--reference", "x"], "go with noise --data FILE"),
        (["noise", "--data", "x"], "takes --data FILE and one --model"),
        (["noise", "--model", "x"], "takes --data FILE and one --model"),
        (["noise", "--data", "x", "--model", "y", "--quick"], "do not go with --data"),
        (["table3", "--quick"], "go with the study noise"),
        (["table3", "--jobs", "2"], "go with the study noise"),
        (["noise", "--set", "training.epochs=no"], "training.epochs"),
    ],
)
def test_options_that_do_not_go_together_are_one_message_and_2(arguments, message, capsys):
    assert main(["reproduce", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_command_prints_means_and_where_everything_is(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "forgetting.studies.noise.load_benchmark", lambda quick, seeds, overrides: small
    )
    output = str(tmp_path / "out")
    assert main(["reproduce", "noise", "--jobs", "1", "--output", output]) == 0
    printed = capsys.readouterr().out
    assert "forgetting" in printed
    assert "base_loss" in printed
    assert f"Everything is in {output}" in printed
    assert main(["reproduce", "noise", "--jobs", "1", "--output", output, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == output
    assert {row["of"] for row in document["rows"]} >= {"base", "full", "forgetting", "influence"}
