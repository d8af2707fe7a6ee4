"""Wrong input: exit code 2, one message that says what and where, and nothing half written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from forgetting.cli import main
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.samples import Samples
from forgetting.stages import corpus_selection
from forgetting.training import checkpoints
from tests.conftest import save_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture
def refused(write_recipe, tmp_path, capsys):
    """Runs a recipe that cannot run; gives the message."""

    def do(*overrides, recipe=None, run=tmp_path / "run", verb="run"):
        options = [part for override in overrides for part in ("--set", override)]
        path = write_recipe() if recipe is None else recipe
        code = main([verb, str(path), "--run-dir", str(run), *options, "--quiet"])
        captured = capsys.readouterr()
        assert code == 2, captured.err
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("error: ") == 1
        assert "Traceback" not in captured.err
        check_nothing_half_written(run)
        return captured.err

    return do


def check_nothing_half_written(run):
    """Every stage of the manifest is whole, every artifact belongs to one."""
    if not (run / "manifest.json").exists():
        return
    assert not list(run.rglob("*.partial"))
    outputs = {name for entry in read_manifest(run).stages.values() for name in entry.outputs}
    for name in outputs:
        assert (run / name).stat().st_size > 0 or name.endswith(".jsonl")
    files = (f.relative_to(run).as_posix() for f in run.rglob("*") if f.is_file())
    assert {name for name in files if not name.startswith(".")} - outputs <= {
        "manifest.json",
        "recipe.yaml",
    }


@pytest.fixture
def data(tmp_path):
    """Writes the data file of the tiny recipe."""

    def write(content):
        file = tmp_path / "records.json"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file)

    return write


def test_a_missing_recipe(refused, tmp_path):
    message = refused(recipe=tmp_path / "nowhere.yaml")
    assert "is not a recipe: there is no such file" in message
    assert "nowhere.yaml" in message
    assert "forgetting recipes" in message
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_yaml(refused, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("model: [a\n")
    message = refused(recipe=file)
    assert "broken.yaml is not YAML" in message
    assert "line 2" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", "training.learning_rat: unknown field. Allowed here: learning"),
        ("selection.rho=0", "selection.rho: must be a number strictly between 0 and 1"),
        ("selection.rho=1", "selection.rho: must be a number strictly between 0 and 1"),
        ("selection.rho=1.7", "(got 1.7)"),
        ("selection.rho", "expected section.field=value"),
        ("model.name_or_path=/no/where", "model.name_or_path: there is no folder /no/where"),
        ("data.sources.0.path=/no/where.jsonl", "no data file at /no/where.jsonl"),
        ("data.max_length=257", "Set data.max_length to 256 or less"),
    ],
)
def test_a_wrong_field(refused, override, message):
    assert message in refused(override)


def test_a_model_without_weights(refused, tmp_path, tiny_model):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    message = refused(f"model.name_or_path={model}")
    assert f"{model} holds no safetensors weights" in message
    assert not (tmp_path / "run").exists()


def test_a_model_whose_weights_are_damaged(refused, tmp_path, tiny_model):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").write_bytes(b"not what it seems")
    assert str(model) in refused(f"model.name_or_path={model}")


def test_a_tokenizer_without_end_of_sequence(refused, tmp_path, tiny_model):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    message = refused(f"model.name_or_path={model}")
    assert f"{model}: the tokenizer has no end-of-sequence token" in message
    assert "Set `eos_token`" in message


GOOD = {"instruction": "Say yes.", "output": "Yes."}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "records.json holds no records"),
        ("[]", "records.json holds no records"),
        (b'[{"instruction": "a",\n "output": "caf\xe9"}]', "not UTF-8: line 2 holds the byte 0xe9"),
        ('[\n{"instruction": "a", "output": "b"},\n{"output": \n]', "broken JSON at line 4"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": \n', "broken JSON at line 2"),
        ('{"instruction": "a"}', "found one dict"),
        ([{"body": "a", "title": "b"}], "The first record has the fields body, title"),
        ([3], "The first record has no fields"),
        (
            [GOOD, *[{"instruction": str(n)} for n in range(3)]],
            "records.json, record 2 (line 1): no field `output`",
        ),
        (
            [GOOD, *[{"instruction": str(n), "output": " "} for n in range(3)]],
            "records.json, record 2 (line 1): empty response",
        ),
        ([GOOD] * 60, "has only 1"),
    ],
)
def test_data_that_cannot_be_used(refused, data, content, message):
    data(content)
    text = refused()
    assert message.replace("has only 1", "only 1") in text


def test_splits_that_ask_for_more_than_there_is(refused):
    message = refused("data.num_reference=30", "data.num_train=40")
    assert "asks for 78 samples" in message
    assert "num_reference 30 + num_train 40 + num_heldout 8" in message
    assert "only 60" in message


def test_a_prompt_longer_than_max_length_is_left_out_and_counted(
    write_recipe, data, tmp_path, capsys
):
    records = [
        {"instruction": f"Stone {n}? " + ("Tell me more. " * 20 if n < 3 else ""), "output": "Red."}
        for n in range(60)
    ]
    data(records)
    run = tmp_path / "run"
    options = ["--set", "data.num_train=33"]
    assert main(["prepare", str(write_recipe()), "--run-dir", str(run), *options]) == 0
    assert "3 records were dropped" in " ".join(capsys.readouterr().err.split())
    summary = json.loads((run / "data" / "summary.json").read_text())
    (source,) = summary["sources"]
    assert (source["read"], source["prompt_too_long"], source["used"]) == (60, 3, 57)
    for split in ("reference", "train", "heldout"):
        samples = Samples.read(run / "data" / f"{split}.parquet")
        assert samples.lengths.max() <= 128
        assert samples.num_response_tokens.min() > 0


def test_a_run_directory_of_another_recipe(refused, tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run[1], run)
    message = refused("name=other")
    assert f"{run} belongs to the recipe 'tiny', not to 'other'" in message
    assert "--run-dir" in message


def test_a_directory_that_is_no_run(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("Dear")
    assert "it holds letter.txt" in refused()
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["letter.txt"]


def test_a_run_directory_that_a_live_process_has_locked(refused, tmp_path):
    run = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from forgetting.rundir.directory import RunDir\n"
        f"with RunDir(Path({str(run)!r}), 'tiny'): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        message = refused()
        holder.stdin.close()
    assert f"{run} is in use by process {holder.pid}" in message


def test_a_verb_whose_input_is_not_there(refused):
    message = refused(verb="score")
    assert "score needs prepare, which is not done" in message
    assert "forgetting prepare" in message


@pytest.fixture
def full_disk(monkeypatch):
    """Makes a way of writing fail like a full disk from its n-th use on."""

    def fill(module, name, after):
        original, made = getattr(module, name), []

        def write(*args, **kwargs):
            made.append(1)
            if len(made) > after:
                # What a real one leaves: a file that is too short.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, write)

    return fill


@pytest.mark.parametrize(
    ("module", "name", "after", "done"),
    [
        # In prepare, in score, in a checkpoint of the reference, in select, in the manifest.
        (pq.ParquetWriter, "write_table", 1, set()),
        (pq, "write_table", 4, {"prepare", "reference"}),
        (checkpoints, "save_file", 3, {"prepare"}),
        (corpus_selection, "select_corpus", 0, {"prepare", "reference", "score"}),
        (os, "fsync", 6, None),
    ],
)
def test_a_full_disk(
    refused, write_recipe, tmp_path, monkeypatch, full_disk, module, name, after, done
):
    sections = {"variants": {"forgetting": {}}}
    recipe = write_recipe(**sections)
    full_disk(module, name, after)
    message = refused(recipe=recipe)
    assert "the disk is full" in message
    assert "Run the same command again" in message
    if done is not None:
        assert read_manifest(tmp_path / "run").stages.keys() == done
    monkeypatch.undo()
    assert main(["run", str(recipe), "--run-dir", str(tmp_path / "run"), "--quiet"]) == 0
    check_nothing_half_written(tmp_path / "run")
    assert "report" in read_manifest(tmp_path / "run").stages


def test_models_that_do_not_fit_are_refused_before_any_stage(refused, tiny_model, tmp_path):
    small = save_tiny_model(tmp_path / "small", vocab_extra=-2)
    message = refused(f"model.name_or_path={small}")
    assert "has 259 token ids, but the model's vocabulary has 257" in message
    contradiction = shutil.copytree(tiny_model, tmp_path / "contradiction")
    generation = {"temperature": 0.9, "top_p": 0.6, "do_sample": False}
    (contradiction / "generation_config.json").write_text(json.dumps(generation))
    message = refused(f"model.name_or_path={contradiction}")
    assert "temperature 0.9, top_p 0.6, do_sample False" in message
    quantized = shutil.copytree(tiny_model, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    assert "already quantized" in refused(f"model.name_or_path={quantized}")
    other = save_tiny_model(tmp_path / "other", vocab_extra=-9)
    message = refused(f"reference.name_or_path={other}")
    assert "has 259 token ids, but the vocabulary of" in message
    assert not (tmp_path / "run").exists()
