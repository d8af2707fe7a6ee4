"""A run, or a file and two models, become what the inspector shows."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.request

import numpy as np
import pytest

from forgetting.cli import main
from forgetting.errors import InputError
from forgetting.export import export_run
from forgetting.inspecting import open_run, score_data
from forgetting.inspector import InspectorServer
from forgetting.inspector.overview import whole
from forgetting.inspector.queries import Query
from forgetting.rundir.manifest import read_manifest
from forgetting.scoring import score_samples
from tests.conftest import save_tiny_model


def records(number):
    return [
        {"prompt": f"Which is number {i}?", "completion": f"It is {i * i}."} for i in range(number)
    ]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Another model with the same tokens."""
    return save_tiny_model(tmp_path_factory.mktemp("judge"), seed=3)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_model, judge):
    """A data file, and the run in which it was scored by two models."""
    folder = tmp_path_factory.mktemp("inspecting")
    data = folder / "my data.json"
    data.write_text(json.dumps([*records(30), *records(1)]), encoding="utf-8")
    return data, score_data(str(data), str(tiny_model), str(judge), run_dir=folder / "run")


def test_a_finished_run_is_opened(finished_run):
    inspection = open_run(finished_run[1])
    assert len(inspection) == 24
    assert inspection.selection.variant == "forgetting"
    assert "".join(text for text, _ in inspection.sample(0, 4096)["blocks"][-1]).startswith("It is")
    assert open_run(finished_run[1], "ignoring").selection.variant == "ignoring"


def test_tokens_of_another_tokenizer_are_not_decoded(finished_run, tmp_path, tiny_model):
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_model, model)
    shutil.copytree(finished_run[1], run)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tiny_model), str(model)))
    assert len(open_run(run)) == 24
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="made with another tokenizer than that of"):
        open_run(run)
    with pytest.raises(InputError, match="is not done in"):
        export_run(run, "data", output=tmp_path / "out")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a run directory"):
        open_run(tmp_path)


def test_a_run_before_its_selection_says_what_is_missing(write_recipe, tmp_path):
    from forgetting.pipeline import run

    path = run(write_recipe(), tmp_path / "run", stages=["prepare"])
    with pytest.raises(InputError, match=r"no selection yet.*forgetting select"):
        open_run(path)


def test_a_run_that_only_the_detector_judged_is_opened(detected_run):
    inspection = open_run(detected_run[1])
    assert inspection.selection.variant is None
    assert len(inspection.judgment.posterior) == len(inspection.quality)
    assert whole(inspection)["detector"]["verdict"]


def test_every_distinct_record_of_a_file_is_scored(scored):
    inspection = open_run(scored[1])
    assert len(inspection) == 30
    assert inspection.source_names == ["my data"]
    answers = {row["preview"] for row in inspection.page(Query(limit=50))["rows"]}
    assert len(answers) == 30


def test_what_is_scored_is_not_scored_again(scored, tiny_model, judge):
    data, run_dir = scored
    before = read_manifest(run_dir).stages
    score_data(str(data), str(tiny_model), str(judge), run_dir=run_dir)
    assert read_manifest(run_dir).stages == before


def test_new_records_are_scored_too(tiny_model, judge, tmp_path):
    grown = tmp_path / "grown.json"
    for number in (6, 9, 4):
        grown.write_text(json.dumps(records(number)), encoding="utf-8")
        path = score_data(str(grown), str(tiny_model), str(judge), run_dir=tmp_path / "run")
        assert len(open_run(path)) == number


def test_limit_takes_the_first_records(scored, tiny_model, judge, tmp_path):
    data, _ = scored
    path = score_data(str(data), str(tiny_model), str(judge), limit=5, run_dir=tmp_path / "run")
    assert len(open_run(path)) == 5


def test_without_a_reference_the_base_alone_judges(tiny_model, tmp_path, monkeypatch):
    passes = []

    def count(*arguments, **settings):
        passes.append(arguments)
        return score_samples(*arguments, **settings)

    monkeypatch.setattr("forgetting.stages.corpus_scores.score_samples", count)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f"{json.dumps(record)}\n" for record in records(4)))
    inspection = open_run(score_data(str(data), str(tiny_model), run_dir=tmp_path / "run"))
    assert inspection.selection.quality == "base_loss"
    assert inspection.quality.tolist() == inspection.columns["base_log_probs"].tolist()
    assert not whole(inspection)["has_reference"]
    assert len(passes) == 1
    assert inspection.scale.low < inspection.scale.center < inspection.scale.high < 0


