"""YAML that would blow up is refused before it does."""

from __future__ import annotations

import pytest
import yaml

from forgetting.config import load_recipe, yaml_text
from forgetting.config.yaml_text import parse_yaml
from forgetting.errors import InputError

TEN = "&a0 [x, x, x, x, x, x, x, x, x, x]"
LEVELS = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
BOMB = "\n".join([f"a0: {TEN}", *LEVELS, ""])
MERGES = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))]
)


def indented(text):
    return "".join(f"    {line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        MERGES,
        BOMB.replace("a11: &a11", "training:\n  report_to: &a11"),
        f"model:\n  name_or_path: a/b\n  architecture:\n{indented(BOMB)}",
        f"name:\n{indented(BOMB)}",
        "data: &a\n  sources: *a\n",
        "data: &a\n  <<: *a\n",
        "- &a [*a, *a]\n",
        f"seed: [{'1, ' * 1000}1]",
    ],
    ids=["unknown", "merges", "list", "mapping", "text", "itself", "merged", "twice", "long"],
)
def test_a_text_that_stands_for_too_much_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_text, "MAX_NODES", 1000)
    with pytest.raises(yaml.YAMLError, match=r"stands for more than 1,000 values"):
        parse_yaml(text)
    file = tmp_path / "bomb.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"bomb.yaml is not YAML: .*1,000 values"):
        load_recipe(file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, e: 2020-01-31}\n",
        "- 1\n- null\n- ''\n- [a, {b: 1.5}]\n",
        "just text",
    ],
    ids=["empty", "anchors", "list", "text"],
)
def test_other_texts_are_read_as_usual(text):
    assert parse_yaml(text) == yaml.safe_load(text)


def test_a_wrong_value_is_shown_in_part(tmp_path):
    file = tmp_path / "long.yaml"
    file.write_text(f"seed: [{'1, ' * 5000}1]\n")
    with pytest.raises(InputError, match=r"seed: .*1, 1\.\.\.\)") as caught:
        load_recipe(file)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [51, 1500])
def test_a_long_chain_of_recipes_is_refused(length, tmp_path):
    for number in range(length):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (tmp_path / f"{length}.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match=r"50.yaml is extended by 50 recipes"):
        load_recipe(tmp_path / "0.yaml")
