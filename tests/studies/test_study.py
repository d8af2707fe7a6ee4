"""Every study of the package can be planned; sweeps and studies run, resume, and end in files."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace

import pytest

from forgetting.cli import main
from forgetting.config import DataSettings
from forgetting.errors import DivergenceError, InputError
from forgetting.studies import (
    load_definition,
    paper_study,
    run_study,
    shipped_studies,
    sweep_study,
)
from forgetting.studies.conduct import list_commands
from forgetting.studies.execute import diverged_variants, total_work
from forgetting.training import fit

FILES = ["results.md", "results.csv", "results.tex", "results.json", "cells.csv"]
FIGURES = ["figure.svg", "figure.png"]
TWO = {"full": {}, "forgetting": {}}
# Three steps a variant, two for the reference.
SHORT = {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3, "lora": {"rank": 4}}


@pytest.fixture
def sweep(write_recipe):
    def make(*grid, variants=TWO, **sections):
        recipe = write_recipe(variants=variants, training=SHORT, **sections)
        return sweep_study(recipe, grid or ["selection.rho=0.6,0.8"])

    return make


def known(name):
    """Whether the package has every field that a study sets."""
    fields = [f.partition(".") for f in load_definition(name).grid]
    return all(field in DataSettings.model_fields for top, _, field in fields if top == "data")


@pytest.mark.parametrize("name", shipped_studies())
@pytest.mark.parametrize("scale", ["paper", "tiny"])
def test_every_study_has_three_seeds_and_a_row_for_every_published_figure(name, scale):
    if not known(name):
        pytest.skip("the data option of this study is not there")
    study = paper_study(name, scale)
    definition = load_definition(name)
    num_models = len(definition.models) if scale == "paper" else 1
    assert {run.recipe.seed for run in study.runs} == {1, 2, 3}
    assert len(study.runs) % (3 * num_models) == 0
    cells = [cell for run in study.runs for cell in run.cells]
    for published in study.published:
        matches = [
            c
            for c in cells
            if (c.model, c.name) == (published.model, published.variant)
            and published.levels.items() <= c.levels.items()
        ]
        assert {c.seed for c in matches} == {1, 2, 3}
    assert (study.x is None) or study.x in study.fields


def test_a_sweep_ends_in_tables_and_a_second_one_does_nothing(sweep, tmp_path, monkeypatch):
    study, output = sweep(), tmp_path / "study"
    left = total_work(study.runs, output)
    assert (left.num_unfinished_runs, left.num_trainings, left.num_evaluations) == (1, 4, 4)
    # D_ref and D_train have 16 and 24 samples, eight a step.
    assert left.num_optimizer_steps == 2 + 3 * 3
    table = run_study(study, output)
    assert all((output / name).stat().st_size for name in FILES + FIGURES)
    assert sorted(row.num_seeds for row in table.rows) == [1, 1, 1, 1]
    values = [table.value(row, table.metric).value for row in table.rows]
    assert values == sorted(values, reverse=table.metric.higher_is_better)
    assert total_work(study.runs, output).num_unfinished_runs == 0
    monkeypatch.setattr(fit, "fine_tune", None)
    assert run_study(study, output) == table
    # Of one seed there is a difference to `full`, and no interval.
    (row,) = [row for row in table.rows if row.levels.get("selection.rho") == "0.6"]
    found = table.paired_difference(row, table.metric)
    (full,) = [row for row in table.rows if row.variant == "full"]
    values = [table.value(each, table.metric).value for each in (row, full)]
    assert found.value == pytest.approx(values[0] - values[1])
    assert (found.num_pairs, found.has_interval) == (1, False)
    chosen = replace(study, columns=["variant", "heldout/loss:paired"])
    run_study(chosen, output)
    header = r"variant & held-out: loss, minus full, paired (n) \\"
    assert header in (output / "results.tex").read_text().splitlines()
    assert "| variant | held-out: loss, minus full, paired (n) |" in (
        output / "results.md"
    ).read_text().replace("\\", "")


def test_a_column_that_no_study_has_is_refused_before_the_first_run(write_recipe):
    recipe = write_recipe(variants=TWO)
    with pytest.raises(InputError, match=r"--columns: there is no column 'seds'.*mean seeds"):
        sweep_study(recipe, ["seed=1,2"], columns="variant, seds")
    with pytest.raises(InputError, match="names no column"):
        sweep_study(recipe, ["seed=1,2"], columns=" , ")
    assert sweep_study(recipe, ["seed=1,2"], columns="variant, seeds").columns == [
        "variant",
        "seeds",
    ]


def test_listed_commands_are_the_study(sweep, tmp_path):
    study, output = sweep("seed=1,2", variants={"full": {}}), tmp_path / "study"
    commands = list_commands(study, output)
    assert len(commands) == len(study.runs) == 2
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "forgetting"
        assert main([*arguments, "--quiet"]) == 0
    assert total_work(study.runs, output).num_unfinished_runs == 0
    assert {row.num_seeds for row in run_study(study, output).rows} == {2}


def test_a_diverged_variant_is_written_down_and_the_others_go_on(sweep, tmp_path, monkeypatch):
    study, output = sweep(), tmp_path / "study"
    fine_tune, attempts = fit.fine_tune, []

    def diverge(*arguments):
        attempts.append(arguments[4])
        if attempts[-1] == "Training forgetting-rho-0.6":
            raise DivergenceError("gradients are not finite")
        fine_tune(*arguments)

    monkeypatch.setattr(fit, "fine_tune", diverge)
    for _ in range(2):
        table = run_study(study, output)
        (lost,) = [row for row in table.rows if row.num_diverged]
        assert (lost.levels, lost.num_seeds) == ({"selection.rho": "0.6"}, 0)
        assert sum(row.num_seeds for row in table.rows) == 3
    assert attempts.count("Training forgetting-rho-0.6") == 1
    # With other settings it would be tried again.
    assert list(diverged_variants(study.runs, output)) == [
        (study.runs[0].name, "forgetting-rho-0.6")
    ]
    other = sweep(forgetting={"t_max": 0.2})
    assert diverged_variants(other.runs, output) == {}


def test_a_folder_of_another_study_or_of_anything_else_is_refused(sweep, tmp_path):
    study = sweep()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run_study(study, tmp_path / "mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text(json.dumps({"name": "other"}))
    with pytest.raises(InputError, match="belongs to the study 'other'"):
        run_study(study, tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no study 'nothing'"),
        (["table3", "--scale", "huge"], "no scale 'huge'"),
        (["table3", "--model", "x"], "--scale tiny"),
        (["table3", "--seeds", "x"], "seed"),
    ],
)
def test_a_wrong_study_is_one_message_and_2(arguments, message, capsys):
    assert main(["reproduce", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_reproduce_without_a_name_lists_the_studies(capsys):
    assert main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped_studies()


def test_sweep_prints_its_commands_or_its_results(write_recipe, tmp_path, capsys):
    recipe = write_recipe(variants={"full": {}}, training=SHORT)
    words = ["sweep", str(recipe), "--grid", "seed=1,2", "--output", str(tmp_path / "out")]
    assert main([*words, "--list"]) == 0
    captured = capsys.readouterr()
    assert [line.split()[:2] for line in captured.out.splitlines()] == [["forgetting", "run"]] * 2
    assert "2 trainings" in captured.err
    assert main([*words, "--json", "--metric", "heldout/loss"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metric"] == "heldout/loss"
    assert {row["seeds"] for row in document["rows"]} == {2}


@pytest.mark.long
def test_figure1a_runs_at_the_tiny_scale(tmp_path):
    overrides = ["data.num_train=32", "data.num_reference=16"]
    study = paper_study("figure1a", "tiny", seeds="1", overrides=overrides)
    output = tmp_path / "figure1a"
    table = run_study(study, output)
    rhos = load_definition("figure1a").grid["selection.rho"]
    assert len(table.rows) == 2 + 2 * len(rhos)
    assert {row.num_seeds for row in table.rows} == {1}
    assert all((output / name).stat().st_size for name in FILES + FIGURES)
    # One reference and one scoring serve all rho.
    for run in study.runs:
        manifest = json.loads((output / "runs" / run.name / "manifest.json").read_text())
        assert len([key for key in manifest["stages"] if key in ("reference", "score")]) == 2
    shares = {}
    for run in study.runs:
        for cell in run.cells:
            if cell.name == "ignoring":
                summary = output / "runs" / run.name / "selection" / cell.variant / "summary.json"
                counts = json.loads(summary.read_text())
                rho = float(cell.levels["selection.rho"])
                shares[rho] = counts["num_positive"] / counts["num_tokens"]
    # End-of-sequence tokens are never negative.
    assert all(rho <= share + 0.01 for rho, share in shares.items())
    assert list(shares.values()) == sorted(shares.values())
    rows = list(csv.DictReader((output / "cells.csv").open(encoding="utf-8")))
    assert {row["seed"] for row in rows} == {"1"}
    # The world's noise is known, so how well quality finds it is measured; rho has no part in it.
    (auroc,) = {float(row["value"]) for row in rows if row["metric"] == "auroc"}
    assert 0 < auroc < 1


def test_a_model_and_data_of_ones_own_take_the_place_of_the_demo(tiny_model, tmp_path):
    data = tmp_path / "data.jsonl"
    lines = [{"prompt": f"Say {i}.", "completion": f"{i} it is."} for i in range(40)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = {"num_reference": 8, "num_train": 16, "num_heldout": 4}
    study = paper_study(
        "table10",
        "tiny",
        models=[str(tiny_model)],
        data=str(data),
        seeds="1",
        overrides=[f"data.{key}={value}" for key, value in sizes.items()],
    )
    table = run_study(study, tmp_path / "out")
    assert {row.variant for row in table.rows} == {
        "base",
        "ignoring",
        "forgetting-constant",
        "forgetting",
    }
    assert {row.num_seeds for row in table.rows} == {1}
