"""Adapters share, replace or merge into the base weights, and are refused if they do nothing."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forgetting.config import LoraSettings, ModelSettings
from forgetting.errors import InputError
from forgetting.models import adapter_files, adapters, loading
from forgetting.models.verification import probe_logits
from tests.conftest import save_tiny_model

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def settings(path, **changes) -> ModelSettings:
    return ModelSettings(name_or_path=str(path), **changes)


def test_an_adapter_shares_the_base_weights(tiny_model, tmp_path):
    from peft import get_peft_model

    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), loading.lora_config(LoraSettings(rank=2))
    )
    tuned.save_pretrained(tmp_path / "adapter")
    assert adapter_files.is_adapter(tmp_path / "adapter")
    assert not adapter_files.is_adapter(tiny_model)
    base = loading.load_base_model(settings(tiny_model), torch.float32)
    before = base.model.layers[0].self_attn.q_proj.weight.data_ptr()
    model = adapters.attach_adapter(base, tmp_path / "adapter")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.data_ptr() == before
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no safetensors adapter"):
        adapters.attach_adapter(base, tmp_path / "adapter")


def test_an_adapter_goes_on_with_all_weights_of_a_trained_one(tiny_model, tmp_path):
    from peft import get_peft_model

    def adapted(**changes):
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        return get_peft_model(base, loading.lora_config(LoraSettings(rank=2, **changes)))

    trained, fresh = (adapted(modules_to_save=["lm_head"]) for _ in range(2))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    trained.save_pretrained(tmp_path)
    adapters.continue_adapter(fresh, tmp_path)
    other = dict(fresh.named_parameters())
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, other[name]), name
        assert parameter.requires_grad == other[name].requires_grad, name
    with pytest.raises(InputError, match="does not have the weights"):
        adapters.continue_adapter(adapted(target_modules=["q_proj"]), tmp_path)


@pytest.fixture
def folders(tiny_model, tmp_path):
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


def test_one_load_of_the_base_serves_it_and_every_adapter(tiny_model, folders, monkeypatch):
    loads = []
    load = loading.load_base_model
    monkeypatch.setattr(loading, "load_base_model", lambda *args: loads.append(args) or load(*args))
    shared = adapters.SharedBase(settings(tiny_model))
    ids = torch.arange(20)[None]

    def logits(path):
        with shared.lend(path) as model, torch.no_grad():
            return model(input_ids=ids).logits

    first, second, _ = folders
    # In any order, and the base after an adapter as before it.
    shared_logits = [logits(path) for path in (None, first, second, None, first)]
    assert len(loads) == 1
    for path, found in zip((None, first, second, None, first), shared_logits, strict=True):
        alone = load(settings(tiny_model), torch.float32)
        if path is not None:
            alone = adapters.attach_adapter(alone, path)
        with torch.no_grad():
            assert torch.equal(alone(input_ids=ids).logits, found)
    assert not torch.equal(shared_logits[1], shared_logits[2])


@pytest.mark.parametrize(
    ("modules", "options"),
    [(["lm_head"], {}), (["embed_tokens"], {}), (None, {"save_embedding_layers": True})],
    ids=str,
)
def test_the_base_is_itself_again_after_an_adapter_with_whole_modules(
    modules, options, tiny_model, tmp_path
):
    from peft import get_peft_model

    lora = LoraSettings(rank=2, modules_to_save=modules or [])
    config = loading.lora_config(lora)
    config.init_lora_weights = False
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "modules_to_save" in name or (modules is None and "embed_tokens" in name):
                parameter.add_(1)
    tuned.save_pretrained(tmp_path / "adapter", **options)
    shared = adapters.SharedBase(settings(tiny_model))
    ids = torch.arange(20)[None]

    def logits(path):
        with shared.lend(path) as model, torch.no_grad():
            return model(input_ids=ids).logits

    base = logits(None)
    with torch.no_grad():
        expected = tuned.eval()(input_ids=ids).logits
    torch.testing.assert_close(logits(tmp_path / "adapter"), expected)
    assert torch.equal(logits(None), base)


def test_whole_weights_take_the_place_of_the_base(tiny_model, folders, tmp_path):
    import weakref

    whole = save_tiny_model(tmp_path / "whole", seed=5)
    shared = adapters.SharedBase(settings(tiny_model))
    with shared.lend() as base:
        held = weakref.ref(base)
    del base
    assert held() is not None
    with shared.lend(whole) as model:
        assert held() is None
        assert not hasattr(model, "peft_config")
    with shared.lend(folders[0]) as model:
        with model.disable_adapter():
            base = probe_logits(model, torch.float32)
        assert not torch.equal(probe_logits(model, torch.float32), base)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("is_measured", [False, True])
def test_what_changes_nothing_is_refused(is_last, is_measured, tiny_model, folders, tmp_path):
    """An adapter, and whole weights, whether or not the base was lent before."""
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    for path, what in ((folders[2], "adapter"), (copy, "model")):
        shared = adapters.SharedBase(settings(tiny_model))
        if is_measured:
            with shared.lend():
                pass
        message = f"the {what} in {path} does not change what the base model predicts"
        with pytest.raises(InputError, match=message), shared.lend(path, is_last=is_last):
            pass


def test_an_adapter_below_rounding_changes_nothing(tiny_model, folders):
    weights = load_file(folders[0] / "adapter_model.safetensors")
    for scale, is_refused in ((1e-9, True), (1e-4, False)):
        scaled = {k: v * scale if "lora_B" in k else v for k, v in weights.items()}
        save_file(scaled, folders[0] / "adapter_model.safetensors")
        shared = adapters.SharedBase(settings(tiny_model))
        refused = pytest.raises(InputError, match="does not change")
        with refused if is_refused else nullcontext(), shared.lend(folders[0]):
            pass


def test_the_base_is_lent_after_a_refusal(tiny_model, folders):
    shared = adapters.SharedBase(settings(tiny_model))
    with pytest.raises(InputError), shared.lend(folders[2]):
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
    model = adapters.attach_adapter(
        loading.load_base_model(settings(tiny_model), dtype), tmp_path / "adapter"
    )
    adapters.fuse_adapter(model)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.merged == (dtype == torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found, expected = (m(ids).logits.log_softmax(-1) for m in (model, apart))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_for_inference_has_the_type_of_the_model(tiny_model, folders):
    model = adapters.attach_adapter(
        loading.load_base_model(settings(tiny_model), torch.bfloat16), folders[0]
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
        adapted = adapters.attach_adapter(base, tmp_path / "adapter")
        adapters.fuse_adapter(adapted)
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


@pytest.mark.parametrize("quantization", [None, pytest.param("nf4", marks=needs_bitsandbytes)])
def test_a_merged_model_says_what_its_adapter_said(quantizable_model, tmp_path, quantization):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(quantizable_model), config).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    own = settings(quantizable_model, quantization=quantization)
    merged = adapters.merge_adapter(own, torch.float32, tmp_path / "adapter")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (merged(ids).logits - tuned(ids).logits).abs().max() < 1e-4
    assert not any("lora" in name for name, _ in merged.named_parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "gaussian", "use_dora": True},
        {"lora_bias": True},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_adapters_of_every_form_are_lent_as_trained_and_leave_the_base_as_it_was(
    tiny_model, tmp_path, options
):
    from peft import LoraConfig, get_peft_model

    ids = torch.arange(5, 20)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    plain = base(input_ids=ids).logits.detach()
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **options)).eval()
    torch.manual_seed(0)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) / 10
    expected = tuned(input_ids=ids).logits.detach()
    tuned.save_pretrained(tmp_path / "adapter")
    shared = adapters.SharedBase(settings(tiny_model, dtype="float32"))
    for path, is_last in [
        (tmp_path / "adapter", False),
        (None, False),
        (tmp_path / "adapter", True),
    ]:
        with shared.lend(path, is_last=is_last) as model, torch.no_grad():
            found = model(input_ids=ids).logits
        wanted = plain if path is None else expected
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
