"""Suites and requests: what is run, with which settings, and what the average is."""

from __future__ import annotations

import math
import statistics

import pytest
import yaml

from forgetting.config import EvaluationSettings, load_recipe
from forgetting.errors import InputError
from forgetting.evaluation.benchmarks import BENCHMARKS
from forgetting.evaluation.suites import (
    Request,
    Suite,
    plan_tasks,
    shipped_suites,
    suite_result,
)
from forgetting.rundir.results import Metric, TaskResult


def plan(tasks, **settings):
    return plan_tasks(EvaluationSettings(tasks=tasks, **settings))


def result(task, value, stderr, **metrics):
    figures = {"acc": Metric(value=value, stderr=stderr, higher_is_better=True), **metrics}
    return TaskResult(task=task, num_items=10, metrics=figures)


def test_the_papers_suites_are_its_nine_benchmarks():
    suites = shipped_suites()
    names = {name: [m.name for m in suite.members] for name, suite in suites.items()}
    assert names == {
        "paper": ["TruthfulQA", "BoolQ", "LogiQA", "ASDiv", "TyDiQA"],
        "paper-diverse": ["IFEval", "ARC-Challenge", "LAMBADA", "Arithmetic"],
    }
    tydiqa = suites["paper"].members[-1]
    assert (tydiqa.metric, tydiqa.num_fewshot, len(tydiqa.tasks)) == ("f1", 1, 9)
    assert all(m.num_fewshot == 0 for s in suites.values() for m in s.members if m is not tydiqa)
    # All can be had from local files.
    assert {t for s in suites.values() for m in s.members for t in m.tasks} <= BENCHMARKS.keys()


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-2-13b", "qwen2.5-3b", "gpt-neo-2.7b"])
def test_the_papers_recipes_ask_for_their_suite(name):
    _, suites = plan_tasks(load_recipe(name).evaluation)
    diverse = name in {"qwen2.5-3b", "gpt-neo-2.7b"}
    assert [suite.suite for suite in suites] == ["paper-diverse" if diverse else "paper"]


def test_the_average_is_of_members_and_its_error_that_of_independent_figures():
    suite = Suite.model_validate(
        {
            "suite": "mine",
            "members": [
                {"name": "A", "tasks": ["a"], "metric": "acc"},
                {"name": "B", "tasks": ["b1", "b2", "b3"], "metric": "acc"},
            ],
        }
    )
    values = {"a": (0.9, 0.03), "b1": (0.1, 0.01), "b2": (0.2, 0.02), "b3": (0.6, 0.04)}
    row = suite_result(suite, {task: result(task, *pair) for task, pair in values.items()})
    of_b = statistics.mean([0.1, 0.2, 0.6])
    error_of_b = math.sqrt(0.01**2 + 0.02**2 + 0.04**2) / 3
    average = row.metrics["average"]
    assert row.groups["B"].metrics["average"].value == pytest.approx(of_b)
    assert row.groups["B"].metrics["average"].stderr == pytest.approx(error_of_b)
    assert average.value == pytest.approx((0.9 + of_b) / 2)
    assert average.stderr == pytest.approx(math.sqrt(0.03**2 + error_of_b**2) / 2)
    assert row.num_items == 40
    assert row.members == {"A": ["a/acc"], "B": ["b1/acc", "b2/acc", "b3/acc"]}
    without = {**values, "a": (0.9, None)}
    row = suite_result(suite, {task: result(task, *pair) for task, pair in without.items()})
    assert row.metrics["average"].stderr is None


def test_a_metric_that_a_task_lacks_is_named():
    suite = Suite.model_validate(
        {"suite": "mine", "members": [{"name": "A", "tasks": ["a"], "metric": "f1"}]}
    )
    with pytest.raises(InputError, match="the task a has no metric f1; it has acc"):
        suite_result(suite, {"a": result("a", 0.5, 0.1)})


def test_a_metric_is_found_by_its_filter():
    member = {"name": "A", "tasks": ["a"], "metric": "em", "filter": "strict"}
    suite = Suite.model_validate({"suite": "mine", "members": [member]})
    strict = Metric(value=0.25, stderr=0.1, higher_is_better=True)
    row = suite_result(suite, {"a": result("a", 0.5, 0.1, **{"em (strict)": strict})})
    assert row.metrics["average"].value == 0.25


@pytest.mark.parametrize(
    ("limits", "number"),
    [((), 817), ((0.99,), 809), ((0.99, 20), 20), ((100,), 100), ((9000,), 817)],
)
def test_the_smallest_limit_counts(limits, number):
    assert Request("truthfulqa_mc2", limits=limits).num_items(817) == number


def test_a_tasks_own_limit_replaces_the_recipes_and_a_suites_members_keep_theirs():
    tasks = [{"task": "gsm8k", "limit": 200}, "hellaswag", {"task": "paper", "limit": 5}]
    requests, _ = plan(tasks, limit=100)
    limits = {request.task: request.limits for request in requests}
    assert (limits["gsm8k"], limits["hellaswag"]) == ((200,), (100,))
    assert (limits["boolq"], limits["tydiqa_goldp_en"]) == ((0.99, 5), (100, 5))
    requests, _ = plan(["paper"], limit=20)
    assert {request.limits for request in requests} == {(0.99, 20), (100, 20)}


def test_suites_say_their_own_shots_and_tasks_take_the_recipes():
    requests, _ = plan(["paper", "hellaswag", {"task": "piqa", "num_fewshot": 3}], num_fewshot=5)
    shots = {request.task: request.num_fewshot for request in requests}
    assert (shots["boolq"], shots["tydiqa_goldp_en"]) == (0, 1)
    assert (shots["hellaswag"], shots["piqa"]) == (5, 3)


def test_a_task_is_run_once_and_not_with_two_settings():
    requests, _ = plan(["arithmetic", "arithmetic_2da"])
    assert len(requests) == 10
    with pytest.raises(InputError, match="boolq twice"):
        plan(["paper", {"task": "boolq", "num_fewshot": 5}])
    with pytest.raises(InputError, match="paper is a suite"):
        plan([{"task": "paper", "num_fewshot": 5}])


def test_a_suite_of_ones_own_lies_beside_ones_tasks(tmp_path):
    suite = {"suite": "mine", "members": [{"name": "A", "tasks": ["a"], "metric": "acc"}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite))
    (tmp_path / "task.yaml").write_text("task: a\nprocess_docs: !function own.process\n")
    requests, suites = plan(["mine"], include_path=str(tmp_path))
    assert [request.task for request in requests] == ["a"]
    assert [found.suite for found in suites] == ["mine"]
    suite["members"][0]["metrics"] = "acc"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(InputError, match=r"mine.yaml is not a valid suite: members.0.metrics"):
        plan(["mine"], include_path=str(tmp_path))
