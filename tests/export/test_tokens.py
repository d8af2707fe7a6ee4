"""The exported corpus is what the run trained on, column by column and weight by weight."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from forgetting import ForgettingConfig, ForgettingTrainer
from forgetting.config import SelectionSettings
from forgetting.errors import InputError
from forgetting.export import export_run
from forgetting.export.tokens import ALTERNATIVES, COLUMNS, NOISE, token_tables
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, list_column, read_table, write_table
from forgetting.rundir.scores import ScoredCorpus
from forgetting.stages.corpus_selection import select_corpus
from tests.conftest import all_scores, byte_tokenizer, save_scored_run
from tests.export.conftest import judge

WITHOUT_NOISE = {name for name in COLUMNS if name not in (*NOISE, *ALTERNATIVES, "posterior")}


@pytest.fixture
def scored(tmp_path):
    """A scored run of three shards, of which a variant forgets a part and ignores another."""
    run = save_scored_run(tmp_path / "run", (7, 4, 1))
    folder = run / "selection" / "some"
    folder.mkdir(parents=True)
    settings = SelectionSettings(rho=0.5, forget_rate=0.3)
    select_corpus(
        ScoredCorpus(run),
        settings,
        folder / "polarity.parquet",
        scratch=tmp_path / "quality",
        seed=0,
    )
    return run


def tables(run):
    decode = byte_tokenizer().decode
    return list(token_tables(run, "some", "influence", decode))


def flat(table, name):
    return list_column(table, name)[0]


def test_every_column_is_what_the_run_holds(scored):
    table = pa.concat_tables(tables(scored))
    assert table.column_names == [name for name in COLUMNS if name not in ALTERNATIVES]
    samples = Samples.read(scored / "data" / "train.parquet")
    assert table.select(["sample_id", "source", "input_ids", "labels"]) == samples.table.select(
        ["sample_id", "source", "input_ids", "labels"]
    )
    inside = flat(table, "labels") != -100
    assert flat(table, "completion_mask").tolist() == inside.tolist()
    chosen = read_table(scored / "selection" / "some" / "polarity.parquet")
    polarity = flat(chosen, "polarity")
    assert set(polarity) == {-1, 0, 1}
    scores = all_scores(scored)
    base, reference = scores["base_log_probs"], scores["reference_log_probs"]
    expected = {
        "polarity": polarity,
        "token_weights": np.abs(polarity),
        "quality": reference - base,
        "base_log_probs": base,
        "reference_log_probs": reference,
        "noise": samples.noise(),
    }
    for name, values in expected.items():
        assert flat(table, name)[inside].tolist() == values.tolist(), name
        assert not flat(table, name)[~inside].any(), name
    kinds = ["junk_phrase" if index % 3 == 0 else "" for index in range(12)]
    assert table["noise_kind"].to_pylist() == kinds


def test_weights_of_turns_are_exported_and_what_is_ignored_has_none(scored):
    path = layout.train_file(scored)
    rows = read_table(path).to_pylist()
    for row in rows[::2]:
        number = sum(label != -100 for label in row["labels"])
        row["weights"] = [0.5 + place % 2 for place in range(number)]
    write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), path)
    table = pa.concat_tables(tables(scored))
    inside = flat(table, "labels") != -100
    weights = Samples.read(path).weights
    assert {0.5, 1.0, 1.5} == set(weights)
    expected = np.where(flat(table, "polarity")[inside] == 0, 0, weights)
    assert flat(table, "token_weights")[inside].tolist() == expected.tolist()
    assert table.schema.field("token_weights").type == pa.list_(pa.float32())


def test_prompt_and_completion_together_are_the_text(scored):
    tokenizer = byte_tokenizer()
    for row in pa.concat_tables(tables(scored)).to_pylist():
        assert row["prompt"] + row["completion"] == tokenizer.decode(row["input_ids"])
        assert row["prompt"] == tokenizer.decode(row["input_ids"][:2])


def test_no_more_than_a_shard_is_in_memory(scored):
    assert [table.num_rows for table in tables(scored)] == [7, 4, 1]


def test_a_selection_of_other_tokens_is_refused(scored):
    path = scored / "selection" / "some" / "polarity.parquet"
    pq.write_table(read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(InputError, match="belongs to other tokens"):
        tables(scored)


def test_a_selection_that_lacks_a_token_is_refused(scored):
    path = scored / "selection" / "some" / "polarity.parquet"
    table = read_table(path)
    rows = table["polarity"].to_pylist()
    rows[8].pop()
    column = pa.array(rows, pa.list_(pa.int8()))
    pq.write_table(table.set_column(1, table.schema.field(1), column), path)
    with pytest.raises(InputError, match="one polarity for each response token"):
        tables(scored)


def test_both_formats_say_the_same(exported, read):
    parquet, jsonl = (read(exported("data", format=each)) for each in ("parquet", "jsonl"))
    assert set(parquet.column_names) == WITHOUT_NOISE
    assert parquet.to_list() == jsonl.to_list()


def train(kind, config, model_path, data, dropout=0.1):
    """The adapter that the finished run's settings give on some data, by its weights' names."""
    if kind is ForgettingTrainer:
        # As runs do, whatever their dropout.
        config.sort_by_length = True
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    trainer = kind(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    trainer.save_model(config.output_dir)
    return load_file(f"{config.output_dir}/adapter_model.safetensors")


def settings(folder):
    return {
        "output_dir": str(folder),
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.03,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "max_length": None,
        "seed": 42,
    }


def assert_same(found, run, variant):
    expected = load_file(run / "models" / variant / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert abs(found[name] - weights).max() <= 1e-6, name


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_our_trainer_gives_the_weights_of_the_run(
    read, format, exported, finished_run, tiny_model, tmp_path
):
    config = ForgettingConfig(**settings(tmp_path), schedule="linear", t_min=1e-4, t_max=0.25)
    data = read(exported("data", format=format))
    assert_same(train(ForgettingTrainer, config, tiny_model, data), finished_run[1], "forgetting")


def test_a_weighted_variant_is_exported_with_its_weights_and_trains_again(
    weighed_run, read, tiny_model, tmp_path
):
    export = export_run(weighed_run, "data", variant="weighted", output=tmp_path / "out")
    data = read(export)
    labels, weights, polarity, quality, posterior = (
        np.concatenate([np.asarray(row) for row in data[name]])
        for name in ("labels", "token_weights", "polarity", "quality", "posterior")
    )
    inside = labels != -100
    good = 1 - all_scores(weighed_run)["posterior"].astype(np.float64)
    assert weights[inside] == pytest.approx(good / (good + 4 * (1 - good)), abs=1e-6)
    assert len(set(weights[inside].tolist())) > 100
    assert posterior[inside] == pytest.approx(1 - good, abs=1e-6)
    assert quality[inside] == pytest.approx(good, abs=1e-6)
    assert (polarity == inside).all()
    assert not weights[~inside].any()
    card = (export.path / "README.md").read_text()
    assert "About half of the tokens look bad." in card
    assert "and weighed them for the variant `weighted`" in card
    config = ForgettingConfig(
        **settings(tmp_path / "trained"), schedule="constant", t_min=0.0, t_max=0.0
    )
    found = train(ForgettingTrainer, config, tiny_model, data)
    assert_same(found, weighed_run, "weighted")
    unweighted = train(ForgettingTrainer, config, tiny_model, data.remove_columns("token_weights"))
    assert_same(unweighted, weighed_run, "full")


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_corrected_variant_is_exported_with_what_replaces_bad_tokens_and_trains_again(
    format, corrected_run, read, tiny_model, tmp_path
):
    export = export_run(corrected_run, "data", format=format, output=tmp_path / "out")
    data = read(export)
    posterior = all_scores(corrected_run)["posterior"]
    is_corrected = posterior >= 0.05
    assert 0 < is_corrected.sum() < posterior.size
    labels, weights, others = (
        np.concatenate([np.asarray(row) for row in data[name]])
        for name in ("labels", "token_weights", "alternative_weights")
    )
    inside = labels != -100
    assert weights[inside] == pytest.approx(np.where(is_corrected, 1 - posterior, 1), abs=1e-6)
    assert others[inside] == pytest.approx(np.where(is_corrected, posterior, 0), abs=1e-6)
    ids = [ids for row in data["alternative_ids"] for ids in row]
    assert [len(row) for row in ids] == (32 * (others > 0)).tolist()
    assert all(label not in row for label, row in zip(labels, ids, strict=True))
    config = ForgettingConfig(
        **settings(tmp_path / "trained"), schedule="constant", t_min=0.0, t_max=0.0
    )
    assert_same(train(ForgettingTrainer, config, tiny_model, data), corrected_run, "corrected")
    if format == "parquet":
        weighted = train(
            ForgettingTrainer, config, tiny_model, data.remove_columns(list(ALTERNATIVES))
        )
        with pytest.raises(AssertionError):
            assert_same(weighted, corrected_run, "corrected")


def test_if_nothing_was_found_a_corrected_variant_is_exported_as_one_that_learns_all(
    corrected_run, read, tmp_path
):
    size = len(all_scores(corrected_run)["posterior"])
    judge(corrected_run, np.zeros(size, np.float32), found=False)
    run_stages(corrected_run / "recipe.yaml", corrected_run, stages=["alternatives"])
    data = read(export_run(corrected_run, "data", output=tmp_path / "out"))
    assert set(ALTERNATIVES).isdisjoint(data.column_names)
    for row in data:
        assert row["token_weights"] == [float(label != -100) for label in row["labels"]]


def test_alternatives_that_are_not_there_yet_are_refused(corrected_run, tmp_path):
    size = len(all_scores(corrected_run)["posterior"])
    judge(corrected_run, np.full(size, 0.5, np.float32))
    with pytest.raises(InputError, match="alternatives is not done in"):
        export_run(corrected_run, "data", output=tmp_path / "out")


def test_a_weighted_variant_has_weights_whatever_its_term(weighed_run, read, tmp_path):
    recipe = weighed_run / "recipe.yaml"
    assert "term: ga" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("term: ga", "term: npo"))
    export = export_run(weighed_run, "data", variant="weighted", output=tmp_path / "out")
    assert "token_weights" in read(export).column_names
    with pytest.raises(InputError, match=r"no variant weighted with a selection\. It"):
        export_run(weighed_run, "clean", variant="weighted", output=tmp_path / "clean")


def positive_only(row):
    pairs = zip(row["labels"], row["polarity"], strict=True)
    return {"labels": [label if sign > 0 else -100 for label, sign in pairs]}


@pytest.mark.parametrize("learned", ["all", "all, by the mask", "positive"])
def test_trls_own_trainer_learns_from_it_what_ours_does(
    read, learned, exported, tiny_model, tmp_path
):
    data = read(exported("data"))
    plain = data
    if learned == "positive":
        plain = data.map(positive_only)
    else:
        ones = [[1] * len(row) for row in data["input_ids"]]
        data = data.remove_columns("polarity").add_column("polarity", ones)
        if learned != "all":
            plain = plain.remove_columns("labels")
    config = settings(tmp_path / "plain")
    found = train(SFTTrainer, SFTConfig(**config), tiny_model, plain, dropout=0)
    config = ForgettingConfig(
        **settings(tmp_path / "own"), schedule="constant", t_min=0.0, t_max=0.0
    )
    expected = train(ForgettingTrainer, config, tiny_model, data, dropout=0)
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert abs(found[name] - weights).max() <= 1e-5, name
    assert any(weights.abs().max() > 1e-3 for name, weights in found.items() if "lora_B" in name)


def test_a_corpus_whose_noise_is_unknown_has_no_columns_for_it(exported, read):
    assert not set(NOISE) & set(read(exported("data")).column_names)


def test_the_card_names_every_column(exported):
    card = (exported("data").path / "README.md").read_text()
    for name in COLUMNS:
        assert (f"| `{name}` |" in card) == (name in WITHOUT_NOISE)
    assert json.loads((exported("data").path / "export.json").read_text())["what"] == "data"
