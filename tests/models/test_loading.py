"""Loading: what is refused, what is shared, what is counted."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM

from forgetting.config import LoraSettings, ModelSettings
from forgetting.errors import InputError
from forgetting.models import loading


def settings(path, **changes) -> ModelSettings:
    return ModelSettings(name_or_path=str(path), **changes)


@pytest.fixture
def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_the_model_comes_in_the_dtype_and_in_evaluation_mode(tiny_model):
    for dtype in (torch.float32, torch.bfloat16):
        model = loading.load_base_model(settings(tiny_model), dtype)
        assert next(model.parameters()).dtype == dtype
        assert not model.training


def test_dtype_auto_is_float32_without_a_gpu(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.pick_dtype(settings(tiny_model)) == torch.float32
    assert loading.pick_dtype(settings(tiny_model, dtype="bfloat16")) == torch.bfloat16


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no safetensors weights"):
        loading.load_base_model(settings(copy), torch.float32)


def test_pickled_weights_are_not_read(copy):
    model = AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        loading.load_base_model(settings(copy), torch.float32)


def test_code_that_comes_with_a_model_does_not_run(copy):
    ran = copy / "ran"
    (copy / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own"}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="configuration"):
        loading.load_config(settings(copy))
    assert not ran.exists()


def test_broken_configuration_is_refused(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match="configuration"):
        loading.load_config(settings(copy))


def test_a_tokenizer_without_end_of_sequence_is_refused(copy):
    file = copy / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["eos_token"]
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="no end-of-sequence token"):
        loading.load_tokenizer(settings(copy))


def test_a_tokenizer_without_padding_pads_with_its_end(copy):
    file = copy / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["pad_token"]
    file.write_text(json.dumps(config))
    tokenizer = loading.load_tokenizer(settings(copy))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_an_id_that_is_nowhere_is_refused():
    with pytest.raises(InputError, match="could be read from a folder or the Hub"):
        loading.load_config(settings("nobody/no-such-model"))


@pytest.mark.parametrize("rank", [1, 4])
def test_trainable_parameters_are_counted_without_weights(copy, rank):
    (copy / "model.safetensors").unlink()
    # 2 layers of 32: q, o 32x32; k, v 32x16; gate, up, down 32x64. An adapter has in + out rows.
    per_layer = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)
    found = loading.count_trainable(settings(copy), LoraSettings(rank=rank))
    assert found == 2 * rank * per_layer


def test_without_an_adapter_all_parameters_are_trainable(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    total = sum(p.numel() for p in model.parameters())
    assert loading.count_trainable(settings(tiny_model), None) == total


def test_the_recipe_describes_a_model_that_cannot_be_read():
    unknown = settings("nobody/no-such-model")
    assert loading.count_trainable(unknown, LoraSettings()) is None
    described = unknown.model_copy(
        update={
            "architecture": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "vocab_size": 50,
            }
        }
    )
    per_layer = 4 * (32 + 32) + 3 * (32 + 64)
    assert loading.count_trainable(described, LoraSettings(rank=2)) == 2 * per_layer


def test_the_fingerprint_is_that_of_the_bytes(copy, tiny_model):
    assert loading.model_fingerprint(settings(copy)) == loading.model_fingerprint(
        settings(tiny_model)
    )
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert loading.model_fingerprint(settings(copy)) != loading.model_fingerprint(
        settings(tiny_model)
    )


needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@needs_bitsandbytes
@pytest.mark.parametrize(("kind", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_quantised_weights_are_close_to_the_whole_ones(quantizable_model, kind, layer):
    ids = torch.arange(3, 40)[None]
    whole = loading.load_base_model(settings(quantizable_model), torch.float32)
    small = loading.load_base_model(settings(quantizable_model, quantization=kind), torch.float32)
    assert type(small.model.layers[0].mlp.up_proj).__name__ == layer
    # The head stays as it is: its log-probabilities are what everything rests on.
    assert torch.equal(small.lm_head.weight, whole.lm_head.weight)
    with torch.no_grad():
        first, second = (model(ids).logits.flatten() for model in (whole, small))
    assert torch.corrcoef(torch.stack([first, second]))[0, 1] > 0.9
    assert not torch.equal(first, second)


def test_without_bitsandbytes_quantisation_says_what_to_install(tiny_model, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="forgetting\\[qlora\\]"):
        loading.load_base_model(settings(tiny_model, quantization="nf4"), torch.float32)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ("# A model without metadata\n", None),
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: https://own.org\n---\n",
            "own (https://own.org)",
        ),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: 7\n---\n", "7"),
    ],
)
def test_a_models_licence_is_what_its_card_says(copy, card, licence):
    if card is not None:
        (copy / "README.md").write_text(card)
    assert loading.model_facts(settings(copy)) == loading.ModelFacts(None, licence)


def test_of_a_model_that_cannot_be_read_nothing_is_known():
    facts = loading.model_facts(settings("nobody/has-this-model"))
    assert facts == loading.ModelFacts(None, None)


def test_special_tokens_are_those_that_stand_for_no_text(tiny_model):
    settings = ModelSettings(name_or_path=str(tiny_model))
    tokenizer = loading.load_tokenizer(settings)
    special = loading.special_token_ids(settings)
    assert special == {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
