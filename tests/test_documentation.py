"""What the README and the pages of docs show runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting import score_dataset

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def python_examples(file):
    return re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readmes_python_example_trains(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = python_examples(README)
    rng = np.random.default_rng(0)
    input_ids = [rng.integers(5, 200, length).tolist() for length in (12, 7, 9, 15)]
    labels = [[-100] * 3 + row[3:] for row in input_ids]
    model, reference = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
    for parameter in reference.parameters():
        parameter.data.mul_(1.1)
    given = {
        "model": model,
        "reference_model": reference,
        "tokenizer": AutoTokenizer.from_pretrained(tiny_model),
        "input_ids": input_ids,
        "labels": labels,
    }
    before = np.concatenate(score_dataset(model, input_ids, labels))
    exec(compile(example, str(README), "exec"), given)
    polarity = np.concatenate(given["polarity"])
    assert (polarity == 1).sum() == round(0.7 * before.size)
    assert (polarity == -1).sum() == before.size - round(0.7 * before.size)
    assert given["trainer"].state.global_step > 0
    after = np.concatenate(score_dataset(given["trainer"].model, input_ids, labels))
    assert np.abs(after - before).max() > 0


def test_the_trainers_page_trains(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "trainer.md"
    (example,) = python_examples(page)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = model.lm_head.weight.detach().clone()
    given = {"model": model, "tokenizer": AutoTokenizer.from_pretrained(tiny_model)}
    exec(compile(example, str(page), "exec"), given)
    log = given["trainer"].state.log_history
    assert given["trainer"].state.global_step > 0
    assert any(entry.get("share_negative") == 0.5 for entry in log)
    assert not torch.equal(before, model.lm_head.weight)


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=str)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
