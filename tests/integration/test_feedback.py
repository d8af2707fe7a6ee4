"""Weights of turns and responses to forget, from the records to the trained models."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from forgetting.config import load_recipe
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples
from forgetting.rundir.selections import selected_parts
from forgetting.rundir.stats import DataSummary
from forgetting.training import fit

STAGES = ["prepare", "reference", "score", "select", "train"]
VARIANTS = {
    "full": {},
    "ignoring": {"selection": {"rho": 0.5}},
    "forgetting": {},
    "per-sample": {"objective": "forgetting", "forgetting": {"term": "npo"}},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model):
    """A recipe whose sources have weights, feedback and pairs, in JSON and as pandas writes it."""
    from tests.conftest import save_tiny_recipe

    folder = tmp_path_factory.mktemp("feedback")
    weighted = [
        [
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": f"It's number {i}.", "weight": i % 3 / 2},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": f"Number {i}.", "weight": 1},
        ]
        for i in range(24)
    ]
    pd.DataFrame({"messages": weighted}).to_csv(folder / "weighted.csv", index=False)
    judged = [
        {"prompt": f"Is {i} even?", "completion": f"Yes, {i} is.", "label": i % 2 == 0}
        for i in range(8)
    ]
    pairs = [
        {"prompt": f"Say {i}.", "chosen": f"{i}, gladly.", "rejected": f"Never {i}."}
        for i in range(4)
    ]
    (folder / "judged.json").write_text(json.dumps(judged), encoding="utf-8")
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    sources = [
        {"path": str(folder / "weighted.csv")},
        {"path": str(folder / "judged.json")},
        {"path": str(folder / "pairs.json"), "negatives": "rejected"},
    ]
    sizes = {"num_reference": 8, "num_train": 28, "num_heldout": 4, "max_length": 128}
    return load_recipe(
        save_tiny_recipe(folder, tiny_model, data={"sources": sources, **sizes}, variants=VARIANTS)
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    return run_stages(recipe, tmp_path_factory.mktemp("whole") / "run", stages=STAGES)


def test_every_record_is_used_as_the_data_says(run):
    summary = DataSummary.load(layout.data_dir(run))
    counts = {source.name: source for source in summary.sources}
    assert [source.used for source in summary.sources] == [24, 8, 8]
    assert [source.negatives for source in summary.sources] == [0, 4, 4]
    assert counts["weighted"].weightless_turns == 8
    assert counts["weighted"].weighted_tokens > 0
    train = Samples.read(layout.train_file(run))
    assert train.is_negative.sum() == 8
    assert set(train.weights.tolist()) == {0.5, 1.0}


@pytest.mark.parametrize("variant", ["ignoring", "forgetting", "per-sample"])
def test_responses_to_forget_are_negative_in_every_selection(run, variant):
    train = Samples.read(layout.train_file(run))
    ends = np.isin(train.response_ids, DataSummary.load(layout.data_dir(run)).end_token_ids)
    is_forgotten = train.per_response_token(train.is_negative)
    polarity = np.concatenate([part.polarity for part in selected_parts(run, variant)])
    assert (polarity[is_forgotten & ~ends] == -1).all()
    assert (polarity[is_forgotten & ends] == 0).all()
    assert (polarity[~is_forgotten] > 0).any()


def test_an_interrupted_training_ends_with_the_same_weights(run, recipe, tmp_path, monkeypatch):
    """Each variant is stopped once; weights and polarity are there again after it."""
    stopped = set()

    class Stopping(fit.ForgettingTrainer):
        def log(self, logs, *rest):
            super().log(logs, *rest)
            name = self.args.run_name
            if self.state.global_step == 2 and name not in stopped:
                stopped.add(name)
                raise RuntimeError("stopped here")

    monkeypatch.setattr(fit, "ForgettingTrainer", Stopping)
    again = tmp_path / "run"
    for _ in range(1 + len(VARIANTS)):
        with pytest.raises(RuntimeError, match="stopped here"):
            run_stages(recipe, again, stages=STAGES)
    run_stages(recipe, again, stages=STAGES)
    assert len(stopped) == 1 + len(VARIANTS)
    for variant in VARIANTS:
        name = f"models/{variant}/adapter_model.safetensors"
        found, expected = load_file(again / name), load_file(run / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"{variant}: {key}")
