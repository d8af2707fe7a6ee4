"""lm-eval tasks in process: against their definitions, and against lm-eval's own front door."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import yaml

from forgetting.config import EvaluationSettings
from forgetting.errors import InputError
from forgetting.evaluation import Harness
from forgetting.evaluation.harness import item_scores
from forgetting.rundir.results import Metric
from tests.conftest import byte_tokenizer

METRIC = {
    "multiple_choice": [{"metric": "acc"}],
    "generate_until": [{"metric": "exact_match"}],
}


@pytest.fixture
def measure(model, tokenizer):
    """Measures the tiny model; gives the results of all tasks, and the suites' last."""

    def run(tasks, **settings):
        harness = Harness(EvaluationSettings(tasks=tasks, **settings), tokenizer)
        results = {}
        for request in harness.requests:
            results |= {r.task: r for r in harness.measure(model, request).results}
        return [*results.values(), *harness.suite_results(results)]

    return run


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


def test_a_task_gives_the_accuracy_of_its_definition(measure, model, tokenizer, local_task):
    folder, items = local_task
    (result,) = measure(["stones"], include_path=str(folder))
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


def test_limit_takes_the_first_items(measure, local_task):
    for limit, number in ((4, 4), (0.5, 3), (99, 6)):
        (result,) = measure(["stones"], include_path=str(local_task[0]), limit=limit)
        assert result.num_items == number


def test_a_task_has_settings_of_its_own(measure, local_task):
    folder = str(local_task[0])
    asked = {"task": "stones", "num_fewshot": 2, "limit": 5}
    (result,) = measure([asked], include_path=folder, limit=3, num_fewshot=1)
    assert (result.num_fewshot, result.num_items) == (2, 5)
    assert result.notes == ["the first 5 of the 6 items of stones"]


def test_the_scores_of_items_are_those_whose_mean_is_the_result(model, tokenizer, local_task):
    settings = EvaluationSettings(tasks=["stones"], include_path=str(local_task[0]), limit=5)
    harness = Harness(settings, tokenizer)
    measured = harness.measure(model, harness.requests[0])
    found = measured.items["stones"]
    assert found.items.tolist() == [0, 1, 2, 3, 4]
    assert set(found.scores["acc"].tolist()) <= {0.0, 1.0}
    assert found.scores["acc"].mean() == measured.results[-1].metrics["acc"].value
    # Answers are kept only if the recipe says so.
    assert measured.samples == {}


def test_metrics_that_are_no_means_have_no_scores_of_items():
    rows = [
        {"filter": "none", "doc_id": i, "metrics": ["acc", "f1", "pair"], "acc": float(i), "f1": i}
        | {"pair": (i, i)}
        for i in range(3)
    ]
    figures = {name: Metric(value=1.0, stderr=None, higher_is_better=True) for name in ("acc",)}
    figures["f1"] = figures["acc"].model_copy(update={"value": 0.7})
    figures["pair"] = figures["acc"]
    found = item_scores(rows, figures)
    assert list(found.scores) == ["acc"]
    assert found.scores["acc"].tolist() == [0, 1, 2]


def test_examples_that_a_task_refuses_are_noted(measure, local_task):
    folder, _ = local_task
    task = yaml.safe_load((folder / "stones.yaml").read_text())
    (folder / "stones.yaml").write_text(yaml.safe_dump({**task, "num_fewshot": 0}))
    (result,) = measure(["stones"], include_path=str(folder), num_fewshot=2)
    assert result.num_fewshot == 0
    assert "no effect" in result.notes[0]