def test_a_file_without_a_usable_record_is_refused(tiny_model, judge, tmp_path):
    data = tmp_path / "empty.jsonl"
    data.write_text("")
    with pytest.raises(InputError, match=r"holds no records"):
        score_data(str(data), str(tiny_model), str(judge), run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run directory nowhere"),
        (["nowhere.csv", "--model", "m"], "nowhere.csv"),
        ([".", "--reference", "m"], "--model"),
        (["nowhere.json", "--model", "m", "--reference", "m"], "nowhere.json"),
    ],
)
def test_the_command_says_what_is_missing(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_noise_that_a_file_knows_is_shown(tiny_model, judge, tmp_path):
    data = tmp_path / "spans.jsonl"
    lines = [{**record, "noise_spans": [[3, 5]]} for record in records(8)]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    path = score_data(str(data), str(tiny_model), str(judge), run_dir=tmp_path / "run")
    inspection = open_run(path)
    assert whole(inspection)["noise"]["num_noisy"] == 16  # the tokens of the model are bytes
    sample = inspection.sample(0, 4096)
    noisy = [p for (p, _), flag in zip(sample["blocks"][-1], sample["noise"], strict=True) if flag]
    assert "".join(noisy) == "is"


def test_the_command_serves_the_page_and_opens_it(scored, monkeypatch, capsys):
    opened, answers = [], []

    def serve(server):
        # One request is handled here; then somebody presses Ctrl-C.
        asking = threading.Thread(target=lambda: answers.append(read(opened[0])))
        asking.start()
        server.handle_request()
        asking.join()
        raise KeyboardInterrupt

    def read(url):
        with urllib.request.urlopen(url, timeout=900) as answer:
            return answer.read()

    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(InspectorServer, "serve_forever", serve)
    assert main(["inspect", str(scored[1])]) == 0
    assert opened[0] in capsys.readouterr().out
    assert b"token by token" in answers[0]


def test_the_command_shows_a_sample_where_there_is_no_browser(scored, capsys):
    assert main(["inspect", str(scored[1]), "--terminal"]) == 0
    assert "Sample" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--quality", "rank_gap"], "it needs reference_rank, which a file without --reference"),
        (["--quality", "los"], "no such measure"),
        (["--quality", "base_loss", "--reference", "r"], "Remove --reference"),
        (["--variant", "other"], "--variant is for a run directory"),
        (["--filter", "kind=x"], "--filter is for --terminal and --json"),
        (["--json", "--filter", "kid=x"], "--filter kid=x: pass kind=VALUE"),
        (["--field", "prompt"], "pass NAME=YOURS"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_model_is_loaded(scored, options, told, capsys):
    assert main(["inspect", str(scored[0]), "--model", "none/none", *options]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_fields_and_measure_of_a_file(tiny_model, tmp_path, capsys):
    data = tmp_path / "own.jsonl"
    lines = [json.dumps({"frage": f"What is {i}?", "antwort": f"It is {i}."}) for i in range(8)]
    data.write_text("\n".join(lines))
    arguments = ["inspect", str(data), "--model", str(tiny_model), "--run-dir", str(tmp_path / "r")]
    assert main([*arguments, "--json"]) == 2
    assert "--field prompt=question" in " ".join(capsys.readouterr().err.split())
    fields = ["--field", "prompt=frage", "--field", "completion=antwort"]
    assert (
        main([*arguments, *fields, "--quality", "entropy_gap", "--json", "--filter", "text=is 5"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["quality"], found["num_samples"], found["num_matching"]) == ("entropy_gap", 8, 1)
    assert "It is 5." in found["samples"][0]["text"][-1]["response"]


def test_a_table_without_a_header_is_read(tiny_model, tmp_path, capsys):
    data = tmp_path / "own.tsv"
    data.write_text("".join(f'"What is\\n{i}?\tIt is {i}.\n' for i in range(6)), encoding="utf-8")
    arguments = ["inspect", str(data), "--model", str(tiny_model), "--run-dir", str(tmp_path / "r")]
    assert main([*arguments, "--columns", "prompt, completion", "--escaped", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_samples"] == 6
    assert '"What is\n' in found["samples"][0]["text"][0]["context"]
    own = tmp_path / "own.json"
    own.write_text("[]")
    assert main(["inspect", str(own), "--model", "none/none", "--columns", "a,b"]) == 2
    assert ".csv and .tsv files only" in " ".join(capsys.readouterr().err.split())


def test_a_file_can_be_judged_by_the_detector(tiny_model, tmp_path, with_few_trees):
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records(60)), encoding="utf-8")
    run = score_data(str(data), str(tiny_model), quality="detector", run_dir=tmp_path / "run")
    inspection = open_run(run)
    assert inspection.selection.quality == "detector"
    assert inspection.judgment is not None
    assert np.array_equal(inspection.quality, 1 - inspection.judgment.posterior)
