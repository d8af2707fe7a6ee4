"""Two processes measure what one measures."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from forgetting.rundir.samples import SAMPLE_SCHEMA, write_table
from tests.distributed import evaluate_tasks
from tests.distributed.launched import launch


@pytest.fixture
def measured(tmp_path, tiny_model, monkeypatch):
    """Measures in one process or in several; what the first wrote."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(7):
        ids = random.integers(3, 259, 6 + index).tolist()
        sample = {"sample_id": index, "source": "x", "input_ids": ids}
        rows.append({**sample, "labels": [-100] * 3 + ids[3:], "noise": None, "noise_kind": None})
    heldout = tmp_path / "heldout.parquet"
    write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), heldout)
    items = [{"q": f"Stone {i} is", "choices": ["red", "blue"], "answer": i % 2} for i in range(5)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    folder = tmp_path / "tasks"
    folder.mkdir()
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
    }
    choose = {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    write = {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for name, task in (("choose", choose), ("write", write)):
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))
    settings = {
        "tasks": ["choose", "write"],
        "include_path": str(folder),
        "batch_size": 2,
        "log_samples": True,
    }

    def run(processes):
        output = tmp_path / f"{processes}.json"
        arguments = [str(tiny_model), str(heldout), str(output), json.dumps(settings)]
        if processes == 1:
            evaluate_tasks.main(*arguments)
        else:
            monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
            launch(evaluate_tasks.main, *arguments)
        return json.loads(output.read_text())

    return run


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(measured):
    whole, parts = measured(1), measured(2)
    assert whole["choose items"] == [0, 1, 2, 3, 4]
    loss, loss_of_parts = (r["heldout"]["metrics"].pop("loss") for r in (whole, parts))
    assert loss["value"] == pytest.approx(loss_of_parts["value"], abs=1e-6)
    assert loss["stderr"] == pytest.approx(loss_of_parts["stderr"], abs=1e-6)
    assert whole.pop("log_probs") == pytest.approx(parts.pop("log_probs"), abs=1e-5)
    for result in (whole, parts):
        del result["heldout"]["metrics"]["perplexity"], result["heldout"]["groups"]
    assert parts == whole