def test_a_group_ends_with_its_own_row(measure, local_task):
    folder, _ = local_task
    group = {
        "group": "minerals",
        "task": ["stones"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "minerals.yaml").write_text(yaml.safe_dump(group))
    stones, minerals = measure(["minerals"], include_path=str(folder))
    assert (stones.task, minerals.task, minerals.num_items) == ("stones", "minerals", 6)
    assert minerals.metrics["acc"].value == stones.metrics["acc"].value


def test_samples_are_kept_on_request(model, tokenizer, local_task):
    folder, items = local_task
    settings = EvaluationSettings(tasks=["stones"], include_path=str(folder), log_samples=True)
    harness = Harness(settings, tokenizer)
    measured = harness.measure(model, harness.requests[0])
    rows = measured.samples["stones"]
    assert [row["doc"]["question"] for row in rows] == [item["question"] for item in items]
    assert sum(row["acc"] for row in rows) / 6 == measured.results[0].metrics["acc"].value


def test_prompts_are_rendered_with_the_chat_template_on_request(model, tokenizer, local_task):
    folder, items = local_task
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    settings = EvaluationSettings(
        tasks=["stones"],
        include_path=str(folder),
        log_samples=True,
        num_fewshot=1,
        limit=1,
        apply_chat_template=True,
        system_instruction="Be brief.",
    )
    harness = Harness(settings, tokenizer)
    measured = harness.measure(model, harness.requests[0])
    (result,) = measured.results
    assert (result.chat_template, result.system_instruction) == (True, "Be brief.")
    (row,) = measured.samples["stones"]
    prompts = {arguments[0] for arguments in row["arguments"]}
    question = row["doc"]["question"]
    # lm-eval draws which item is the example.
    expected = {
        f"<system>Be brief.<user>{item['question']}<assistant>{item['choices'][item['answer']]}"
        f"<user>{question}<assistant>"
        for item in items
    }
    assert len(prompts) == 1
    assert prompts <= expected


@pytest.mark.parametrize("tokenizer_adds", [False, True])
@pytest.mark.parametrize("template_writes", [False, True])
@pytest.mark.parametrize("output_type", ["multiple_choice", "generate_until"])
def test_a_model_reads_the_ids_that_the_template_gives(
    output_type, template_writes, tokenizer_adds, model, local_task, monkeypatch
):
    from tokenizers.processors import TemplateProcessing

    folder, _ = local_task
    task = yaml.safe_load((folder / "stones.yaml").read_text())
    task |= {"output_type": output_type, "generation_kwargs": {"until": ["x"], "max_gen_toks": 1}}
    (folder / "stones.yaml").write_text(
        yaml.safe_dump({**task, "metric_list": METRIC[output_type]})
    )
    tokenizer = byte_tokenizer()
    if tokenizer_adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer.chat_template = (
        "{{ bos_token }}"
        * template_writes
        + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    settings = EvaluationSettings(
        tasks=["stones"], include_path=str(folder), limit=1, apply_chat_template=True, batch_size=1
    )
    read = []
    forward = model.forward

    def noted(input_ids=None, **kwargs):
        read.append(input_ids[0].tolist())
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: noted(*args, **kwargs))
    harness = Harness(settings, tokenizer)
    harness.measure(model, harness.requests[0])
    turns = [{"role": "user", "content": "Stone 0 is"}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    # The choices are red and blue; the last token is not read.
    ends = ["re", "blu"] if output_type == "multiple_choice" else [""]
    assert {tuple(ids) for ids in read} == {
        (*expected, *tokenizer(end, add_special_tokens=False).input_ids) for end in ends
    }


def test_without_a_template_the_results_say_so(measure, local_task):
    (result,) = measure(["stones"], include_path=str(local_task[0]))
    assert (result.chat_template, result.system_instruction) == (False, None)


def test_the_same_tasks_measured_again_give_the_same(model, tokenizer, local_task):
    settings = EvaluationSettings(tasks=["stones"], include_path=str(local_task[0]), num_fewshot=2)
    harness = Harness(settings, tokenizer)
    (request,) = harness.requests
    first, again = (harness.measure(model, request).results for _ in range(2))
    assert first == again


def test_an_unknown_task_is_named(tokenizer, local_task, monkeypatch):
    import lm_eval.tasks

    known = lm_eval.tasks.TaskManager

    def without_defaults(include_path, include_defaults=True):
        # Reading all that lm-eval ships takes half a minute.
        return known(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", without_defaults)
    settings = EvaluationSettings(tasks=["no_such_task"], include_path=str(local_task[0]))
    with pytest.raises(InputError, match="has no task no_such_task"):
        Harness(settings, tokenizer)


def test_a_task_without_its_data_says_so(measure, local_task):
    folder, _ = local_task
    task = yaml.safe_load((folder / "stones.yaml").read_text())
    task["dataset_kwargs"] = {"data_files": {"test": str(folder / "missing.jsonl")}}
    (folder / "stones.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(InputError, match="stones"):
        measure(["stones"], include_path=str(folder))
