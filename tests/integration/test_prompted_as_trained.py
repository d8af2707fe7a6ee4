"""A model that leaves a run is prompted, and stops, as it was trained."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.config import load_recipe
from forgetting.export import export_run
from forgetting.pipeline import run as run_stages
from forgetting.rundir.samples import Samples
from tests.conftest import byte_tokenizer, save_tiny_model

pytestmark = pytest.mark.slow

CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
MARKS = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A model with the marks of ChatML in its vocabulary, and without a template."""
    folder = save_tiny_model(tmp_path_factory.mktemp("chat"), vocab_extra=2)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.save_pretrained(folder)
    (folder / "chatml.jinja").write_text(CHATML)
    return folder


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (["training.lora=null"], "model"),
        ([], "model"),
        ([], "adapter"),
        (["training.merge=true"], "model"),
    ],
    ids=["whole", "merged on export", "adapter", "merged in training"],
)
def test_what_goes_out_is_prompted_and_stops_as_trained(
    changes, what, chat_model, write_recipe, tmp_path
):
    recipe = load_recipe(
        write_recipe(),
        [
            f"model.name_or_path={chat_model}",
            f"model.chat_template={chat_model / 'chatml.jinja'}",
            "variants={full: {}}",
            "data.num_heldout=0",
            "training.epochs=2",
            *changes,
        ],
    )
    run = run_stages(recipe, tmp_path / "run", stages=["prepare", "train"])
    for folder in (run / "models" / "full", export_run(run, what, output=tmp_path / "out").path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == CHATML
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        card = (folder / "README.md").read_text()
        assert "tokenizer.apply_chat_template(" in card
        loading, prompting = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[:2]
        names: dict = {}
        code = (loading + prompting).replace('path = "."', f"path = {str(folder)!r}")
        exec(code.replace('from_pretrained("...")', f"from_pretrained({str(chat_model)!r})"), names)
        model = names["model"]
        assert end in model.generation_config.eos_token_id
        # Generation stops at the end token that was labeled.
        with torch.no_grad():
            head = model.get_output_embeddings()
            head.weight.zero_()
            bias = torch.zeros(head.weight.shape[0])
            bias[end] = 1.0
            head.register_forward_hook(lambda module, inputs, output, bias=bias: output * 0 + bias)
        prompt = names["prompt"]
        output = model.generate(**prompt, max_new_tokens=9, do_sample=False)
        assert output[0, prompt["input_ids"].shape[1] :].tolist() == [end]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_tied", [False, True])
def test_modules_that_are_trained_whole_are_saved_and_merged(is_tied, write_recipe, tmp_path):
    model = save_tiny_model(tmp_path / "model", tie_word_embeddings=is_tied)
    changes = [
        f"model.name_or_path={model}",
        "variants={full: {}}",
        "training.lora.modules_to_save=[embed_tokens, lm_head]",
    ]
    recipe = load_recipe(write_recipe(), changes)
    run = run_stages(recipe, tmp_path / "run", stages=["prepare", "train", "evaluate"])
    merged = export_run(run, "model", output=tmp_path / "out").path
    base, trained = (AutoModelForCausalLM.from_pretrained(path) for path in (model, merged))
    for one, other in (
        (base.get_input_embeddings(), trained.get_input_embeddings()),
        (base.get_output_embeddings(), trained.get_output_embeddings()),
    ):
        assert not torch.equal(one.weight, other.weight)
    # The run measured the adapter, with a head that computes only what is needed.
    loss = json.loads((run / "evaluation" / "full" / "heldout.json").read_text())["metrics"]["loss"]
    total = count = 0
    for row in Samples.read(run / "data" / "heldout.parquet").table.to_pylist():
        labels = torch.tensor(row["labels"])[1:].long()
        with torch.no_grad():
            logits = trained(torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    assert loss["value"] == pytest.approx(total / count, abs=1e-5)


def test_a_base_model_keeps_its_own_files(chat_model):
    assert AutoTokenizer.from_pretrained(chat_model).chat_template is None
    assert AutoModelForCausalLM.from_pretrained(chat_model).generation_config.eos_token_id == 1
