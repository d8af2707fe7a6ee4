"""Models that do not fit together are refused from their configurations, with both values."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config

from forgetting.config import LoraSettings, ModelSettings, load_recipe
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.models.fitness import check_adapted_modules, check_base, check_reference
from forgetting.pipeline import describe_plan
from tests.conftest import byte_tokenizer, save_tiny_model, small_model


def settings(path, **changes) -> ModelSettings:
    return ModelSettings(name_or_path=str(path), **changes)


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "copy")


def save_adapter(base, folder, modules="all-linear", layers=None, **options):
    from peft import get_peft_model

    config = loading.lora_config(LoraSettings(rank=2, target_modules=modules))
    config.layers_to_transform = layers
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder, **options)
    return folder


def test_a_model_that_fits_is_accepted(tiny_model, tmp_path):
    check_base(settings(tiny_model))
    larger = save_tiny_model(tmp_path / "larger", vocab_extra=5)
    check_base(settings(larger))
    check_reference(settings(tiny_model), str(larger), 128)
    adapter = save_adapter(tiny_model, tmp_path / "adapter", save_embedding_layers=True)
    check_reference(settings(tiny_model), str(adapter), 128)


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


def test_weights_of_other_sizes_than_the_configuration_says(copy, tiny_model):
    change(copy / "config.json", vocab_size=300)
    message = r"embed_tokens.weight is \[259, 32\] instead of \[300, 32\]"
    with pytest.raises(InputError, match=message):
        check_base(settings(copy))
    with pytest.raises(InputError, match=message):
        check_reference(settings(tiny_model), str(copy), 128)


def test_a_model_that_is_not_causal(tiny_model, tmp_path):
    T5Config(vocab_size=300).save_pretrained(tmp_path / "t5")
    byte_tokenizer().save_pretrained(tmp_path / "t5")
    for check in (
        lambda: check_base(settings(tmp_path / "t5")),
        lambda: check_reference(settings(tiny_model), str(tmp_path / "t5"), 128),
    ):
        with pytest.raises(
            InputError, match=r"t5: .* no causal language model .*\(model_type t5\)"
        ):
            check()


def test_the_base_model_is_no_reference(tiny_model):
    with pytest.raises(InputError, match="is the base model itself"):
        check_reference(settings(tiny_model), str(tiny_model), 128)


def test_an_attention_that_is_not_installed(tiny_model):
    for name in ("flash_attention_2", "nope"):
        with pytest.raises(InputError, match=f"model.attn_implementation: {name} cannot be used"):
            check_base(settings(tiny_model, attn_implementation=name))
    check_base(settings(tiny_model, attn_implementation="eager"))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "5", '{"base_model_name_or_path": 5}', "[" * 100_000],
    ids=lambda c: c[:9],
)
def test_adapter_configurations_that_are_none(content, tiny_model, tmp_path):
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=r"adapter_config.json is not a valid adapter config"):
        check_reference(settings(tiny_model), str(adapter), 128)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"target_modules": ["q_proj", "nope"]},
            r"target_modules: .* has no module nope. It has: ",
        ),
        ({"modules_to_save": ["lm_heed"]}, r"modules_to_save: .* no module lm_heed. .* lm_head, "),
        (
            {"target_modules": ["q_proj", "mlp"]},
            r"this adapter cannot be put on .* Target module LlamaMLP",
        ),
        ({"target_modules": []}, r"this adapter cannot be put on .* No `target_modules` passed"),
        ({"target_modules": ["input_layernorm"]}, r"this adapter cannot be put on .* LlamaRMSNorm"),
        (
            {"target_modules": ["q_proj", "lm_head"]},
            r"an adapter on the output head lm_head .* with training\.lora\.modules_to_save",
        ),
    ],
    ids=str,
)
def test_modules_that_cannot_be_adapted_are_refused(lora, message, tiny_model, write_recipe):
    with pytest.raises(InputError, match=rf"training\.lora.*{message}"):
        check_adapted_modules("training", settings(tiny_model), LoraSettings(**lora))
    for section in ("training", "reference"):
        with pytest.raises(InputError, match=rf"^{section}\.lora"):
            describe_plan(load_recipe(write_recipe(**{section: {"lora": lora}})))


def test_modules_that_can_be_adapted_are_accepted(tiny_model):
    for lora in (
        LoraSettings(),
        LoraSettings(target_modules=["q_proj", "layers.1.mlp.up_proj", "embed_tokens"]),
        LoraSettings(modules_to_save=["embed_tokens", "lm_head"]),
    ):
        check_adapted_modules("training", settings(tiny_model), lora)
    check_adapted_modules("training", settings("nobody/nothing"), LoraSettings())


def test_weights_that_are_quantized_already(copy):
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    change(copy / "config.json", quantization_config=quantized)
    with pytest.raises(InputError, match=r"already quantized \(bitsandbytes, 4 bits\)"):
        check_base(settings(copy))


def test_an_adapter_of_another_vocabulary(tiny_model, tmp_path):
    base = save_tiny_model(tmp_path / "resized", vocab_extra=2)
    adapter = save_adapter(base, tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(InputError, match=r"weight of shape \[261, 32\], .* needs \[259, 32\]"):
        check_reference(settings(tiny_model), str(adapter), 128)


def test_an_adapter_of_another_hidden_size(tiny_model, tmp_path):
    adapter = save_adapter(save_tiny_model(tmp_path / "wide", hidden_size=64), tmp_path / "adapter")
    with pytest.raises(InputError, match=r"lora_B.weight of shape \[64, 2\], .* needs \[32, 2\]"):
        check_reference(settings(tiny_model), str(adapter), 128)


@pytest.mark.parametrize(("own", "its"), [(2, 3), (3, 2)])
def test_an_adapter_for_another_number_of_layers(own, its, tmp_path):
    base = save_tiny_model(tmp_path / "base", num_hidden_layers=own)
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=its)
    adapter = save_adapter(other, tmp_path / "adapter", ["q_proj"])
    with pytest.raises(InputError, match=rf"up to number {its}, but on .* would go up to {own}"):
        check_reference(settings(base), str(adapter), 128)
    check_reference(settings(other), str(adapter), 128)
    # An adapter for some layers only.
    partial = save_adapter(other, tmp_path / "partial", ["q_proj"], layers=[0])
    check_reference(settings(base), str(partial), 128)


def save_on_hub(put_on_hub, tmp_path, **changes):
    """An adapter on a model of these sizes, as `org/adapter` on the Hub."""
    base = save_tiny_model(tmp_path / "trained", **changes)
    adapter = save_adapter(base, tmp_path / "adapter")
    change(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    return put_on_hub(adapter, "org/adapter")


def test_an_adapter_on_the_hub_is_checked_from_its_cache(tiny_model, put_on_hub, tmp_path):
    save_on_hub(put_on_hub, tmp_path, hidden_size=64)
    with pytest.raises(InputError, match=r"org/adapter has .* shape \[64, 2\], .* \[32, 2\]"):
        check_reference(settings(tiny_model), "org/adapter", 128)
    check_reference(settings(tmp_path / "trained"), "org/adapter", 128)


@pytest.mark.parametrize("answer", ["header", "no weights", "no network"])
def test_an_adapter_on_the_hub_is_checked_without_a_download(
    answer, tiny_model, put_on_hub, tmp_path, monkeypatch
):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError

    not_found = SimpleNamespace(headers={}, request=None)
    weights = save_on_hub(put_on_hub, tmp_path, hidden_size=64) / "adapter_model.safetensors"
    shapes = {name: tensor.shape for name, tensor in load_file(weights).items()}
    weights.unlink()

    def parse(self, repo_id, filename):
        assert (repo_id, filename) == ("org/adapter", "adapter_model.safetensors")
        if answer == "no network":
            raise OfflineModeIsEnabled
        if answer == "no weights":
            raise RemoteEntryNotFoundError("404", response=not_found)
        tensors = {name: SimpleNamespace(shape=list(shape)) for name, shape in shapes.items()}
        return SimpleNamespace(tensors=tensors)

    monkeypatch.setattr(HfApi, "parse_safetensors_file_metadata", parse)
    expected = {
        "header": r"org/adapter has .* shape \[64, 2\], .* \[32, 2\]",
        "no weights": "org/adapter holds no safetensors adapter",
    }
    if answer == "no network":
        check_reference(settings(tiny_model), "org/adapter", 128)
    else:
        with pytest.raises(InputError, match=expected[answer]):
            check_reference(settings(tiny_model), "org/adapter", 128)


def test_a_tokenizer_on_the_hub_is_compared(tiny_model, put_on_hub, tmp_path):
    adapter = save_on_hub(put_on_hub, tmp_path)
    check_reference(settings(tiny_model), "org/adapter", 128)
    byte_tokenizer().save_pretrained(adapter)
    check_reference(settings(tiny_model), "org/adapter", 128)
    swap_two_tokens(adapter)
    with pytest.raises(InputError, match="org/adapter has another tokenizer than"):
        check_reference(settings(tiny_model), "org/adapter", 128)


def test_an_adapter_for_layers_that_the_base_lacks(tiny_model, tmp_path):
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    change(adapter / "adapter_config.json", target_modules=["c_attn"])
    with pytest.raises(InputError, match="does not fit"):
        check_reference(settings(tiny_model), str(adapter), 128)


def test_an_adapter_that_names_another_base(tiny_model, tmp_path, caplog):
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    change(adapter / "adapter_config.json", base_model_name_or_path="org/another-model")
    check_reference(settings(tiny_model), str(adapter), 128)
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
        check_reference(settings("org/model"), str(adapter), 128)


def swap_two_tokens(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(content))


def test_a_reference_of_another_size_and_architecture_is_accepted(tiny_model, tmp_path, caplog):
    small_model("gemma2", 300).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    check_reference(settings(tiny_model), str(tmp_path / "other"), 128)
    assert not caplog.text


def test_a_reference_without_a_tokenizer_is_a_warning(tiny_model, tmp_path, caplog):
    small_model("gemma2", 300).save_pretrained(tmp_path / "other")
    check_reference(settings(tiny_model), str(tmp_path / "other"), 128)
    assert "has no tokenizer" in caplog.text


def test_a_reference_with_too_few_positions(tiny_model, tmp_path):
    short = save_tiny_model(tmp_path / "short", max_position_embeddings=100)
    check_reference(settings(tiny_model), str(short), 100)
    with pytest.raises(InputError, match=r"max_length 101 is more than the 100 positions of .*sho"):
        check_reference(settings(tiny_model), str(short), 101)


def test_a_reference_with_another_tokenizer(tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other")
    swap_two_tokens(other)
    with pytest.raises(InputError, match=r"another tokenizer than .*: 2 of 259 tokens differ"):
        check_reference(settings(tiny_model), str(other), 128)


def test_a_reference_with_a_smaller_vocabulary(tiny_model, tmp_path):
    other = save_tiny_model(tmp_path / "other", vocab_extra=-9)
    with pytest.raises(InputError, match=r"has 259 token ids, but the vocabulary of .* has 250"):
        check_reference(settings(tiny_model), str(other), 128)


def test_a_model_on_the_hub_that_cannot_be_reached_is_left_to_its_stage(tiny_model):
    check_base(settings("nobody/nothing"))
    check_reference(settings(tiny_model), "nobody/nothing", 128)
