"""Local files in place of the hub: found, read, marked, and scored as lm-eval scores them."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from forgetting.config import EvaluationSettings
from forgetting.errors import InputError
from forgetting.evaluation import Harness, write_tasks
from forgetting.evaluation.benchmarks import BENCHMARKS, find_files, read_items
from forgetting.evaluation.suites import check_tasks, evaluation_fingerprint, plan_tasks
from tests.evaluation.lm_eval_command import run_lm_eval

NINE = {
    "truthfulqa_mc2",
    "boolq",
    "logiqa",
    "asdiv",
    "tydiqa_goldp_en",
    "tydiqa_goldp_ko",
    "ifeval",
    "arc_challenge",
    "lambada_openai",
    "arithmetic_2da",
    "arithmetic_1dc",
}


@pytest.fixture
def own_dir(data_dir, tmp_path):
    """A copy to damage."""
    return shutil.copytree(data_dir, tmp_path / "data")


def suites_on(folder, **settings):
    return EvaluationSettings(tasks=["paper", "paper-diverse"], data_dir=str(folder), **settings)


def test_both_suites_run_from_local_files_and_say_so(model, tokenizer, data_dir):
    harness = Harness(suites_on(data_dir), tokenizer)
    results = {}
    for request in harness.requests:
        results |= {r.task: r for r in harness.measure(model, request).results}
    assert results.keys() == NINE
    for task, result in results.items():
        assert result.local
        # One item became the example.
        assert result.num_items == (3 if task == "tydiqa_goldp_en" else 4)
        assert result.notes[0].startswith("local build of ")
        assert result.notes[0].endswith(", 4 items")
    assert "not the published" in results["truthfulqa_mc2"].notes[1]
    assert "the first item of english_tydiqa_dev.json" in results["tydiqa_goldp_en"].notes[1]
    assert "answers end after 128 tokens, not 1280" in results["ifeval"].notes[1]
    paper, diverse = harness.suite_results(results)
    assert paper.num_items == 4 * 5 + 3
    assert diverse.num_items == 4 * 5
    assert paper.notes[0].endswith("tydiqa_goldp_en, tydiqa_goldp_ko")


@pytest.mark.parametrize("task", sorted(NINE))
def test_the_figures_are_those_of_lm_eval_on_the_same_files(
    task, tiny_model, model, tokenizer, data_dir, tmp_path
):
    import lm_eval
    from lm_eval.tasks import TaskManager

    shots = 1 if "tydiqa" in task else 0
    asked = {"task": task, "num_fewshot": shots}
    settings = EvaluationSettings(tasks=[asked], data_dir=str(data_dir), limit=3, batch_size=2)
    harness = Harness(settings, tokenizer, seed=3)
    (ours,) = harness.measure(model, harness.requests[0]).results
    write_tasks(harness.requests, settings.data_dir, tmp_path)
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    # Answers of half of the model's positions, where lm-eval alone would refuse to run.
    answers = {"max_gen_toks": 128} if "tydiqa" in task or task == "ifeval" else None
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny_model), "dtype": "float32"},
        device="cpu",
        tasks=[task],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        limit=3,
        batch_size=2,
        gen_kwargs=answers,
        **dict.fromkeys(seeds, 3),
    )["results"][task]
    assert ours.metrics
    for name, metric in ours.metrics.items():
        assert metric.value == theirs[f"{name},none"]
        if name != "perplexity":
            # Of perplexity it is bootstrapped.
            stderr = theirs[f"{name}_stderr,none"]
            assert metric.stderr == (None if stderr == "N/A" else stderr)


def as_text(value):
    """As lm-eval writes nested lists."""
    return list(map(as_text, value)) if isinstance(value, (list, tuple)) else str(value)


def test_every_sample_is_judged_as_by_lm_evals_command_line(
    tiny_model, model, tokenizer, data_dir, tmp_path
):
    # One that ranks choices, one that reads a likelihood, one that writes.
    tasks = ["boolq", "asdiv", "ifeval"]
    settings = EvaluationSettings(
        tasks=tasks, data_dir=str(data_dir), limit=3, batch_size=2, log_samples=True
    )
    harness = Harness(settings, tokenizer, seed=3)
    ours = {}
    for request in harness.requests:
        ours |= harness.measure(model, request).samples
    folder, output = tmp_path / "tasks", tmp_path / "output"
    folder.mkdir()
    write_tasks(harness.requests, settings.data_dir, folder)
    line = (
        f"run --model hf --model_args pretrained={tiny_model},dtype=float32 --device cpu "
        f"--tasks {','.join(tasks)} --include_path {folder} --limit 3 --batch_size 2 --seed 3 "
        f"--log_samples --output_path {output} --gen_kwargs max_gen_toks=128"
    )
    run_lm_eval(*line.split())
    for task in tasks:
        (file,) = output.rglob(f"samples_{task}_*.jsonl")
        theirs = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
        assert len(theirs) == len(ours[task]) == 3
        for own, other in zip(ours[task], theirs, strict=True):
            assert own["doc"] == other["doc"]
            assert as_text(own["filtered_resps"]) == other["filtered_resps"]
            for metric in other["metrics"]:
                assert own[metric] == other[metric]


def test_every_item_of_tydiqa_has_the_same_example_and_cut_contexts(model, tokenizer, data_dir):
    settings = suites_on(data_dir, log_samples=True)
    harness = Harness(settings, tokenizer)
    (request,) = (r for r in harness.requests if r.task == "tydiqa_goldp_ko")
    assert request.max_context_tokens == 512
    rows = harness.measure(model, request).samples["tydiqa_goldp_ko"]
    prompts = [row["arguments"][0][0] for row in rows]
    assert all("The black is here." in prompt for prompt in prompts)
    harness = Harness(settings, tokenizer)
    # One token a byte.
    short = type(request)(**{**vars(request), "max_context_tokens": 7})
    rows = harness.measure(model, short).samples["tydiqa_goldp_ko"]
    assert [row["doc"]["context"] for row in rows] == ["The red", "The blu", "The gre", "The gol"]
    assert all("The bla\n" in row["arguments"][0][0] for row in rows)


def test_a_missing_file_is_named_before_anything_is_run(own_dir):
    (own_dir / "boolq.jsonl").unlink()
    with pytest.raises(InputError, match=r"has no file boolq\*.jsonl for the task boolq"):
        check_tasks(suites_on(own_dir))


def test_of_two_files_that_fit_one_must_go(own_dir):
    shutil.copy(own_dir / "boolq.jsonl", own_dir / "boolq2.jsonl")
    with pytest.raises(InputError, match="all match boolq"):
        check_tasks(suites_on(own_dir))


def test_a_published_form_is_preferred_to_a_derived_one(own_dir):
    record = {
        "question": "Q",
        "mc1_targets": {"a": 1, "b": 0},
        "mc2_targets": {"a": 1, "b": 0},
    }
    (own_dir / "mc_task.json").write_text(json.dumps([record]))
    items = read_items(BENCHMARKS["truthfulqa_mc2"], own_dir)
    assert items.notes == ["local build of mc_task.json, 1 items"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("boolq.jsonl", '{"question": "q", "passage": "p"}', "has no field 'answer'"),
        ("boolq.jsonl", '{"question": ', "broken JSON at line 1"),
        ("boolq.jsonl", "", "no records"),
        ("ASDiv.xml", "<File><Problem>", "broken XML"),
        ("ASDiv.xml", "<File/>", "holds no items"),
        ("logiqa/Test.txt", "a\nContext\nWhich?\nA.one", "line 1 cannot be read"),
        ("tydiqa/korean_tydiqa_dev.json", "[]", "not in the SQuAD format"),
    ],
)
def test_a_broken_file_is_named_before_anything_is_run(own_dir, name, content, message):
    (own_dir / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        check_tasks(suites_on(own_dir))
    assert name.split("/")[-1] in str(raised.value)


@pytest.fixture
def sentences(own_dir, monkeypatch):
    """IFEval items of which the third counts sentences, and no nltk data anywhere."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    file = own_dir / "ifeval" / "input_data.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2]["instruction_id_list"] = ["length_constraints:number_sentences"]
    rows[2]["kwargs"] = [{"relation": "at least", "num_sentences": 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return own_dir


def test_sentence_data_is_asked_for_where_an_item_needs_it(sentences):
    with pytest.raises(InputError, match="python -m nltk"):
        check_tasks(suites_on(sentences))
    check_tasks(suites_on(sentences, limit=2))


def test_sentence_data_may_lie_in_the_data_folder(sentences, model, tokenizer):
    # No abbreviations known: enough to count, and the same for everyone who counts with it.
    folder = sentences / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (folder / name).write_text("")
    harness = Harness(EvaluationSettings(tasks=["ifeval"], data_dir=str(sentences)), tokenizer)
    (result,) = harness.measure(model, harness.requests[0]).results
    assert result.num_items == 4


def test_what_the_files_hold_is_part_of_the_fingerprint(own_dir):
    before = evaluation_fingerprint(suites_on(own_dir))
    assert before["files"]["tydiqa_goldp_ko"].keys() == {"validation", "train"}
    assert evaluation_fingerprint(suites_on(own_dir)) == before
    (own_dir / "boolq.jsonl").write_text('{"question": "q", "passage": "p", "answer": true}\n')
    after = evaluation_fingerprint(suites_on(own_dir))
    assert [task for task in before["files"] if before["files"][task] != after["files"][task]] == [
        "boolq"
    ]


def test_without_local_files_the_task_is_lm_evals_own(tmp_path):
    requests, _ = plan_tasks(EvaluationSettings(tasks=["boolq"]))
    assert write_tasks(requests, None, tmp_path) == {}
    (file,) = tmp_path.iterdir()
    task = yaml.safe_load(file.read_text())
    assert task.keys() == {"include", "task"}
    assert task["include"].endswith("lm_eval/tasks/super_glue/boolq/default.yaml")


def test_every_benchmark_includes_a_task_that_lm_eval_ships(tmp_path):
    requests, _ = plan_tasks(EvaluationSettings(tasks=sorted(BENCHMARKS)))
    write_tasks(requests, None, tmp_path)
    for benchmark in BENCHMARKS.values():
        task = yaml.safe_load((tmp_path / f"{benchmark.task}.yaml").read_text())
        with open(task["include"], encoding="utf-8") as shipped:
            assert f"task: {benchmark.task}\n" in shipped.read()


def test_data_of_other_languages_is_not_needed(data_dir):
    assert find_files(BENCHMARKS["tydiqa_goldp_ar"], data_dir) == {}
    requests, _ = plan_tasks(suites_on(data_dir))
    assert {r.task for r in requests} == NINE
