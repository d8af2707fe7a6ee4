"""A variant with rounds is the chain that one would make by hand, also if it is interrupted."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from forgetting import ForgettingConfig, ForgettingTrainer, score_dataset, select_tokens
from forgetting.config import load_recipe
from forgetting.inspector.opening import open_inspection
from forgetting.pipeline import describe_plan
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.samples import Samples, list_column, read_table
from forgetting.training import safe_trainer
from tests.conftest import EOS, all_scores

pytestmark = pytest.mark.slow

ROUNDS, RHO, SEED = 3, 0.6, 42
VARIANT = f"{{objective: ignoring, rounds: {ROUNDS}, selection: {{rho: {RHO}}}}}"
# Both steps of a part have a learning rate above 0.
COMMON = [f"variants={{self: {VARIANT}}}", "training.warmup_ratio=0"]
KINDS = {"adapter": [], "whole": ["training.lora=null"]}
STAGES = ["score", "evolve", "select", "train"]


@pytest.fixture(scope="module")
def evolved(finished_run, tmp_path_factory):
    """A recipe, its overrides and its run, by what is trained."""
    recipe, source = finished_run
    found = {}

    def do(kind):
        if kind not in found:
            run = tmp_path_factory.mktemp("evolved") / "run"
            shutil.copytree(source, run)
            overrides = [*COMMON, *KINDS[kind]]
            run_stages(recipe, run, stages=STAGES, overrides=overrides)
            found[kind] = recipe, overrides, run
        return found[kind]

    return do


def chain_by_hand(folder, run, scratch, *, is_adapter):
    """Train, score, select and go on, with the public pieces alone.

    Returns:
        The trained weights, and the polarity of all response tokens.
    """
    samples = Samples.read(layout.train_file(run))
    starts, base = samples.response_starts, all_scores(run)["base_log_probs"]
    bounds = [len(samples) * index // ROUNDS for index in range(ROUNDS + 1)]
    ids, labels = (samples.table[name].to_pylist() for name in ("input_ids", "labels"))
    peft_config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for index, (begin, end) in enumerate(pairwise(bounds)):
        tokens = slice(starts[begin], starts[end])
        polarity = np.ones(starts[end] - starts[begin], np.int8)
        if index:
            own = np.concatenate(score_dataset(model.eval(), ids[begin:end], labels[begin:end]))
            polarity = select_tokens(own - base[tokens], RHO)
            polarity[samples.response_ids[tokens] == EOS] = 1
        found.append(polarity)
        rows = np.split(polarity, starts[begin + 1 : end] - starts[begin])
        trainer = ForgettingTrainer(
            model=model,
            args=ForgettingConfig(
                output_dir=str(scratch),
                schedule="constant",
                t_min=0,
                t_max=0,
                learning_rate=1e-3,
                warmup_steps=0,
                num_train_epochs=1,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                max_grad_norm=0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                sort_by_length=True,
                max_length=None,
                seed=SEED,
            ),
            train_dataset=Dataset.from_dict(
                {
                    "input_ids": ids[begin:end],
                    "labels": labels[begin:end],
                    "polarity": [row.tolist() for row in rows],
                }
            ),
            peft_config=peft_config if is_adapter and not index else None,
        )
        trainer.train()
        model = trainer.model
    weights = get_peft_model_state_dict(model) if is_adapter else model.state_dict()
    return weights, np.concatenate(found)


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_are_the_chain_that_is_made_by_hand(evolved, tiny_model, tmp_path, kind):
    _, _, run = evolved(kind)
    is_adapter = kind == "adapter"
    weights, polarity = chain_by_hand(tiny_model, run, tmp_path, is_adapter=is_adapter)
    file = layout.polarity_file(layout.selection_dir(run, "self"))
    assert np.array_equal(list_column(read_table(file), "polarity")[0], polarity)
    assert (polarity < 0).any()
    name = "adapter_model" if is_adapter else "model"
    saved = load_file(layout.model_dir(run, "self") / f"{name}.safetensors")
    assert saved.keys() <= weights.keys()
    for key, value in saved.items():
        assert torch.allclose(value, weights[key], rtol=0, atol=1e-6), key


def test_an_interrupted_round_resumes_in_the_middle_of_its_training(
    evolved, finished_run, tmp_path, monkeypatch
):
    recipe, overrides, whole = evolved("adapter")
    run = tmp_path / "run"
    shutil.copytree(finished_run[1], run)
    seal, sealed = safe_trainer.seal, []

    def seal_and_end(folder):
        seal(folder)
        sealed.append(folder)
        # The first step of the second part.
        if len(sealed) == 3:
            raise RuntimeError("killed")

    monkeypatch.setattr(safe_trainer, "seal", seal_and_end)
    with pytest.raises(RuntimeError, match="killed"):
        run_stages(recipe, run, stages=STAGES, overrides=overrides)
    assert "part-1" in str(sealed[-1])
    run_stages(recipe, run, stages=STAGES, overrides=overrides)
    # The second step of the second part, and both of the last.
    assert len(sealed) == 6
    for step in ("evolve:self", "select:self", "train:self"):
        entries = (read_manifest(path).stages[step] for path in (whole, run))
        one, other = ({n: o.sha256 for n, o in entry.outputs.items()} for entry in entries)
        assert one.keys() == other.keys()
        # The order of the fields in a log's lines differs.
        assert {n for n in one if one[n] != other[n]} <= {n for n in one if n.endswith(".jsonl")}
    logs = [layout.training_log(layout.model_dir(path, "self")) for path in (whole, run)]
    one, other = ([json.loads(line) for line in log.read_text().splitlines()] for log in logs)
    assert one == other


def test_no_reference_is_trained_and_the_plan_counts_the_steps(finished_run, tmp_path):
    recipe = load_recipe(finished_run[0], [*COMMON, "training.epochs=3"])
    assert not recipe.needs_reference
    assert recipe.score_columns == ["base_log_probs"]
    plan = {step.key: step.facts for step in describe_plan(recipe, tmp_path / "none")}
    first = ["prepare", "score", "evolve:self", "select:self", "train:self"]
    assert list(plan)[:5] == first
    # Eight samples a part, four a step.
    evolving, training = plan["evolve:self"], plan["train:self"]
    assert (evolving["samples"], evolving["optimizer steps"], evolving["rounds"]) == (16, 12, 2)
    assert (training["samples"], training["optimizer steps"]) == (8, 6)


def test_log_report_and_inspector_show_all_parts(evolved, byte_decode):
    recipe, overrides, run = evolved("adapter")
    log = layout.training_log(layout.model_dir(run, "self")).read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    card = (layout.model_dir(run, "self") / "README.md").read_text()
    assert "learned in 3 equal parts" in card
    run_stages(recipe, run, stages=["evaluate", "report"], overrides=overrides)
    page = (run / "report" / "index.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "“self” learns 3 equal parts of the samples one after the other" in text
    summary = json.loads((run / "selection" / "self" / "summary.json").read_text())
    assert f"{summary['num_positive']:,}" in text
    assert 0.6 < summary["num_positive"] / summary["num_tokens"] < 0.9
    inspection = open_inspection(run, byte_decode, "self")
    own, _ = list_column(
        read_table(layout.own_scores_file(layout.selection_dir(run, "self"))),
        "reference_log_probs",
    )
    base = all_scores(run)["base_log_probs"]
    assert inspection.quality == pytest.approx(own - base, abs=1e-6)


@pytest.fixture
def byte_decode(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model).decode
