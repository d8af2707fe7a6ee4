"""Weights that are missing, without a place or of other sizes are refused, with their names."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forgetting.config import LoraSettings, ModelSettings
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.models.adapters import attach_adapter
from forgetting.models.fitness import check_base, check_reference
from forgetting.models.reported import first_not_finite
from tests.conftest import save_tiny_model

QUERY = "model.layers.0.self_attn.q_proj.weight"


def settings(path) -> ModelSettings:
    return ModelSettings(name_or_path=str(path))


def edit(file, change):
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def without(name):
    return lambda weights: {key: value for key, value in weights.items() if name not in key}


def renamed(prefix):
    return lambda weights: {prefix + key: value for key, value in weights.items()}


def half(weights):
    return dict(sorted(weights.items())[: len(weights) // 2])


def with_another(weights):
    return {**weights, "model.layers.0.other.weight": torch.zeros(3)}


def same(weights):
    return weights


UNFIT = {
    "one removed": (without(QUERY), {}, rf"1 missing \({QUERY}\)"),
    "no head": (without("lm_head"), {}, r"1 missing \(lm_head.weight\)"),
    "compiled": (
        renamed("_orig_mod."),
        {},
        r"21 missing \(lm_head.weight, .*; 21 without a place \(_orig_mod.lm_head.*compiled",
    ),
    "half": (half, {}, r"11 missing \("),
    "one added": (with_another, {}, r"1 without a place \(model.layers.0.other.weight\)"),
    "more layers": (same, {"num_hidden_layers": 3}, r"9 missing \(model.layers.2"),
    "fewer layers": (same, {"num_hidden_layers": 1}, r"9 without a place \(model.layers.1"),
    "other width": (
        same,
        {"intermediate_size": 16},
        r"6 of another size \(.*.down_proj.weight is \[32, 64\] instead of \[32, 16",
    ),
    "other heads": (same, {"num_attention_heads": 8}, r"4 of another size \("),
}


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_that_do_not_fit_their_configuration(kind, model, tiny_model):
    """As a base and as a reference, before anything is computed and when it is loaded."""
    change, config, message = UNFIT[kind]
    edit(model / "model.safetensors", change)
    change_config(model, **config)
    message = rf"{model}: the weights are not those of config.json: {message}"
    with pytest.raises(InputError, match=message):
        check_base(settings(model))
    with pytest.raises(InputError, match=message):
        check_reference(settings(tiny_model), str(model), 128)
    with pytest.raises(InputError, match=message):
        loading.load_base_model(settings(model), torch.float32)


def test_a_head_that_is_tied_to_the_embedding_is_not_missing(tmp_path):
    folder = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    check_base(settings(folder))
    loading.load_base_model(settings(folder), torch.float32)


def test_weights_that_are_no_numbers(model):
    edit(model / "model.safetensors", lambda weights: {**weights, QUERY: weights[QUERY] / 0})
    with pytest.raises(InputError, match=rf"{model}: the weight {QUERY} has values .* not finite"):
        loading.load_base_model(settings(model), torch.float32)
    layer = torch.nn.Linear(2, 2)
    assert first_not_finite(layer) is None
    with torch.no_grad():
        layer.bias[1] = torch.inf
    assert first_not_finite(layer) == "bias"


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """One that changes what the tiny model predicts."""
    from peft import get_peft_model

    config = loading.lora_config(LoraSettings(rank=2, modules_to_save=["lm_head"]))
    config.init_lora_weights = False
    torch.manual_seed(4)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (without("0.self_attn.q_proj.lora_B"), {}, r"1 missing \(.*q_proj.lora_B.weight\)"),
        (without("lm_head"), {}, r"1 missing \(base_model.model.lm_head.weight\)"),
        (renamed("_orig_mod."), {}, r"29 missing .*; 29 without a place \(_orig_mod"),
        (with_another, {}, r"1 without a place \(model.layers.0.other.weight\)"),
        (same, {"use_dora": True}, r"14 missing \(.*lora_magnitude_vector"),
        (same, {"target_modules": ["q_proj", "k_proj"]}, r"20 without a place \("),
    ],
    ids=["one half", "no head", "compiled", "one added", "dora", "fewer targets"],
)
def test_adapters_that_do_not_fill_their_places(change, config, message, adapter, tiny_model):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    edit(adapter / "adapter_model.safetensors", change)
    message = f"does not have the weights .*: {message}"
    with pytest.raises(InputError, match=rf"the adapter {adapter} {message}"):
        check_reference(settings(tiny_model), str(adapter), 128)
    base = loading.load_base_model(settings(tiny_model), torch.float32)
    # PEFT fails by itself where a whole module is missing.
    with pytest.raises(InputError, match=rf"the adapter {adapter} ({message}|cannot be put on)"):
        attach_adapter(base, adapter)


def test_an_adapter_with_values_that_are_no_numbers(adapter, tiny_model):
    edit(
        adapter / "adapter_model.safetensors",
        lambda weights: {key: value / 0 for key, value in weights.items()},
    )
    base = loading.load_base_model(settings(tiny_model), torch.float32)
    with pytest.raises(InputError, match=rf"the adapter {adapter}: .* not finite"):
        attach_adapter(base, adapter)
