"""What is written works like what was trained, and what does not is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from forgetting.config import ModelSettings
from forgetting.errors import ForgettingError
from forgetting.models import adapters, loading
from forgetting.models.saving import check_adapter, check_saved, save_merged
from forgetting.models.verification import check_prompting, probe_logits
from tests.conftest import byte_tokenizer, save_tiny_model

IDS = torch.arange(3, 40)[None]


def settings(path) -> ModelSettings:
    return ModelSettings(name_or_path=str(path))


def tuned_model(folder, **options):
    """A PEFT model whose adapter changes something, in evaluation mode."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).eval()
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "modules_to_save.default" in name:
            torch.nn.init.normal_(parameter)
    return tuned


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=str,
)
def test_a_merged_model_predicts_what_the_adapter_did(options, is_tied, tmp_path):
    base = save_tiny_model(tmp_path / "base", tie_word_embeddings=is_tied)
    tuned = tuned_model(base, **options)
    tuned.save_pretrained(tmp_path / "adapter")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    save_merged(
        settings(base), torch.float32, tmp_path / "adapter", tmp_path / "out", tokenizer, [1, 7]
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, tuned(IDS).logits, rtol=1e-4, atol=1e-4)
    assert merged.generation_config.eos_token_id == [1, 7]
    adapts_ends = options["target_modules"] != "all-linear"
    tied = AutoConfig.from_pretrained(tmp_path / "out").tie_word_embeddings
    assert tied == (is_tied and not adapts_ends)


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_that_does_not_work_like_its_adapter_is_refused(tmp_path, monkeypatch):
    base = save_tiny_model(tmp_path / "base", tie_word_embeddings=True)
    tuned_model(base, target_modules=["lm_head"]).save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(adapters, "_untie", lambda model: None)
    with pytest.raises(ForgettingError, match=r"merged, does not work like the trained model"):
        adapters.merge_adapter(settings(base), torch.float32, tmp_path / "adapter")


def tamper(file):
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})


def test_an_adapter_on_disk_is_compared_with_the_trained_one(tiny_model, tmp_path):
    tuned = tuned_model(tiny_model, target_modules="all-linear")
    tuned.save_pretrained(tmp_path)
    expected = probe_logits(tuned, torch.float32)
    check_adapter(tuned, torch.float32, tmp_path, expected)
    assert list(tuned.peft_config) == ["default"]
    assert torch.equal(probe_logits(tuned, torch.float32), expected)
    tamper(tmp_path / "adapter_model.safetensors")
    with pytest.raises(ForgettingError, match=r"the adapter in .* does not work like the trained"):
        check_adapter(tuned, torch.float32, tmp_path, expected)


def test_weights_on_disk_are_compared_with_the_trained_ones(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    own = settings(folder)
    expected = probe_logits(loading.load_base_model(own, torch.float32), torch.float32)
    check_saved(own, torch.float32, torch.float32, folder, expected)
    check_saved(
        own,
        torch.float32,
        torch.bfloat16,
        folder,
        probe_logits(loading.load_base_model(own, torch.float32), torch.bfloat16),
    )
    tamper(folder / "model.safetensors")
    with pytest.raises(ForgettingError, match="its logits differ by"):
        check_saved(own, torch.float32, torch.float32, folder, expected)
    with pytest.raises(ForgettingError, match="predicts 259 tokens, and the trained model 257"):
        check_saved(own, torch.float32, torch.float32, folder, expected[:, 2:])
    with pytest.raises(ForgettingError, match="differ by nan"):
        check_saved(own, torch.float32, torch.float32, folder, expected * float("nan"))


def test_a_template_or_an_end_token_that_is_missing_is_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    tokenizer = byte_tokenizer()
    check_prompting(folder, tokenizer, [1])
    with pytest.raises(ForgettingError, match=r"does not name the end tokens \[5\]"):
        check_prompting(folder, tokenizer, [1, 5])
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [1, 5]}))
    check_prompting(folder, tokenizer, [1, 5])
    file.unlink()
    with pytest.raises(ForgettingError, match=r"end tokens \[1\]"):
        check_prompting(folder, tokenizer, [1])
    tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(ForgettingError, match="another chat template"):
        check_prompting(folder, tokenizer, [1])
