"""Adapters on the Hub work from its cache on this machine."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from forgetting.config import LoraSettings, ModelSettings, load_recipe
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.models.adapter_files import adapter_config, adapter_shapes, is_adapter
from forgetting.models.adapters import attach_adapter, leaves_base_alone
from forgetting.pipeline import run as run_stages
from forgetting.rundir.samples import Samples
from forgetting.scoring import score_samples
from tests.conftest import all_scores
from tests.models.conftest import COMMIT


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """An adapter of the tiny model that changes what it predicts."""
    from peft import get_peft_model

    config = loading.lora_config(LoraSettings(rank=2))
    config.init_lora_weights = False
    torch.manual_seed(3)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_cached_adapter_is_known_without_a_network(adapter, tiny_model, put_on_hub):
    put_on_hub(adapter, "org/adapter")
    put_on_hub(tiny_model, "org/model")
    assert is_adapter("org/adapter")
    assert not is_adapter("org/model")
    with pytest.raises(InputError, match="org/unknown is not a folder, and the Hub cannot be"):
        is_adapter("org/unknown")
    assert adapter_shapes("org/adapter") == adapter_shapes(adapter)
    assert adapter_shapes("org/unknown") is None
    assert leaves_base_alone("org/adapter")
    for name in ("org/adapter", "org/model"):
        found = loading.model_fingerprint(ModelSettings(name_or_path=name))
        assert found == {"id": name, "commit": COMMIT}
    assert loading.model_facts(ModelSettings(name_or_path="org/model")).commit == COMMIT
    with pytest.raises(InputError, match="org/unknown: no configuration could be read"):
        loading.model_fingerprint(ModelSettings(name_or_path="org/unknown"))


def test_damaged_files_are_named(adapter):
    (adapter / "adapter_model.safetensors").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged"):
        adapter_shapes(adapter)
    (adapter / "adapter_config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"adapter_config\.json is not a valid adapter config"):
        adapter_config(adapter / "adapter_config.json")


def test_a_run_scores_with_a_cached_adapter(
    adapter, tiny_model, put_on_hub, write_recipe, tmp_path
):
    put_on_hub(adapter, "org/adapter")
    recipe = load_recipe(write_recipe(), ["reference.name_or_path=org/adapter"])
    run = run_stages(recipe, tmp_path / "run", stages=["prepare", "score"])
    model = attach_adapter(loading.load_base_model(recipe.model, torch.float32), adapter)
    expected = score_samples(model, Samples.read(run / "data" / "train.parquet")).log_probs
    assert all_scores(run)["reference_log_probs"] == pytest.approx(expected, abs=1e-4)
