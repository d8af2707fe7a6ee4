"""A run with the detector, from records to models; and corpora in which nothing can be found."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from forgetting.cli import main
from forgetting.config import load_recipe
from forgetting.export import export_run
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.findings import DetectorSummary, posterior_parts
from forgetting.rundir.manifest import read_manifest, same_model
from forgetting.rundir.results import read_results
from forgetting.rundir.samples import Samples
from forgetting.rundir.selections import read_polarity, read_selection
from forgetting.training import fit
from tests.conftest import save_detector_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_few_trees")]


def weights(run, variant):
    return load_file(layout.model_dir(run, variant) / "adapter_model.safetensors")


def fingerprint(run):
    return Samples.read(layout.train_file(run)).fingerprint


def polarity(run, variant="ignoring"):
    file = layout.polarity_file(layout.selection_dir(run, variant))
    return read_polarity(file, fingerprint(run))[0]


def size(run):
    return Samples.read(layout.train_file(run)).response_ids.size


WITHOUT_FULL = {
    "weighted": {},
    "ignoring": {"selection": {"quality": "detector", "threshold": "posterior"}},
}


def test_if_nothing_is_found_weighted_is_full_and_no_token_is_marked(judged, detected_run):
    nothing = np.zeros(size(detected_run[1]), np.float32)
    # Trained on its own, as there is no model to copy; full follows.
    run = judged(nothing, False, f"variants={json.dumps(WITHOUT_FULL)}")
    run_stages(detected_run[0], run, stages=("train",))
    full, weighted, ignoring = (weights(run, name) for name in ("full", "weighted", "ignoring"))
    assert full.keys() == weighted.keys()
    for name, values in full.items():
        assert np.array_equal(values, weighted[name]), name
        assert np.array_equal(values, ignoring[name]), name
    assert (polarity(run) == 1).all()


@pytest.fixture
def trained_labels(monkeypatch):
    """What is trained, in order."""
    labels = []
    fine_tune = fit.fine_tune

    def noted(*args):
        labels.append(args[4])
        return fine_tune(*args)

    monkeypatch.setattr(fit, "fine_tune", noted)
    return labels


EVERY = ("alternatives", "select", "train", "evaluate", "report")
IN_ANY_ORDER = (
    "variants={corrected: {}, weighted: {}, full: {}, bounded: {objective: weighted, loss: dft}}"
)


def test_if_nothing_is_found_the_model_and_its_results_are_those_of_full(
    judged, detected_run, trained_labels, caplog
):
    nothing = np.zeros(size(detected_run[1]), np.float32)
    with caplog.at_level("INFO", "forgetting"):
        run = judged(nothing, False, IN_ANY_ORDER, stages=EVERY)
    # One with another loss is another model.
    assert trained_labels == ["Training full", "Training bounded"]
    assert "weighted is the model of full. Nothing is trained" in caplog.text
    folders = {name: layout.model_dir(run, name) for name in ("full", "weighted", "corrected")}
    files = {name: contents(folder) for name, folder in folders.items()}
    for name in ("weighted", "corrected"):
        assert f"# tiny: {name}" in files[name].pop("README.md").decode()
    card = files["full"].pop("README.md")
    assert b"# tiny: full" in card
    assert files["weighted"] == files["corrected"] == files["full"]
    entries = read_manifest(run).stages
    assert entries["train:weighted"].details["steps"] == entries["train:full"].details["steps"] > 0
    assert "tokens" not in entries["train:weighted"].details
    # It is not measured again either.
    results = {name: read_results(layout.evaluation_dir(run, name)) for name in folders}
    for name, found in results.items():
        assert [result.task for result in found] == ["answers", "heldout"]
        for result, of_full in zip(found, results["full"], strict=True):
            assert result.variant == name
            assert result.metrics == of_full.metrics
    assert "tokens" in entries["evaluate:full"].details
    assert "tokens" not in entries["evaluate:weighted"].details
    content = json.loads(layout.results_file(layout.report_dir(run)).read_text())
    assert content["verdict"]["same"] == {"corrected": "full", "weighted": "full"}
    said = "weighted is the same model as full, because the detector found nothing."
    assert said in content["sentence"]
    # What differs is told of models that are not the same.
    told = content["sentence"].rpartition("On held-out")[2]
    assert "the loss of bounded" in told
    assert "weighted" not in told
    assert said in layout.report_page(layout.report_dir(run)).read_text(encoding="utf-8")
    # All is done; a copy that was changed is made again.
    run_stages(detected_run[0], run, overrides=[IN_ANY_ORDER])
    assert len(trained_labels) == 2
    (folders["weighted"] / "adapter_model.safetensors").write_bytes(b"")
    run_stages(detected_run[0], run, overrides=[IN_ANY_ORDER])
    assert len(trained_labels) == 2
    assert contents(folders["weighted"])["adapter_model.safetensors"]
    export = export_run(run, "adapter", variant="weighted", output=run.parent / "exported")
    assert (
        contents(export.path)["adapter_model.safetensors"]
        == (files["full"]["adapter_model.safetensors"])
    )


def contents(folder):
    """The files of a folder by their path in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_if_something_is_found_both_are_trained(judged, detected_run, trained_labels):
    posterior = np.full(size(detected_run[1]), 0.1, np.float32)
    run = judged(posterior, True, "variants={full: {}, weighted: {}}", stages=("train",))
    assert trained_labels == ["Training full", "Training weighted"]
    assert same_model(read_manifest(run), "weighted") is None


