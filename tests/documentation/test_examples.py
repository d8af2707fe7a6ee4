"""Python, YAML and JSON of the pages: every example runs, every recipe and record can be read."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting import Recipe, run, score_dataset
from forgetting.config import load_recipe
from forgetting.evaluation.suites import Suite
from forgetting.export.tokens import ALTERNATIVES, NOISE
from tests.conftest import save_tiny_model
from tests.documentation.conftest import DOCS, blocks, page_name


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
    assert len(names["rows"]) == 16
    for row, own in zip(names["rows"], names["polarity"], strict=True):
        # The response and what ends it are learned, and nothing of the prompt.
        ids = [token for token, label in zip(*row.values(), strict=True) if label != -100]
        assert len(ids) == len(own)
        assert names["tokenizer"].decode(ids).startswith("It is ")
    scores = [
        np.concatenate(
            score_dataset(names[name], names["rows"]["input_ids"], names["rows"]["labels"])
        )
        for name in ("base", "tuned", "model")
    ]
    assert all(np.abs(a - b).max() > 0 for a, b in pairwise(scores))


CHAT = (
    "{%- for m in messages -%}{{- '<' + m.role + '>' + m.content + '</s>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}"
)


@pytest.fixture
def chats(tmp_path):
    """A folder with the file and the model that the README's script names."""
    model = save_tiny_model(tmp_path / "Qwen" / "Qwen2.5-0.5B")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number}?"},
                {"role": "assistant", "content": f"It is {number} {'again ' * (number % 3)}."},
            ]
        }
        for number in range(20)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


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


CHECKS = {
    "README.md": the_readmes_trains,
    "docs/how-to/trainer.md": the_trainers_trains,
    "docs/how-to/export.md": the_exports_train,
}


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_python_example_runs(block, given, workplace, chats, monkeypatch):
    monkeypatch.chdir(chats if page_name(block.page) == "README.md" else workplace)
    before = np.concatenate(score_dataset(given["model"], given["input_ids"], given["labels"]))
    exec(compile(block.text, str(block), "exec"), given)
    if page_name(block.page) in CHECKS:
        CHECKS[page_name(block.page)](given, before)


def test_the_readmes_script_is_short():
    (block,) = (block for block in blocks("python") if page_name(block.page) == "README.md")
    assert sum(bool(line.strip()) for line in block.text.splitlines()) <= 25


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_piece_of_a_recipe_can_be_read(block, tmp_path):
    content = yaml.safe_load(block.text)
    if "suite" in content:
        assert Suite.model_validate(content).members
        return
    file = tmp_path / "recipe.yaml"
    extended = content.pop("extends", "forgetting")
    file.write_text(yaml.safe_dump({"extends": extended, **content}))
    recipe = load_recipe(file)
    for section in content:
        assert getattr(recipe, section) != getattr(load_recipe(extended), section)


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_a_record_can_be_read(block, tmp_path, tiny_model):
    record = json.loads(block.text)
    (tmp_path / "data.jsonl").write_text(block.text, encoding="utf-8")
    recipe = {
        "name": "shown",
        "model": {"name_or_path": str(tiny_model)},
        "data": {
            "sources": [{"path": str(tmp_path / "data.jsonl")}],
            "num_reference": 0,
            "num_train": 1,
            "num_heldout": 0,
            "max_length": 128,
        },
        "variants": {"full": {"objective": "full"}},
    }
    path = run(Recipe.model_validate(recipe), tmp_path / "run", stages=("prepare",))
    assert pq.read_table(path / "data" / "rejected.parquet").num_rows == 0
    for start, end in record["noise_spans"]:
        # A whole word.
        assert re.fullmatch(r"\w+", record["completion"][start:end])


def test_the_columns_of_an_exported_corpus_are_those_of_the_page(workplace):
    page = (DOCS / "how-to" / "export.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| column \|.*?\n\n", page, re.DOTALL | re.MULTILINE)
    shown = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    (file, *_) = (workplace / "exports" / "demo-forgetting-data").rglob("*.parquet")
    # The noise of this corpus is not known, no detector has seen it, and no token is corrected.
    left_out = (*NOISE, *ALTERNATIVES, "posterior")
    assert [name for name in shown if name not in left_out] == pq.read_schema(file).names
