"""The smallest recipe, and recipes from its sections."""

from __future__ import annotations

import pytest
import yaml

from forgetting.config import load_recipe

SMALL = {"model": {"name_or_path": "some/model"}, "data": {"sources": [{"path": "some/data"}]}}


@pytest.fixture
def load(tmp_path):
    """Loads a recipe from its sections, over the smallest possible one."""

    def do(*overrides, **sections):
        file = tmp_path / "some.yaml"
        file.write_text(yaml.safe_dump({**SMALL, **sections}, sort_keys=False), encoding="utf-8")
        return load_recipe(file, overrides)

    return do
