"""Odd values in recipes, models and adapters: each is accepted, or refused with one message.

Whatever a file says, reading it ends in a result or an `InputError`, never in an error of a
library or of the language.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from forgetting.config import LoraSettings, ModelSettings, load_recipe
from forgetting.errors import InputError
from forgetting.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from forgetting.models.fitness import check_adapted_modules, check_base, check_reference
from forgetting.models.loading import count_trainable, load_tokenizer, lora_config

ODD = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 3, 10**6, 10**12, -(10**12), 0.5, -0.5, 1e300, "", "x", "nope",
        "0", "a/b", "../x", "é" * 300, [], [0], ["x"], [None], {}, {"a": 1}, {"rope_type": "nope"},
        [[]], "eager", "relu", "float16", "LORA", "IA3", "CAUSAL_LM", "all", "(", ".*",
    ]
)  # fmt: skip
BOUNDED = settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refused_or_not(check: Callable[[], object]) -> None:
    """Any other error is a failure of the test."""
    with contextlib.suppress(InputError):
        check()


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    from peft import get_peft_model

    torch.manual_seed(5)
    config = lora_config(LoraSettings(rank=2))
    config.init_lora_weights = False
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(folder)
    return folder


def with_values(folder: Path, name: str, values: dict, target: Path) -> Path:
    """A copy of a folder with other values in one of its JSON files."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (target / name).write_text(json.dumps({**content, **values}), encoding="utf-8")
    return target


def fields(folder: Path, name: str) -> st.SearchStrategy[dict]:
    known = sorted(json.loads((folder / name).read_text(encoding="utf-8")))
    return st.dictionaries(st.sampled_from(known), ODD, min_size=1, max_size=2)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_models(name, tiny_model, tmp_path):
    @BOUNDED
    @given(fields(tiny_model, name))
    def check(values):
        folder = with_values(tiny_model, name, values, tmp_path / "odd")
        base = ModelSettings(name_or_path=str(folder))
        refused_or_not(lambda: check_base(base))
        refused_or_not(lambda: load_tokenizer(base))
        own = ModelSettings(name_or_path=str(tiny_model))
        refused_or_not(lambda: check_reference(own, str(folder), 128))

    check()


def test_adapters(adapter, tiny_model, tmp_path):
    @BOUNDED
    @given(fields(adapter, ADAPTER_CONFIG))
    def check(values):
        folder = with_values(adapter, ADAPTER_CONFIG, values, tmp_path / "odd")
        own = ModelSettings(name_or_path=str(tiny_model))
        refused_or_not(lambda: check_reference(own, str(folder), 128))

    check()


@pytest.mark.parametrize(
    ("of_adapter", "name"),
    [
        (False, "config.json"),
        (False, "generation_config.json"),
        (False, "tokenizer.json"),
        (False, "tokenizer_config.json"),
        (False, "model.safetensors"),
        (True, ADAPTER_CONFIG),
        (True, ADAPTER_WEIGHTS),
    ],
)
def test_damaged_files(of_adapter, name, adapter, tiny_model, tmp_path):
    source = adapter if of_adapter else tiny_model
    whole = (source / name).read_bytes()

    @settings(BOUNDED, max_examples=8)
    @given(
        st.integers(0, min(len(whole), 4000) - 1),
        st.sampled_from([b"", b"\x00", b"\xff\xfe", b"[", b'"', b"}", b"[]", b"null", b"[" * 5000]),
        st.booleans(),
    )
    def check(place, piece, is_cut):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        rest = b"" if is_cut else whole[place + len(piece) :]
        (folder / name).write_bytes(whole[:place] + piece + rest)
        own = ModelSettings(name_or_path=str(tiny_model))
        if not of_adapter:
            refused_or_not(lambda: check_base(ModelSettings(name_or_path=str(folder))))
            refused_or_not(lambda: load_tokenizer(ModelSettings(name_or_path=str(folder))))
        refused_or_not(lambda: check_reference(own, str(folder), 128))

    check()


def _paths(section: dict, prefix: str = "") -> list[str]:
    """Every field of a recipe."""
    found = []
    for name, value in section.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += _paths(value, f"{prefix}{name}.")
    return found


def test_recipes(write_recipe):
    file = write_recipe()
    known = _paths(load_recipe(file).model_dump(mode="json"))

    @settings(BOUNDED, max_examples=80)
    @given(st.dictionaries(st.sampled_from(known), ODD, min_size=1, max_size=2))
    def check(values):
        changes = [
            f"{name}={yaml.safe_dump(value).removesuffix('...')}" for name, value in values.items()
        ]
        refused_or_not(lambda: load_recipe(file, changes))

    check()


@BOUNDED
@given(
    st.dictionaries(
        st.sampled_from(
            ["model_type", "hidden_size", "num_hidden_layers", "vocab_size", "pad_token_id"]
        ),
        ODD | st.sampled_from(["llama", "gpt2", "t5", "mixtral"]),
    )
)
def test_described_models(architecture):
    described = ModelSettings(name_or_path="no/where", architecture=architecture)
    refused_or_not(lambda: count_trainable(described, LoraSettings()))


@settings(BOUNDED, max_examples=20)
@given(
    st.lists(
        st.sampled_from(["q_proj", "mlp", "lm_head", "", "x", ".", "layers.0", "norm"]), max_size=3
    ),
    st.lists(st.sampled_from(["lm_head", "embed_tokens", "", "x", "q_proj", "layers"]), max_size=2),
)
def test_adapted_modules(tiny_model, targets, saved):
    lora = LoraSettings(rank=2, target_modules=targets, modules_to_save=saved)
    own = ModelSettings(name_or_path=str(tiny_model))
    refused_or_not(lambda: check_adapted_modules("training", own, lora))
