"""A whole run of a tiny model leaves every artifact that is promised, and no pickle."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

from forgetting.config import load_recipe
from forgetting.pipeline import run as run_pipeline
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.samples import Samples

SELECTING = ("ignoring", "forgetting")
VARIANTS = ("full", *SELECTING)
# The first bytes of pickles by protocol, and of the archives that torch.save writes.
PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))


@pytest.fixture
def run(finished_run):
    """The directory of a run that has ended."""
    return finished_run[1]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "manifest.json",
        *(f"data/{split}.parquet" for split in ("reference", "train", "heldout", "rejected")),
        "data/summary.json",
        "reference/adapter_model.safetensors",
        "reference/training.jsonl",
        *(f"scores/scores-0000{n}-of-00003.parquet" for n in range(3)),
        *(f"selection/{v}/{f}" for v in SELECTING for f in ("polarity.parquet", "summary.json")),
        *(f"models/{v}/adapter_model.safetensors" for v in VARIANTS),
        *(f"models/{v}/training.jsonl" for v in VARIANTS),
        *(f"evaluation/{v}/heldout.json" for v in ("base", *VARIANTS)),
        *(f"report/{f}" for f in ("index.html", "inspector.html")),
        *(f"report/results.{form}" for form in ("json", "md", "csv")),
    ],
)
def test_every_artifact_is_there(run, name):
    assert (run / name).stat().st_size > 0


def test_the_manifest_knows_every_file_and_nothing_else_lies_around(run):
    manifest = read_manifest(run)
    recorded = {name for entry in manifest.stages.values() for name in entry.outputs}
    files = {f.relative_to(run).as_posix() for f in run.rglob("*") if f.is_file()}
    own = {".lock", ".lock-owner", ".manifest-copy.json", "manifest.json", "recipe.yaml"}
    assert files - recorded == own
    assert recorded <= files
    assert all(entry.peak_memory_bytes > 0 for entry in manifest.stages.values())


def test_no_file_is_a_pickle(run):
    for file in run.rglob("*"):
        if file.is_file():
            assert file.suffix not in {".pt", ".pth", ".bin", ".pkl", ".pickle", ".npy"}, file
            assert not file.read_bytes()[:4].startswith(PICKLES), file


def test_the_kept_recipe_is_the_one_that_was_run(finished_run):
    recipe, run = finished_run
    assert load_recipe(run / "recipe.yaml") == load_recipe(recipe)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["name"] == "tiny"


def test_splits_have_the_sizes_asked_for_and_share_no_sample(run):
    tables = {
        name: pq.read_table(run / "data" / f"{name}.parquet")
        for name in ("reference", "train", "heldout")
    }
    assert {name: table.num_rows for name, table in tables.items()} == {
        "reference": 16,
        "train": 24,
        "heldout": 8,
    }
    ids = [sample for table in tables.values() for sample in table["sample_id"].to_pylist()]
    texts = [tuple(row) for table in tables.values() for row in table["input_ids"].to_pylist()]
    assert len(set(ids)) == len(set(texts)) == 48


def test_scores_and_polarities_follow_the_response_tokens(run):
    samples = Samples.read(run / "data" / "train.parquet")
    counts = samples.num_response_tokens.tolist()
    shards = [pq.read_table(f) for f in sorted((run / "scores").iterdir())]
    for column in ("base_log_probs", "reference_log_probs"):
        rows = [row for shard in shards for row in shard[column].to_pylist()]
        assert [len(row) for row in rows] == counts
        assert all(value <= 0 for row in rows for value in row)
    assert [i for s in shards for i in s["sample_id"].to_pylist()] == samples.sample_ids.tolist()
    for variant in SELECTING:
        table = pq.read_table(run / "selection" / variant / "polarity.parquet")
        assert [len(row) for row in table["polarity"].to_pylist()] == counts


def test_each_variant_selects_its_own_share(run):
    for variant, rho in (("ignoring", 0.5), ("forgetting", 0.7)):
        summary = read(run / "selection" / variant / "summary.json")
        assert summary["rho"] == rho
        # End-of-sequence tokens are never negative: at most one a sample is added.
        share = summary["num_positive"] / summary["num_tokens"]
        assert rho - 0.01 < share <= rho + 24 / summary["num_tokens"]
        assert summary["num_positive"] + summary["num_negative"] == summary["num_tokens"]


def test_only_forgetting_pushes_negative_tokens_away(run):
    logs = {
        variant: [
            json.loads(line)
            for line in (run / "models" / variant / "training.jsonl").read_text().splitlines()
        ]
        for variant in VARIANTS
    }
    assert [entry["step"] for entry in logs["full"]] == [1, 2, 3, 4, 5, 6]
    assert {entry["share_negative"] for entry in logs["full"]} == {0}
    assert all(entry["lambda"] == 0 for v in ("full", "ignoring") for entry in logs[v])
    lambdas = [entry["lambda"] for entry in logs["forgetting"]]
    assert lambdas == pytest.approx([(0.25 - 1e-4) * step / 6 for step in range(6)])
    assert all(entry["share_negative"] > 0 for entry in logs["forgetting"])


def test_the_base_and_every_variant_are_measured_on_the_same_samples(run):
    losses = {}
    for variant in ("base", *VARIANTS):
        result = read(run / "evaluation" / variant / "heldout.json")
        assert (result["variant"], result["task"]) == (variant, "heldout")
        assert result["num_items"] == 8
        metrics = {"exact_match", "token_accuracy", "loss", "perplexity"}
        assert result["metrics"].keys() == metrics
        losses[variant] = result["metrics"]["loss"]["value"]
    assert len(set(losses.values())) == 4
    assert losses["full"] < losses["base"]


def test_the_report_holds_every_variant(run):
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    results = read(run / "report" / "results.json")["results"]
    assert {result["variant"] for result in results} == {"base", *VARIANTS}
    assert all(variant in page for variant in ("base", *VARIANTS))
    # Differences to `full` are those of the losses, over the same samples.
    losses = {r["variant"]: r for r in results if (r["metric"], r["group"]) == ("loss", None)}
    for variant in ("base", *SELECTING):
        found = losses[variant]["difference"]
        gap = losses[variant]["value"] - losses["full"]["value"]
        assert found["value"] == pytest.approx(gap, rel=1e-4)
        assert (found["minus"], found["num_pairs"]) == ("full", 8)
        assert found["low"] < found["value"] < found["high"]
    exact = [r for r in results if r["metric"] == "exact_match" and r["variant"] == "forgetting"]
    assert exact[0]["difference"]["num_pairs"] == 8


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("whole", ["[]", "[embed_tokens, lm_head]"])
def test_adapters_on_a_quantised_base_are_merged_into_whole_weights(
    whole, write_recipe, quantizable_model, tmp_path
):
    overrides = [
        f"model.name_or_path={quantizable_model}",
        "model.quantization=nf4",
        "training.merge=true",
        f"training.lora.modules_to_save={whole}",
        "variants={forgetting: {}}",
    ]
    path = run_pipeline(write_recipe(), tmp_path / "run", overrides=overrides)
    # The reference stays an adapter, and so shares the base's weights when it scores.
    assert (path / "reference" / "adapter_model.safetensors").is_file()
    model = path / "models" / "forgetting"
    assert (model / "model.safetensors").is_file()
    assert not (model / "adapter_config.json").exists()
    assert AutoTokenizer.from_pretrained(model).eos_token == "</s>"
    losses = [json.loads(line)["loss"] for line in (model / "training.jsonl").open()]
    assert all(math.isfinite(loss) for loss in losses)
    base, tuned = (
        read(path / "evaluation" / name / "heldout.json")["metrics"]["loss"]["value"]
        for name in ("base", "forgetting")
    )
    assert tuned < base
