"""Whole runs on real data and small pretrained models, where these lie beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from forgetting.cli import main

SHARED = Path(__file__).resolve().parents[3] / "shared"
# The other small model measures the benchmarks in test_benchmarks.py.
MODEL, MAX_LENGTH = "TinyStories-Instruct-3M-chat", 192


def local_task(folder: Path) -> Path:
    """An lm-eval task of our own over a local file."""
    folder.mkdir()
    task = {
        "task": "two_digit_addition",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(SHARED / "data/eval/arithmetic/two_digit_addition.jsonl")}
        },
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{completion}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    }
    (folder / "two_digit_addition.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.mark.long
def test_a_run_on_alpaca_ends_with_every_variant_measured(tmp_path, capsys):
    data = SHARED / "data/train/alpaca_data.json"
    model = SHARED / "models" / MODEL
    if not data.is_file() or not model.is_dir():
        pytest.skip(f"needs {data} and {model}")
    recipe = {
        "name": "alpaca",
        "model": {"name_or_path": str(model)},
        "data": {
            "sources": [{"path": str(data), "name": "alpaca", "limit": 2000}],
            "num_reference": 24,
            "num_train": 48,
            "num_heldout": 24,
            "max_length": MAX_LENGTH,
        },
        "training": {
            "learning_rate": 1e-3,
            "micro_batch_size": 12,
            "gradient_checkpointing": False,
            "logging_steps": 1,
        },
        "evaluation": {
            "tasks": ["two_digit_addition"],
            "include_path": str(local_task(tmp_path / "tasks")),
            "limit": 10,
        },
    }
    path = tmp_path / "alpaca.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run_dir = tmp_path / "run"
    assert main(["run", str(path), "--run-dir", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_dir"] == str(run_dir)
    losses = {}
    for variant in ("base", "full", "ignoring", "forgetting"):
        folder = run_dir / "evaluation" / variant
        heldout = json.loads((folder / "heldout.json").read_text())
        losses[variant] = heldout["metrics"]["loss"]["value"]
        task = json.loads((folder / "two_digit_addition.json").read_text())
        assert task["num_items"] == 10
        assert task["local"]
    assert losses["full"] < losses["base"]
    assert (run_dir / "report" / "index.html").is_file()


TRAIN = SHARED / "data" / "train"
REAL_SOURCES = [
    ("alpaca", "alpaca_data.json", {"read": 52002, "rejected": {"empty response": 28}}),
    ("dolly", "dolly_3k.json", {"read": 2996, "rejected": {}, "duplicates": 2}),
    (
        "oasst1",
        "oasst2_filtered.jsonl",
        {"read": 551, "rejected": {"no reply in the tree": 433}, "duplicates": 3},
    ),
    ("flan_v2", "flan_v2_cot/gsm8k_train.tsv", {"read": 7473, "rejected": {}, "duplicates": 0}),
    ("flan_v2", "flan_v2_cot/strategyqa_train.tsv", {"read": 2061, "duplicates": 1}),
]


@pytest.mark.parametrize(("dataset", "file", "expected"), REAL_SOURCES)
def test_the_papers_data_sets_are_read_from_their_local_files(dataset, file, expected, tmp_path):
    path = TRAIN / file
    model = SHARED / "models" / "stories260K"
    if not path.is_file() or not model.is_dir():
        pytest.skip(f"needs {path} and {model}")
    recipe = {
        "name": "real",
        "model": {"name_or_path": str(model)},
        "data": {
            "sources": [{"dataset": dataset, "path": str(path)}],
            "num_reference": 20,
            "num_train": 40,
            "num_heldout": 10,
            "max_length": 512,
            "max_rejected_share": 0.8,
        },
    }
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(recipe))
    run_dir = tmp_path / "run"
    assert main(["prepare", str(tmp_path / "real.yaml"), "--run-dir", str(run_dir), "--json"]) == 0
    (source,) = json.loads((run_dir / "data" / "summary.json").read_text())["sources"]
    assert source["used"] == 70
    assert {key: source[key] for key in expected} == expected


def test_prompts_without_responses_are_refused_with_their_fields(tmp_path, capsys):
    path, model = TRAIN / "wizardlm_test_set.jsonl", SHARED / "models" / "stories260K"
    if not path.is_file() or not model.is_dir():
        pytest.skip(f"needs {path} and {model}")
    recipe = {
        "name": "real",
        "model": {"name_or_path": str(model)},
        "data": {"sources": [{"dataset": "wizardlm", "path": str(path)}], "max_length": 512},
    }
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--run-dir", str(tmp_path / "run"), "--quiet"]
    assert main(["prepare", str(tmp_path / "real.yaml"), *options]) == 2
    assert "the fields Difficulty, Instruction, Skill, idx" in capsys.readouterr().err
