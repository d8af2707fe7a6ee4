"""The command line says what came out, in the form that was asked for, and how it went."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import typer

from forgetting import __version__, doctor, pipeline
from forgetting.cli import app, main
from forgetting.cli.interrupt import MESSAGE
from forgetting.config import (
    LossSettings,
    Recipe,
    SelectionSettings,
    TrainingSettings,
    load_recipe,
    shipped_recipes,
)
from forgetting.errors import DivergenceError

# The hidden one is for `forgetting.launch`.
COMMANDS = {
    name: command
    for name, command in typer.main.get_command(app).commands.items()
    if not command.hidden
}
pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture
def run_tiny(finished_run):
    """Runs a command on the finished run; gives its exit code."""
    recipe, path = finished_run

    def do(*options, verb="run"):
        return main([verb, str(recipe), "--run-dir", str(path), *options])

    return do


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"forgetting {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"], ["run", "-h"]])
def test_help_is_shown(capsys, arguments):
    assert main(arguments) in (0, 2)
    assert "Usage" in capsys.readouterr().out


def test_help_lists_every_command_in_one_of_the_groups(capsys):
    assert main(["-h"]) == 0
    text = capsys.readouterr().out
    titles = ["Run a recipe", "Single stages", "Look and export", "Studies", "This installation"]
    assert sorted(titles, key=text.index) == titles
    assert all(f"│ {name} " in text for name in COMMANDS)
    assert "Commands" not in text


SHARED_OPTIONS = {
    "--run-dir",
    "--set",
    "--quiet",
    "--json",
    "--processes",
    "--accelerate-config",
    "--output",
    "--help",
    # How a data file without a recipe is read, and what ranks its records.
    "--limit",
    "--field",
    "--columns",
    "--escaped",
    "--quality",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_an_example_and_at_most_eight_options_of_its_own(name, monkeypatch, capsys):
    command = COMMANDS[name]
    options = {param.opts[0] for param in command.params if param.opts[0].startswith("--")}
    assert len(options - SHARED_OPTIONS) <= 8
    program, verb, *rest = command.epilog.removeprefix("Example: ").split()
    assert (program, verb) == ("forgetting", name)
    # The example can be read by the command's own parser.
    command.make_context(name, rest)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["rum"], "Did you mean 'run'?"),
        (["run", "demo", "--dry-runn"], "--dry-run"),
        (["run", "quikstart"], "Did you mean quickstart?"),
        (["sweep", "Demo", "--grid", "seed=1"], "Did you mean demo?"),
        (["run", "demo", "--set", "rho=0.5"], "Did you mean selection.rho?"),
        (["run", "demo", "--set", "roh=0.5"], "Did you mean selection.rho?"),
        (["run", "demo", "--set", "selection.roh=0.5"], "Did you mean rho?"),
        (["run", "demo", "--set", "learning_rat=1"], "Did you mean training.learning_rate?"),
        (["reproduce", "figure1"], "Did you mean figure1a or figure1b?"),
        (["reproduce", "table3", "--scale", "tinny"], "Did you mean tiny?"),
    ],
)
def test_a_typo_gets_the_near_matches(arguments, match, capsys):
    assert main(arguments) == 2
    assert match in " ".join(capsys.readouterr().err.split())


def test_a_wrong_file_name_gets_the_near_matches(write_recipe, tmp_path, capsys):
    recipe = write_recipe()
    assert main(["run", str(recipe.with_suffix(".yml")), "--dry-run"]) == 2
    assert f"Did you mean {recipe}?" in capsys.readouterr().err
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert main(["inspect", str(tmp_path / "runs" / "mien")]) == 2
    assert f"Did you mean {tmp_path / 'runs' / 'mine'}?" in capsys.readouterr().err
    for command in ("export", "chat"):
        assert main([command, str(tmp_path / "runs" / "mien")]) == 2
        assert f"Did you mean {tmp_path / 'runs' / 'mine'}?" in capsys.readouterr().err
    assert main(["audit", str(recipe.parent / "records.jsno")]) == 2
    assert "Did you mean" in capsys.readouterr().err
    assert main(["inspect", str(recipe)]) == 2
    assert "Pass the model that scores it with --model" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["run"], ["run", "x", "--nope"], ["walk"], ["doctor", "x"]])
def test_a_wrong_command_line_is_2(capsys, arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage" in captured.err


def test_recipes_lists_the_shipped_ones(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == shipped_recipes()
    assert main(["recipes", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == shipped_recipes()
    assert all(len(entry["description"].split()) >= 4 for entry in entries)
    assert not any("#" in entry["description"] for entry in entries)


@pytest.mark.parametrize("section", ["training", "selection", "loss", "recipe"])
def test_fields_prints_every_field_of_a_section(section, capsys):
    models = {
        "training": TrainingSettings,
        "selection": SelectionSettings,
        "loss": LossSettings,
        "recipe": Recipe,
    }
    assert main(["fields", section, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    names = [field["name"] for field in found["fields"]]
    assert names == models[section].field_names()
    assert all(field["meaning"] for field in found["fields"] if section != "recipe")
    assert main(["fields", section]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name}  " in text for name in names)
    assert "`" not in text


def test_fields_prints_all_sections_and_names_the_near_match(capsys):
    assert main(["fields"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "learning_rate number above 0; default 0.0001 Peak learning rate." in text
    assert "objective full, ignoring, forgetting, weighted, corrected; must be given" in text
    assert "lora a section: lora, or null" in text
    assert main(["fields", "trainin"]) == 2
    assert "Did you mean training?" in capsys.readouterr().err


COMPLETIONS = {
    "bash": lambda words: {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)},
    "zsh": lambda words: {"_TYPER_COMPLETE_ARGS": words},
    "fish": lambda words: {
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    },
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_the_shell_completes_commands_and_recipes(shell, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quiet.yaml").touch()
    (tmp_path / "quiet.txt").touch()
    monkeypatch.setattr("sys.argv", ["forgetting"])
    monkeypatch.setenv("_FORGETTING_COMPLETE", f"complete_{shell}")
    for words, offered, other in (
        ("forgetting repr", ["reproduce"], "report"),
        ("forgetting run qui", ["quickstart", "quiet.yaml"], "quiet.txt"),
    ):
        for name, value in COMPLETIONS[shell](words).items():
            monkeypatch.setenv(name, value)
        assert main() == 0
        text = capsys.readouterr().out
        assert all(each in text for each in offered)
        assert other not in text
    monkeypatch.delenv("_FORGETTING_COMPLETE")
    # The tests may run below any shell, one without completion included.
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    assert main(["--show-completion"]) == 0
    assert "_FORGETTING_COMPLETE" in capsys.readouterr().out


def test_a_run_ends_with_its_results_and_where_they_are(run_tiny, finished_run, capsys):
    assert run_tiny() == 0
    captured = capsys.readouterr()
    assert all(name in captured.out for name in ("base", "full", "ignoring", "forgetting"))
    assert str(finished_run[1] / "report" / "index.html") in captured.out
    assert "train:forgetting: already done" in captured.err


def test_json_is_one_document_on_standard_output(run_tiny, finished_run, capsys):
    assert run_tiny("--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["run_dir"] == str(finished_run[1])
    results = json.loads((finished_run[1] / "report" / "results.json").read_text())
    assert document["results"] == results
    assert captured.err == ""


@pytest.mark.parametrize("verb", ["prepare", "score", "train"])
def test_a_verb_says_where_its_work_is(run_tiny, finished_run, capsys, verb):
    assert run_tiny("--json", verb=verb) == 0
    assert json.loads(capsys.readouterr().out) == {"run_dir": str(finished_run[1])}


def test_quiet_leaves_only_the_results(run_tiny, capsys):
    assert run_tiny("--quiet") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "forgetting" in captured.out


def test_a_fresh_run_prints_only_lines_of_its_own(write_recipe, tmp_path, capfd):
    """None of the frameworks below is heard: no warnings, no bars."""
    recipe = write_recipe(variants={"forgetting": {}})
    assert main(["run", str(recipe), "--run-dir", str(tmp_path / "run")]) == 0
    lines = [line.split("] ")[-1].strip() for line in capfd.readouterr().err.splitlines()]
    stages = {line.split(":")[0] for line in lines if line}
    assert stages == {step.stage.name for step in pipeline.plan(load_recipe(recipe))}, lines


def test_the_plan_is_printed_and_nothing_is_written(write_recipe, tmp_path, capsys):
    recipe, path = str(write_recipe()), tmp_path / "run"
    options = ["--run-dir", str(path), "--set", "data.num_train=20", "--dry-run"]
    assert main(["run", recipe, *options]) == 0
    text = capsys.readouterr().out
    assert "to do" in text
    assert "optimizer steps" in text
    assert main(["run", recipe, *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    steps = {line["step"]: line for line in document["plan"]}
    assert steps["train:full"]["optimizer steps"] == 5
    assert not steps["train:full"]["done"]
    assert not path.exists()


def test_the_plan_says_that_there_are_too_few_samples(write_recipe, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    rows = ({"prompt": f"{i}?", "completion": f"{i}."} for i in range(60))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"num_reference": 5, "num_train": 40, "num_heldout": 5, "max_length": 256}
    variants = {"weighted": {"objective": "weighted"}}
    recipe = str(write_recipe(data={"sources": [{"path": str(data)}], **sizes}, variants=variants))
    command = ["run", recipe, "--run-dir", str(tmp_path / "run"), "--dry-run"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "to do" in captured.out
    told = " ".join(captured.err.split())
    assert "The detector will find nothing: D_train has 40 samples, and it needs 50" in told
    assert main([*command, "--json", "--set", "data.num_train=51"]) == 2
    captured = capsys.readouterr()
    assert "prepare" in captured.out
    assert "asks for 61 samples" in captured.err
    assert "detector" not in captured.err


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_processes_that_a_step_cannot_be_dealt_to_are_refused(write_recipe, tmp_path, capsys, more):
    options = ["--run-dir", str(tmp_path / "run"), "--processes", "3", *more]
    assert main(["run", str(write_recipe()), *options]) == 2
    assert "training.batch_size 4 is not divisible by" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_processes_are_started_with_the_recipe_as_it_was_read(
    finished_run, write_recipe, monkeypatch, capsys
):
    started = []

    def launch(*arguments, **options):
        started.append((*arguments, options))
        return len(started) == 1

    monkeypatch.setattr("forgetting.cli.run_commands.launch", launch)
    path, run = finished_run
    options = ["--run-dir", str(run), "--set", "seed=1", "--set", "seed=2", "--json"]
    assert main(["score", str(path), *options, "--processes", "2"]) == 0
    # Says what came out where the leading process was on this machine.
    assert json.loads(capsys.readouterr().out) == {"run_dir": str(run)}
    recipe = str(write_recipe())
    assert main(["run", recipe, "--accelerate-config", "fsdp2"]) == 0
    assert capsys.readouterr().out == ""
    first = {"processes": 2, "config": None, "quiet": True}
    second = {"processes": None, "config": "fsdp2", "quiet": False}
    assert started == [
        (load_recipe(path, ["seed=2"]), run, ("score",), first),
        (load_recipe(recipe), Path("runs/tiny"), None, second),
    ]


def test_the_default_run_directory_is_named_after_the_recipe(write_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", str(write_recipe()), "--quiet"]) == 0
    assert (tmp_path / "runs" / "tiny" / "data" / "train.parquet").is_file()


def fail_with(monkeypatch, error):
    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr(pipeline, "run", run)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DivergenceError("at step 3"), 1, "error: at step 3"),
        (KeyboardInterrupt(), 130, MESSAGE),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 2, "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "f"), 2, "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 2, "Permission denied: 'f'"),
        (DivergenceError("[bold]x[/] [/]"), 1, "error: [bold]x[/] [/]"),
    ],
)
def test_what_goes_wrong_is_one_message_and_a_code(
    write_recipe, monkeypatch, capsys, error, code, text
):
    fail_with(monkeypatch, error)
    assert main(["run", str(write_recipe())]) == code
    captured = capsys.readouterr()
    assert text in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_a_mistake_of_ours_keeps_its_traceback(write_recipe, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        main(["run", str(write_recipe())])


def test_doctor_is_content_with_this_machine(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text
    assert "arithmetic" in text
    assert " ".join(text.split()).endswith(doctor.verdict(doctor.examine()))


def test_doctor_exits_1_where_something_needed_is_broken(monkeypatch, capsys):
    broken = doctor.Finding("trl", "broken", "is [not] installed")
    monkeypatch.setattr(doctor, "examine", lambda: [broken])
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "is [not] installed" in text
    assert text.endswith("Recipes cannot run here. Fix what is broken first: trl.\n")
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"what": "trl", "level": "broken", "detail": "is [not] installed"}
    ]


def test_prepare_prints_counts_and_shows_samples(run_tiny, capsys):
    assert run_tiny("--show", "2", verb="prepare") == 0
    text = capsys.readouterr().out
    assert "records" in text
    assert text.count("tokens, ") == 2
    assert text.count("‹</s>›⟧") == 2
    assert run_tiny(verb="prepare") == 0
    text = capsys.readouterr().out
    assert "⟦" not in text
    assert "records" in text
    assert run_tiny("--show", "2", "--json", verb="prepare") == 0
    assert json.loads(capsys.readouterr().out).keys() == {"run_dir"}
