"""Impossible values of a configuration are refused before a model is made from it."""

from __future__ import annotations

import json
import shutil

import pytest

from forgetting.config import LoraSettings, ModelSettings
from forgetting.errors import InputError
from forgetting.models.fitness import check_base
from forgetting.models.loading import count_trainable

VALUES = {
    "num_hidden_layers": [0, -1, 10**6],
    "vocab_size": [0, 10**12],
    "hidden_size": [0, 10**12],
    "intermediate_size": [0, 10**12],
    "max_position_embeddings": [-5],
    "eos_token_id": [259, [1, 10**9]],
    "pad_token_id": [259],
}
CASES = [(field, value) for field, values in VALUES.items() for value in values]


@pytest.mark.parametrize(("field", "value"), CASES, ids=str)
def test_impossible_values_are_named(field, value, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(InputError, match=rf"{folder}: .*({field}|hidden size)"):
        check_base(ModelSettings(name_or_path=str(folder)))
    shape = {"model_type": "llama", "vocab_size": 259, "pad_token_id": 0, field: value}
    described = ModelSettings(name_or_path="some/where", architecture=shape)
    with pytest.raises(InputError, match=rf"model.architecture.*({field}|hidden size)"):
        count_trainable(described, None)


@pytest.mark.parametrize("field", ["eos_token_id", "pad_token_id"])
def test_tokens_of_the_generation_configuration(field, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: 9999}))
    with pytest.raises(InputError, match=f"generation_config.json: {field} 9999 is outside"):
        check_base(ModelSettings(name_or_path=str(folder)))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "nope"}, "Unrecognized model identifier: nope"),
        ({"hidden_size": 8}, "model_type"),
        ({"model_type": "llama", "hidden_size": "x"}, "hidden_size"),
        ({"model_type": "llama", "num_attention_heads": 0}, "ZeroDivisionError"),
        ({"model_type": "t5"}, "no causal language model"),
        ({"model_type": 5}, "Unrecognized"),
    ],
)
def test_descriptions_of_no_model(architecture, message):
    described = ModelSettings(name_or_path="some/where", architecture=architecture)
    for check in (check_base, lambda settings: count_trainable(settings, LoraSettings())):
        if check is check_base and message == "no causal language model":
            continue
        with pytest.raises(InputError, match=f"model.architecture.*{message}"):
            check(described)
