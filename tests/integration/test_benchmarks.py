"""The paper's nine benchmarks on real files and small pretrained models, where these lie beside
the checkout, and lm-eval's command line on the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forgetting.config import EvaluationSettings, ModelSettings
from forgetting.evaluation import Harness, write_tasks
from forgetting.models import loading
from tests.evaluation.lm_eval_command import run_lm_eval

SHARED = Path(__file__).resolve().parents[3] / "shared"
LIMIT = 2


@pytest.fixture
def harness_of(request):
    """A model of real weights, and its harness."""

    def build(name, tasks, limit=LIMIT):
        data_dir, model_dir = SHARED / "data/eval", SHARED / "models" / name
        if not data_dir.is_dir() or not model_dir.is_dir():
            pytest.skip(f"needs {data_dir} and {model_dir}")
        model = ModelSettings(name_or_path=str(model_dir), dtype="float32")
        settings = EvaluationSettings(tasks=tasks, data_dir=str(data_dir), limit=limit)
        harness = Harness(settings, loading.load_tokenizer(model), seed=42)
        return loading.load_base_model(model, loading.pick_dtype(model)), harness, settings

    return build


@pytest.mark.slow
def test_all_nine_run_from_their_published_files(harness_of):
    model, harness, _ = harness_of("stories260K", ["paper", "paper-diverse"])
    results = {}
    for request in harness.requests:
        results |= {r.task: r for r in harness.measure(model, request).results}
    assert all(r.local and r.num_items == LIMIT for r in results.values())
    paper, diverse = harness.suite_results(results)
    # Four tasks and five of TyDiQA's languages; three, and ten kinds of arithmetic.
    assert (paper.num_items, diverse.num_items) == (9 * LIMIT, 13 * LIMIT)
    assert paper.groups["TruthfulQA"].metrics["average"].value > 0


@pytest.mark.slow
def test_the_command_line_of_lm_eval_gives_the_same_figures(harness_of, tmp_path):
    """By the files that `write_tasks` leaves; one task that ranks answers and one that writes."""
    name = "stories260K"
    tasks = ["truthfulqa_mc2", {"task": "tydiqa_goldp_ko", "num_fewshot": 1}]
    model, harness, settings = harness_of(name, tasks)
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_tasks(harness.requests, settings.data_dir, folder)
    arguments = {
        "--model": "hf",
        "--model_args": f"pretrained={SHARED / 'models' / name},dtype=float32",
        "--tasks": "truthfulqa_mc2,tydiqa_goldp_ko",
        "--include_path": folder,
        "--limit": LIMIT,
        "--batch_size": settings.batch_size,
        "--seed": 42,
        "--device": "cpu",
        "--output_path": tmp_path / "out.json",
    }
    run_lm_eval("run", *(part for pair in arguments.items() for part in pair))
    (file,) = tmp_path.glob("**/out*.json")
    theirs = json.loads(file.read_text())["results"]
    for request in harness.requests:
        (ours,) = harness.measure(model, request).results
        for metric, figure in ours.metrics.items():
            assert figure.value == theirs[request.task][f"{metric},none"]
            assert figure.stderr == theirs[request.task][f"{metric}_stderr,none"]