def test_weights_and_marks_are_by_the_posterior(judged, detected_run):
    random = np.random.default_rng(0)
    posterior = random.random(size(detected_run[1])).astype(np.float32)
    sgd = ["training.max_grad_norm=0", "training.epochs=1"]
    run = judged(posterior, True, *sgd)
    full, weighted = (weights(run, name) for name in ("full", "weighted"))
    assert any(not np.array_equal(values, weighted[name]) for name, values in full.items())
    # The loss of the first step, by hand: the sum divided by the count of all response tokens.
    rows = (layout.model_dir(run, "weighted") / "training.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(row)["loss"]) for row in rows)
    chosen = polarity(run)
    samples = Samples.read(layout.train_file(run))
    is_end = samples.response_ids == 1
    assert np.array_equal(chosen < 0, (posterior >= 0.5) & ~is_end)
    assert not (chosen == 0).any()
    parts = list(posterior_parts(run, fingerprint(run)))
    assert np.array_equal(np.concatenate([part.posterior for part in parts]), posterior)


@pytest.mark.parametrize("caution", [None, 1])
def test_the_loss_of_a_step_is_the_weighted_sum_over_all_response_tokens(
    judged, detected_run, caution
):
    recipe, source = detected_run
    posterior = np.random.default_rng(1).random(size(source)).astype(np.float32)
    # One step over all samples, so that the order of samples does not matter.
    whole = ["training.batch_size=60", "training.micro_batch_size=60", "training.warmup_ratio=0"]
    whole += ["training.lora.dropout=0"]
    whole += [f"variants.weighted.caution={caution}"] if caution else []
    run = judged(posterior, True, *whole)
    (row,) = (layout.model_dir(run, "weighted") / "training.jsonl").read_text().splitlines()
    samples = Samples.read(layout.train_file(run))
    model = AutoModelForCausalLM.from_pretrained(load_recipe(recipe).model.name_or_path).double()
    losses = []
    for row_ids, labels in zip(
        samples.table["input_ids"].to_pylist(), samples.table["labels"].to_pylist(), strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([row_ids])).logits[0, :-1].log_softmax(-1)
        target = torch.tensor(labels[1:])
        kept = target != -100
        losses.append(-logits[kept].gather(1, target[kept][:, None])[:, 0].numpy())
    bad = posterior.astype(float)
    of_tokens = (1 - bad) / (1 - bad + (caution or 4) * bad)
    expected = float((np.concatenate(losses) * of_tokens).mean())
    assert json.loads(row)["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("selection", "share"),
    [({"rho": 0.7}, 0.3), ({"granularity": "sequence", "rho": 0.5}, 0.5), ({}, None)],
)
def test_everything_that_measures_can_do_works_with_the_posterior(
    judged, detected_run, selection, share
):
    posterior = np.random.default_rng(2).random(size(detected_run[1])).astype(np.float32)
    variant = {"objective": "forgetting", "selection": {"quality": "detector", **selection}}
    if share is None:
        variant["selection"]["threshold"] = "posterior"
    given = f"variants={json.dumps({'mine': variant})}"
    # A variant of its own, so the other stages need not run again.
    run = judged(posterior, True, given, "selection.keep_eos=false", stages=("select",))
    chosen = polarity(run, "mine")
    summary = read_selection(run, "mine", fingerprint(run))
    if share is None:
        assert np.array_equal(chosen < 0, posterior >= 0.9)
        assert np.array_equal(chosen > 0, posterior < 0.5)
        assert summary.threshold_kind == "posterior"
    elif "granularity" not in selection:
        assert (chosen < 0).sum() == chosen.size - round(0.7 * chosen.size)
        assert posterior[chosen < 0].min() >= posterior[chosen > 0].max()
    else:
        assert len(set(chosen.tolist())) == 2


def records(number, response):
    return [
        {"instruction": f"What is stone {index}?", "output": response(index)}
        for index in range(number)
    ]


def flat_model(folder, source):
    """A model that finds every token equally likely, wherever it is."""
    shutil.copytree(source, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(folder)
    return folder


BAD = {
    "few samples": (records(49, lambda i: f"It is {i} red."), 40, "at least 50 are needed"),
    "one sample": (records(3, lambda i: f"It is {i} red."), 1, "at least 50 are needed"),
    "one token": (records(80, lambda i: "abcdefghij"[i % 10]), 60, "without neighbors"),
    "one response": (records(80, lambda i: "It is red."), 60, ""),
    "nothing but marks": (records(80, lambda i: "…" * (1 + i % 3)), 60, ""),
}


@pytest.mark.parametrize("case", [*BAD, "all the same", "a model that finds nothing"])
def test_where_nothing_can_be_found_the_verdict_says_why(tmp_path, tiny_model, case, capsys):
    given, num_train, reason = BAD.get(case, (records(80, lambda i: f"It is {i}."), 60, ""))
    model, corpus_size = tiny_model, num_train
    if case == "a model that finds nothing":
        model = flat_model(tmp_path / "flat", tiny_model)
    if case == "all the same":
        given, corpus_size, reason = records(1, lambda i: "It is red.") * 80, 1, "at least 50"
    recipe = save_detector_recipe(
        tmp_path,
        model,
        data={
            "sources": [{"path": str(tmp_path / "given.json")}],
            "num_reference": 0,
            "num_train": corpus_size,
            "num_heldout": 0,
            "max_length": 128,
        },
        variants={
            "weighted": {},
            "ignoring": {"selection": {"quality": "detector", "threshold": "posterior"}},
            "worst": {"objective": "ignoring", "selection": {"quality": "detector"}},
        },
    )
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    run = tmp_path / "run"
    changes = ["batch_size=20", "micro_batch_size=20", "lora=null", "warmup_ratio=0"]
    sets = [part for change in changes for part in ("--set", f"training.{change}")]
    # That training and the report get along with such findings, one case shows for all.
    whole = case == "nothing but marks"
    stages = ["run"] if whole else ["prepare", "score", "probe", "detect", "select"]
    for stage in stages:
        assert main([stage, str(recipe), "--run-dir", str(run), *sets]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in told
    opening = "Nothing found. "
    if case == "nothing but marks":
        # Planted noise is found there, but only in part.
        opening = "Nothing found, and not much could be: "
    assert opening in told
    summary = DetectorSummary.load(layout.detector_dir(run))
    assert not summary.found
    assert summary.verdict.startswith(opening)
    assert reason in summary.verdict
    assert len(summary.verdict) > len("Nothing found. ") + 20
    for variant in ("ignoring", "worst"):
        assert (polarity(run, variant) == 1).all()
        assert f"{variant} learns every token: the detector found nothing" in told
    assert ("report" in read_manifest(run).stages) == whole
