"""What can be had of a run, what is refused, and what is never given away."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.cli import main
from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.export import export_run
from forgetting.pipeline import run as run_stages

pytestmark = pytest.mark.usefixtures("restored_logging")


def logits(model):
    model.eval()
    with torch.inference_mode():
        return model(torch.arange(3, 40)[None]).logits


def test_the_adapter_and_the_merged_model_predict_the_same(exported, finished_run, tiny_model):
    adapter = AutoPeftModelForCausalLM.from_pretrained(exported("adapter").path)
    merged = AutoModelForCausalLM.from_pretrained(exported("model").path)
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert (logits(adapter) - logits(merged)).abs().max() < 1e-4
    assert (logits(merged) - base).abs().max() > 1e-2
    for what in ("adapter", "model"):
        names = {file.name for file in exported(what).path.iterdir()}
        assert {"README.md", "export.json", "training.jsonl", "tokenizer.json"} <= names
        weights = "adapter_model" if what == "adapter" else "model"
        assert [n for n in names if "model" in n and "config" not in n] == [
            f"{weights}.safetensors"
        ]
    tokenizer = AutoTokenizer.from_pretrained(exported("model").path)
    assert (
        tokenizer("stone").input_ids == AutoTokenizer.from_pretrained(tiny_model)("stone").input_ids
    )


def test_results_and_figures_of_the_training_are_in_the_models_card(exported, finished_run):
    card = (exported("adapter").path / "README.md").read_text()
    result = finished_run[1] / "evaluation" / "forgetting" / "heldout.json"
    loss = json.loads(result.read_text())["metrics"]["loss"]
    assert f"{loss['value']:.3f} ± {loss['stderr']:.3f}" in card
    assert "- steps: 6" in card
    assert "| records | 48 |" in card
    assert "\nlibrary_name: peft\n" in card
    assert "\nlibrary_name: transformers\n" in (exported("model").path / "README.md").read_text()


@pytest.mark.parametrize("what", ["data", "clean", "model"])
def test_no_folder_of_this_machine_is_given_away(what, exported, finished_run, tiny_model):
    for file in exported(what).path.iterdir():
        content = file.read_bytes()
        for folder in (finished_run[1].parent, tiny_model):
            assert str(folder).encode() not in content, file


def test_another_variant_is_had_by_its_name(exported, finished_run):
    about = json.loads((exported("data", variant="ignoring").path / "export.json").read_text())
    assert about["variant"] == "ignoring"
    with pytest.raises(
        InputError, match=r"no variant full with a selection or weights\. It has: ignoring, for"
    ):
        export_run(finished_run[1], "data", variant="full")
    assert (
        "Tokens were selected"
        not in (exported("adapter", variant="full").path / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "model", "format": "jsonl"}, "--format applies to --what data or clean only"),
        ({"drop_worst": 0.2}, "--drop-worst applies to --what clean only"),
        ({"by": "negatives"}, "--by applies to --what clean only"),
        ({"what": "clean", "drop_worst": 1.0}, "--drop-worst must be at least 0 and below 1"),
        ({"public": True}, "--public needs --push-to-hub"),
        ({"variant": "nope"}, "no variant nope"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options, message, finished_run, tmp_path):
    with pytest.raises(InputError, match=message):
        export_run(finished_run[1], output=tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "objective", "message"),
    [
        ("data", "full", r"no variant with a selection or weights\. .*Add .*`weighted: {}`"),
        ("clean", "weighted", r"no variant with a selection\. .*`ignoring: .* with --what data"),
    ],
)
def test_what_a_run_cannot_give_is_refused_with_what_to_do(
    what, objective, message, own_run, tmp_path
):
    recipe = yaml.safe_load((own_run / "recipe.yaml").read_text())
    recipe["variants"] = {"only": {"objective": objective}}
    (own_run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match=message):
        export_run(own_run, what, output=tmp_path / "out")


def test_what_is_out_of_date_is_refused(own_run, tmp_path):
    recipe = own_run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("t_max: 0.25", "t_max: 0.2"))
    with pytest.raises(InputError, match=r"train:forgetting is not done .* for its recipe"):
        export_run(own_run, "adapter", output=tmp_path / "out")
    # The selection does not depend on it.
    export_run(own_run, "data", output=tmp_path / "out")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json"])
def test_files_that_changed_after_training_are_not_copied(name, own_run, tmp_path):
    file = own_run / "models" / "forgetting" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    # As a failing disk does: same size, same time.
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=times)
    with pytest.raises(InputError, match=rf"{name} is not the file that was written"):
        export_run(own_run, "adapter", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_training_did_not_write_are_not_copied(own_run, tmp_path):
    (own_run / "models" / "forgetting" / "extra.json").write_text("{}")
    folder = export_run(own_run, "adapter", output=tmp_path / "out").path
    assert not (folder / "extra.json").exists()


def test_results_of_another_recipe_are_left_out(own_run, tmp_path):
    shutil.rmtree(own_run / "evaluation" / "forgetting")
    card = export_run(own_run, "adapter", output=tmp_path / "out").path / "README.md"
    assert "| | items | base | full | ignoring |\n" in card.read_text()


def test_the_card_says_that_a_model_is_a_copy_and_compares_by_pairs(own_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "forgetting.report.verdict.same_model",
        lambda manifest, variant: "full" if variant in ("ignoring", "forgetting") else None,
    )
    folder = export_run(own_run, "adapter", variant="forgetting", output=tmp_path / "out").path
    card = (folder / "README.md").read_text()
    sentence = card[card.index("## Results") : card.index("Brackets hold")]
    assert "forgetting is the same model as full." in sentence
    assert "forgetting and" not in sentence
    assert "of forgetting" not in sentence
    assert "training on all tokens" in sentence
    assert "paired difference" in sentence


def test_whole_weights_are_copied_and_have_no_adapter(write_recipe, tmp_path):
    changes = ["training.merge=true", "variants={full: {}}", "data.num_heldout=0"]
    run = run_stages(
        load_recipe(write_recipe(), changes), tmp_path / "run", stages=["prepare", "train"]
    )
    with pytest.raises(InputError, match="Export it with --what model"):
        export_run(run, "adapter", output=tmp_path / "out")
    export = export_run(run, "model", output=tmp_path / "out")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (export.path / name).read_bytes() == (run / "models" / "full" / name).read_bytes()
    card = (export.path / "README.md").read_text()
    assert "Not evaluated when this card was written." in card
    with pytest.raises(InputError, match="this run has no variant with a selection or weights"):
        export_run(run, "data", output=tmp_path / "out")


def test_the_command_says_what_where_and_how_it_is_read(
    finished_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(finished_run[1])]) == 0
    captured = capsys.readouterr()
    text = captured.out
    assert "24 samples with" in text
    assert "Output folder: exports/tiny-forgetting-data\n" in text
    assert "    data = load_dataset('exports/tiny-forgetting-data', split=\"train\")\n" in text
    assert main(["export", str(finished_run[1])]) == 2
    assert "Replace it with --force" in capsys.readouterr().err
    assert main(["export", str(finished_run[1]), "--force", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"output": "exports/tiny-forgetting-data", "url": None}
    assert main(["export", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(finished_run, tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("forgetting.export.export.write_rows", interrupted)
    arguments = ["export", str(finished_run[1]), "--output", str(tmp_path / "out")]
    assert main(arguments) == 130
    assert capsys.readouterr().err.endswith("Interrupted. Nothing was written.\n")
    assert not list(tmp_path.iterdir())
