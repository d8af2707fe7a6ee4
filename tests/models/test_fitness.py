"""Models that do not fit together are refused from their configurations, with both values."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.config import LoraSettings, ModelSettings
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.models.fitness import check_base, check_reference
from tests.conftest import save_tiny_model


def settings(path, **changes) -> ModelSettings:
    return ModelSettings(name_or_path=str(path), **changes)


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "copy")


def save_adapter(base, folder, **options):
    from peft import get_peft_model

    config = loading.lora_config(LoraSettings(rank=2))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder, **options)
    return folder


def test_a_model_that_fits_is_accepted(tiny_model, tmp_path):
    check_base(settings(tiny_model))
    larger = save_tiny_model(tmp_path / "larger", vocab_extra=5)
    check_base(settings(larger))
    check_reference(settings(tiny_model), str(larger))
    adapter = save_adapter(tiny_model, tmp_path / "adapter", save_embedding_layers=True)
    check_reference(settings(tiny_model), str(adapter))


def test_a_tokenizer_larger_than_the_vocabulary(copy):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(copy)
    message = f"tokenizer has {size + 2} token ids, but the model's vocabulary has {size} "
    with pytest.raises(InputError, match=message):
        check_base(settings(copy))


def test_a_generation_config_that_cannot_be_saved(copy):
    change(copy / "generation_config.json", temperature=0.9, top_p=0.6, do_sample=False)
    with pytest.raises(InputError, match=r"temperature 0.9, top_p 0.6, do_sample False"):
        check_base(settings(copy))
    change(copy / "generation_config.json", do_sample=True)
    check_base(settings(copy))


def test_weights_that_are_quantized_already(copy):
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    change(copy / "config.json", quantization_config=quantized)
    with pytest.raises(InputError, match=r"already quantized \(bitsandbytes, 4 bits\)"):
        check_base(settings(copy))


def test_an_adapter_of_another_vocabulary(tiny_model, tmp_path):
    base = save_tiny_model(tmp_path / "resized", vocab_extra=2)
    adapter = save_adapter(base, tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(InputError, match=r"weight of shape \[261, 32\], .* needs \[259, 32\]"):
        check_reference(settings(tiny_model), str(adapter))


def test_an_adapter_of_another_hidden_size(tiny_model, tmp_path):
    adapter = save_adapter(save_tiny_model(tmp_path / "wide", hidden_size=64), tmp_path / "adapter")
    with pytest.raises(InputError, match=r"lora_B.weight of shape \[64, 2\], .* needs \[32, 2\]"):
        check_reference(settings(tiny_model), str(adapter))


def test_an_adapter_for_layers_that_the_base_lacks(tiny_model, tmp_path):
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    change(adapter / "adapter_config.json", target_modules=["c_attn"])
    with pytest.raises(InputError, match="does not fit"):
        check_reference(settings(tiny_model), str(adapter))


def test_an_adapter_that_names_another_base(tiny_model, tmp_path, caplog):
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    change(adapter / "adapter_config.json", base_model_name_or_path="org/another-model")
    check_reference(settings(tiny_model), str(adapter))
    assert "was trained on org/another-model" in caplog.text


def test_two_names_on_the_hub_are_compared(tiny_model, tmp_path, monkeypatch):
    from forgetting.models import fitness

    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    change(adapter / "adapter_config.json", base_model_name_or_path="org/another-model")
    config, tokenizer = (
        loading.load_config(settings(tiny_model)),
        loading.load_tokenizer(settings(tiny_model)),
    )
    monkeypatch.setattr(fitness, "_config", lambda _: config)
    monkeypatch.setattr(fitness, "_tokenizer", lambda _: tokenizer)
    with pytest.raises(InputError, match=r"trained on org/another-model, but .* is org/model"):
        check_reference(settings("org/model"), str(adapter))


def test_a_reference_with_another_tokenizer(tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"another tokenizer than .*: 2 of 259 tokens differ"):
        check_reference(settings(tiny_model), str(other))


def test_a_reference_with_a_smaller_vocabulary(tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other", vocab_extra=-9)
    with pytest.raises(InputError, match=r"has 259 token ids, but the vocabulary of .* has 250"):
        check_reference(settings(tiny_model), str(other))


def test_a_model_on_the_hub_that_cannot_be_reached_is_left_to_its_stage(tiny_model):
    check_base(settings("nobody/nothing"))
    check_reference(settings(tiny_model), "nobody/nothing")
