"""A model is measured once for each task, and models and tasks are loaded once."""

from __future__ import annotations

import json

import pytest

from forgetting.config import load_recipe
from forgetting.evaluation import Harness, harness
from forgetting.evaluation.bench import Bench
from forgetting.models import loading
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.stats import DataSummary
from forgetting.stages.evaluate import EVALUATE

pytestmark = pytest.mark.slow


@pytest.fixture
def stones(tmp_path):
    """Three tasks of one's own over the same file, and a suite of two of them."""
    items = [{"q": f"Stone {i} is", "choices": ["red", "blue"], "answer": i % 2} for i in range(6)]
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for name in ("one", "two", "three"):
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": f"{name}: {{{{q}}}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    members = [{"name": n.title(), "tasks": [n], "metric": "acc"} for n in ("one", "two")]
    (folder / "pair.yaml").write_text(json.dumps({"suite": "pair", "members": members}))
    return {"tasks": ["pair", "three"], "include_path": str(folder), "log_samples": True}


def save_summary(run, **changes):
    """What the evaluation reads of prepared data, if it measures no held-out samples."""
    summary = {"max_length": 128, "sources": [], "splits": {}, "end_token_ids": [1], **changes}
    layout.data_dir(run).mkdir(parents=True)
    DataSummary(**summary).save(layout.data_dir(run))


def test_a_cut_off_evaluation_does_only_the_tasks_without_a_result(
    write_recipe, stones, tmp_path, monkeypatch
):
    recipe = load_recipe(write_recipe(evaluation={**stones, "heldout": False}))
    save_summary(tmp_path)
    work = Work(tmp_path / "work")
    work.output.mkdir(parents=True)
    measured = []
    measure = Harness.measure

    def noted(self, model, request):
        measured.append(request.task)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(self, model, request)

    monkeypatch.setattr(Harness, "measure", noted)
    with pytest.raises(KeyboardInterrupt):
        EVALUATE.step(recipe, "base").execute(tmp_path, work)
    assert {f.name for f in work.output.iterdir()} == {
        *("one.json", "one.items.csv", "one.samples.jsonl")
    }
    EVALUATE.step(recipe, "base").execute(tmp_path, work)
    assert measured == ["one", "two", "two", "three"]
    # Of a damaged result, nothing is kept.
    (work.output / "two.json").write_text((work.output / "two.json").read_text()[:-20])
    EVALUATE.step(recipe, "base").execute(tmp_path, work)
    assert measured[4:] == ["one", "two", "three"]
    whole = Work(tmp_path / "whole")
    whole.output.mkdir(parents=True)
    EVALUATE.step(recipe, "base").execute(tmp_path, whole)
    files = {f.name: f.read_text() for f in whole.output.iterdir()}
    assert {f.name: f.read_text() for f in work.output.iterdir()} == files
    assert sorted(name for name in files if name.endswith(".json")) == [
        "one.json",
        "pair.json",
        "three.json",
        "two.json",
    ]
    pair, one, two = (json.loads(files[f"{name}.json"]) for name in ("pair", "one", "two"))
    values = [result["metrics"]["acc"]["value"] for result in (one, two)]
    assert pair["metrics"]["average"]["value"] == pytest.approx(sum(values) / 2)
    rows = [json.loads(line) for line in files["one.samples.jsonl"].splitlines()]
    assert sum(row["acc"] for row in rows) / 6 == pytest.approx(values[0])


def test_a_run_loads_the_base_once_for_all_adapters_and_its_tasks_once(
    write_recipe, stones, tmp_path, monkeypatch
):
    path = write_recipe(evaluation=stones)
    run_stages(path, tmp_path / "out", stages=("prepare", "reference", "score", "select", "train"))
    calls = []
    for module, name in ((loading, "load_base_model"), (harness, "_index")):
        own = getattr(module, name)

        def noted(*args, own=own, name=name):
            calls.append(name)
            return own(*args)

        monkeypatch.setattr(module, name, noted)
    run_stages(path, tmp_path / "out", stages=("evaluate", "report"))
    # The tasks' names are checked before anything is loaded.
    assert calls == ["_index", "_index", "load_base_model"]
    results = {
        variant: json.loads((tmp_path / "out/evaluation" / variant / "heldout.json").read_text())
        for variant in ("base", "full", "ignoring", "forgetting")
    }
    assert len({r["metrics"]["loss"]["value"] for r in results.values()}) == 4


def test_tasks_are_prompted_with_the_date_and_the_roles_of_the_training(
    write_recipe, stones, tmp_path
):
    template = tmp_path / "dated.jinja"
    template.write_text(
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    evaluation = {
        **stones,
        "heldout": False,
        "limit": 1,
        "apply_chat_template": True,
        "system_instruction": "Be brief.",
    }
    changes = ["model.system_role=fold", f"model.chat_template={template}"]
    recipe = load_recipe(write_recipe(evaluation=evaluation), changes)
    save_summary(tmp_path, date="2026-01-31")
    work = Work(tmp_path / "work")
    work.output.mkdir(parents=True)
    EVALUATE.step(recipe, "base").execute(tmp_path, work)
    rows = (work.output / "three.samples.jsonl").read_text().splitlines()
    prompts = {argument[0] for row in map(json.loads, rows) for argument in row["arguments"]}
    assert prompts == {"31 Jan 2026<user>Be brief.\n\nthree: Stone 0 is<assistant>"}


@pytest.mark.parametrize("is_applied", [False, True])
def test_measuring_without_the_template_of_the_training_is_a_warning(
    is_applied, write_recipe, stones, caplog
):
    evaluation = {**stones, "apply_chat_template": is_applied}
    found = Bench(load_recipe(write_recipe(evaluation=evaluation))).harness
    assert ("Set evaluation.apply_chat_template: true" in caplog.text) is not is_applied
    assert found.requests
