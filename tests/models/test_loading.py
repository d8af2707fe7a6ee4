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
from tests.conftest import save_tiny_model


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
    with pytest.raises(InputError, match=r"holds no weights in safetensors form"):
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
    with pytest.raises(InputError, match="here or on the hub"):
        loading.load_config(settings("nobody/no-such-model"))


def test_an_adapter_shares_the_base_weights(tiny_model, tmp_path):
    from peft import get_peft_model

    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), loading.lora_config(LoraSettings(rank=2))
    )
    tuned.save_pretrained(tmp_path / "adapter")
    assert loading.is_adapter(tmp_path / "adapter")
    assert not loading.is_adapter(tiny_model)
    base = loading.load_base_model(settings(tiny_model), torch.float32)
    before = base.model.layers[0].self_attn.q_proj.weight.data_ptr()
    model = loading.attach_adapter(base, tmp_path / "adapter")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.data_ptr() == before
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no adapter"):
        loading.attach_adapter(base, tmp_path / "adapter")


@pytest.fixture
def adapters(tiny_model, tmp_path):
    """Two trained adapters, and one that was not."""
    from peft import get_peft_model

    paths = []
    for seed in (1, 2, None):
        tuned = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_model),
            loading.lora_config(LoraSettings(rank=2)),
        )
        for name, parameter in tuned.named_parameters():
            if seed is not None and "lora_B" in name:
                torch.manual_seed(seed)
                torch.nn.init.normal_(parameter)
        path = tmp_path / f"adapter-{seed}"
        tuned.save_pretrained(path)
        paths.append(path)
    return paths


def test_one_load_of_the_base_serves_it_and_every_adapter(tiny_model, adapters, monkeypatch):
    loads = []
    load = loading.load_base_model
    monkeypatch.setattr(loading, "load_base_model", lambda *args: loads.append(args) or load(*args))
    shared = loading.SharedBase(settings(tiny_model))
    ids = torch.arange(20)[None]

    def logits(path):
        with shared.lend(path) as model, torch.no_grad():
            return model(input_ids=ids).logits

    first, second, _ = adapters
    # In any order, and the base after an adapter as before it.
    shared_logits = [logits(path) for path in (None, first, second, None, first)]
    assert len(loads) == 1
    for path, found in zip((None, first, second, None, first), shared_logits, strict=True):
        alone = load(settings(tiny_model), torch.float32)
        if path is not None:
            alone = loading.attach_adapter(alone, path)
        with torch.no_grad():
            assert torch.equal(alone(input_ids=ids).logits, found)
    assert not torch.equal(shared_logits[1], shared_logits[2])


def test_whole_weights_take_the_place_of_the_base(tiny_model, adapters, tmp_path):
    import weakref

    whole = save_tiny_model(tmp_path / "whole", seed=5)
    shared = loading.SharedBase(settings(tiny_model))
    with shared.lend() as base:
        held = weakref.ref(base)
    del base
    assert held() is not None
    with shared.lend(whole) as model:
        assert held() is None
        assert not hasattr(model, "peft_config")
    with shared.lend(adapters[0]) as model:
        assert loading.changes_logits(model)


def test_an_adapter_that_changes_nothing_is_refused(tiny_model, adapters):
    shared = loading.SharedBase(settings(tiny_model))
    with pytest.raises(InputError, match="adapter-None does not change"), shared.lend(adapters[2]):
        pass
    with shared.lend() as base:
        assert not hasattr(base, "peft_config")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_added_into_float32_weights_only(tiny_model, tmp_path, dtype):
    from peft import PeftModel, get_peft_model

    config = loading.lora_config(LoraSettings(rank=2, alpha=1))
    config.init_lora_weights = False
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype), config)
    tuned.save_pretrained(tmp_path / "adapter")
    apart = PeftModel.from_pretrained(
        loading.load_base_model(settings(tiny_model), dtype),
        tmp_path / "adapter",
        autocast_adapter_dtype=False,
    ).eval()
    model = loading.attach_adapter(
        loading.load_base_model(settings(tiny_model), dtype), tmp_path / "adapter"
    )
    loading.fuse_adapter(model)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.merged == (dtype == torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found, expected = (m(ids).logits.log_softmax(-1) for m in (model, apart))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_for_inference_has_the_type_of_the_model(tiny_model, adapters):
    model = loading.attach_adapter(
        loading.load_base_model(settings(tiny_model), torch.bfloat16), adapters[0]
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_an_adapter_on_weights_that_embedding_and_head_share_stays_apart(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    folder = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    base = loading.load_base_model(settings(folder), torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
        base = loading.load_base_model(settings(folder), torch.float32)
        adapted = loading.attach_adapter(base, tmp_path / "adapter")
        loading.fuse_adapter(adapted)
        found = adapted(ids).logits
    torch.testing.assert_close(found, expected)


def test_the_adapter_leaves_the_head_alone(tiny_model):
    from peft import get_peft_model

    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), loading.lora_config(LoraSettings(rank=2))
    )
    adapted = {name for name, p in tuned.named_parameters() if p.requires_grad}
    for layer in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert any(layer in name for name in adapted), layer
    assert not any("lm_head" in name for name in adapted)


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


@pytest.mark.parametrize("quantization", [None, pytest.param("nf4", marks=needs_bitsandbytes)])
def test_a_merged_model_says_what_its_adapter_said(quantizable_model, tmp_path, quantization):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(quantizable_model), config).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    own = settings(quantizable_model, quantization=quantization)
    merged = loading.merge_adapter(own, torch.float32, tmp_path / "adapter")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (merged(ids).logits - tuned(ids).logits).abs().max() < 1e-4
    assert not any("lora" in name for name, _ in merged.named_parameters())


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
