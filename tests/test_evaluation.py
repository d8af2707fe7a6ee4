"""Held-out figures against their definitions, and lm-eval tasks on local files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.data.samples import SAMPLE_SCHEMA, Samples
from forgetting.errors import InputError
from forgetting.evaluation import evaluate_heldout, evaluate_tasks


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def heldout(model, number=10):
    """Half of the responses are what the model itself would say."""
    import pyarrow as pa

    random = np.random.default_rng(0)
    rows = []
    for index in range(number):
        prompt = random.integers(3, 259, 5).tolist()
        length = 3 + index % 3
        if index % 2:
            response = random.integers(3, 259, length).tolist()
        else:
            ids = torch.tensor([prompt])
            out = model.generate(
                ids, max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=2
            )
            response = out[0, 5:].tolist()
        rows.append(
            {
                "sample_id": index,
                "source": "own" if index % 2 == 0 else "random",
                "input_ids": prompt + response,
                "labels": [-100] * 5 + response,
                "noise": None,
                "noise_kind": None,
            }
        )
    return Samples(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)), rows


def test_heldout_figures_are_those_of_their_definitions(model):
    samples, rows = heldout(model)
    result = evaluate_heldout(model, samples, tokens_per_batch=30)
    losses, counts = [], []
    with torch.no_grad():
        double = AutoModelForCausalLM.from_pretrained(model.name_or_path).double()
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            log_probs = double(ids).logits[0, :-1].log_softmax(-1)
            taken = log_probs.gather(1, ids[0, 1:, None])[4:, 0]
            losses.append(-taken.sum().item())
            counts.append(len(taken))
    loss = sum(losses) / sum(counts)
    metrics = result.metrics
    assert result.num_items == 10
    assert metrics["loss"].value == pytest.approx(loss, abs=1e-5)
    assert metrics["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-4)
    residuals = [total - loss * count for total, count in zip(losses, counts, strict=True)]
    spread = math.sqrt(10 / 9 * sum(r * r for r in residuals)) / sum(counts)
    assert metrics["loss"].stderr == pytest.approx(spread, rel=1e-4)
    assert metrics["exact_match"].value == 0.5
    assert metrics["exact_match"].stderr == pytest.approx(math.sqrt(0.25 / 9))
    assert result.groups["own"].metrics["exact_match"].value == 1.0
    assert result.groups["random"].metrics["exact_match"].value == 0.0
    assert result.groups["own"].num_items == 5


@pytest.fixture
def local_task(tmp_path):
    """A multiple-choice task of 6 items in a file of one's own."""
    items = [
        {"question": f"Stone {i} is", "choices": ["red", "blue"], "answer": i % 2} for i in range(6)
    ]
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    folder = tmp_path / "tasks"
    folder.mkdir()
    task = {
        "task": "stones",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "stones.yaml").write_text(yaml.safe_dump(task))
    return folder, items


def test_a_local_task_gives_the_accuracy_of_its_definition(model, tokenizer, local_task):
    folder, items = local_task
    (result,) = evaluate_tasks(model, tokenizer, ["stones"], include_path=str(folder))
    right = 0
    with torch.no_grad():
        for item in items:
            scores = []
            for choice in item["choices"]:
                prompt = tokenizer(item["question"]).input_ids
                ids = prompt + tokenizer(" " + choice).input_ids
                log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                places = range(len(prompt), len(ids))
                scores.append(sum(log_probs[i - 1, ids[i]].item() for i in places))
            right += int(np.argmax(scores)) == item["answer"]
    assert result.task == "stones"
    assert result.local
    assert result.num_items == 6
    accuracy = result.metrics["acc"]
    assert accuracy.value == pytest.approx(right / 6)
    assert accuracy.higher_is_better
    assert accuracy.stderr == pytest.approx(
        math.sqrt(accuracy.value * (1 - accuracy.value) / 5), abs=1e-6
    )


def test_limit_takes_the_first_items(model, tokenizer, local_task):
    (result,) = evaluate_tasks(
        model, tokenizer, ["stones"], include_path=str(local_task[0]), limit=4
    )
    assert result.num_items == 4


def test_an_unknown_task_is_named(model, tokenizer):
    with pytest.raises(InputError, match="knows no task no_such_task"):
        evaluate_tasks(model, tokenizer, ["no_such_task"])


def test_a_task_without_its_data_says_so(model, tokenizer, local_task):
    folder, _ = local_task
    task = yaml.safe_load((folder / "stones.yaml").read_text())
    task["dataset_kwargs"] = {"data_files": {"test": str(folder / "missing.jsonl")}}
    (folder / "stones.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(InputError, match="stones"):
        evaluate_tasks(model, tokenizer, ["stones"], include_path=str(folder))
