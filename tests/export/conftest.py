"""Exports of the finished run, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgetting.export import Export, export_run


@pytest.fixture(scope="session")
def exported(
    finished_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Export]:
    """Exports from the finished run, each only once."""
    made: dict[Any, Export] = {}
    folder = tmp_path_factory.mktemp("exports")

    def do(what: Any, **options: Any) -> Export:
        key = (what, *sorted(options.items()))
        if key not in made:
            output = folder / str(len(made))
            made[key] = export_run(finished_run[1], what, output=output, **options)
        return made[key]

    return do


@pytest.fixture(scope="session")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Export], Any]:
    """Reads an exported corpus as its users do, with a cache of the tests' own."""
    from datasets import load_dataset

    cache = str(tmp_path_factory.mktemp("datasets"))
    return lambda export: load_dataset(str(export.path), split="train", cache_dir=cache)


@pytest.fixture
def own_run(finished_run: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished_run[1], tmp_path / "own-run"))
