"""Whole runs on real data and small pretrained models, where these lie beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from forgetting.cli import main

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODELS = {"stories260K": 256, "TinyStories-Instruct-3M-chat": 192}


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


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_run_on_alpaca_ends_with_every_variant_measured(model, tmp_path, capsys):
    data = SHARED / "data/train/alpaca_data.json"
    if not data.is_file() or not (SHARED / "models" / model).is_dir():
        pytest.skip(f"needs {data} and {SHARED / 'models' / model}")
    recipe = {
        "name": "alpaca",
        "model": {"name_or_path": str(SHARED / "models" / model)},
        "data": {
            "sources": [{"path": str(data), "name": "alpaca", "limit": 2000}],
            "num_reference": 24,
            "num_train": 48,
            "num_heldout": 24,
            "max_length": MODELS[model],
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
