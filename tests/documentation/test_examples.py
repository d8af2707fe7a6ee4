"""Python and YAML of the pages: every example runs, every piece of a recipe can be read."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting import score_dataset
from forgetting.config import load_recipe
from forgetting.evaluation.suites import Suite
from tests.documentation.conftest import blocks


@pytest.fixture
def given(tiny_model):
    """The names that examples take as known."""
    rng = np.random.default_rng(0)
    input_ids = [rng.integers(5, 200, length).tolist() for length in (12, 7, 9, 15)]
    model, reference = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
    for parameter in reference.parameters():
        parameter.data.mul_(1.1)
    return {
        "model": model,
        "reference_model": reference,
        "tokenizer": AutoTokenizer.from_pretrained(tiny_model),
        "input_ids": input_ids,
        "labels": [[-100] * 3 + row[3:] for row in input_ids],
    }


def the_readmes_trains(names, before):
    polarity = np.concatenate(names["polarity"])
    assert (polarity == 1).sum() == round(0.7 * polarity.size)
    assert (polarity == -1).sum() == polarity.size - round(0.7 * polarity.size)
    assert names["trainer"].state.global_step > 0
    after = score_dataset(names["trainer"].model, names["input_ids"], names["labels"])
    assert np.abs(np.concatenate(after) - before).max() > 0


def the_trainers_trains(names, before):
    log = names["trainer"].state.log_history
    assert names["trainer"].state.global_step > 0
    assert any(entry.get("share_negative") == 0.5 for entry in log)
    after = score_dataset(names["model"], names["input_ids"], names["labels"])
    assert np.abs(np.concatenate(after) - before).max() > 0


def the_exports_train(names, before):
    assert names["trainer"].state.global_step > 0
    after = score_dataset(names["model"], names["input_ids"], names["labels"])
    assert np.abs(np.concatenate(after) - before).max() > 0


def the_evaluations_writes_a_task(names, before):
    (file,) = names["folder"].glob("*.yaml")
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["task"] == "boolq"


CHECKS = {
    "README.md": the_readmes_trains,
    "trainer.md": the_trainers_trains,
    "export.md": the_exports_train,
    "evaluation.md": the_evaluations_writes_a_task,
}


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_python_example_runs(block, given, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    before = np.concatenate(score_dataset(given["model"], given["input_ids"], given["labels"]))
    exec(compile(block.text, str(block), "exec"), given)
    if block.page.name in CHECKS:
        CHECKS[block.page.name](given, before)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_piece_of_a_recipe_can_be_read(block, tmp_path):
    content = yaml.safe_load(block.text)
    if "suite" in content:
        assert Suite.model_validate(content).members
        return
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"extends": "quickstart", **content}))
    recipe = load_recipe(file)
    for section in content:
        assert getattr(recipe, section) != getattr(load_recipe("quickstart"), section)
