"""Exports of the finished run, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forgetting.export import Export, export_run
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.manifest import Output, read_manifest
from forgetting.rundir.samples import Samples
from tests.conftest import save_findings


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


def judge(run: Path, posterior: NDArray[np.float32], *, found: bool = True) -> None:
    """Put findings into a run as if its detector had made them."""
    save_findings(run, posterior, found=found)
    manifest = read_manifest(run)
    assert manifest is not None
    entry = manifest.stages["detect"]
    entry.outputs = {name: Output.of(run / name) for name in entry.outputs}
    layout.manifest_file(run).write_text(manifest.model_dump_json())


@pytest.fixture
def weighed_run(detected_run: tuple[Path, Path], tmp_path: Path) -> Path:
    """A run whose detector gave each token a posterior of its own, and its trained variants."""
    recipe, source = detected_run
    run = Path(shutil.copytree(source, tmp_path / "weighed-run"))
    size = Samples.read(layout.train_file(run)).response_ids.size
    judge(run, np.random.default_rng(0).random(size).astype(np.float32))
    return run_stages(recipe, run, stages=["select", "train"])


@pytest.fixture(scope="session")
def trained_corrected(
    detected_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose detector found something, and its variant that corrects tokens."""
    recipe, source = detected_run
    run = Path(shutil.copytree(source, tmp_path_factory.mktemp("corrected") / "run"))
    size = Samples.read(layout.train_file(run)).response_ids.size
    judge(run, (np.random.default_rng(0).random(size) ** 4).astype(np.float32))
    variants = ["variants={full: {}, corrected: {}}"]
    return run_stages(recipe, run, stages=["alternatives", "train"], overrides=variants)


@pytest.fixture
def corrected_run(trained_corrected: Path, tmp_path: Path) -> Path:
    """A copy of `trained_corrected`, to be changed."""
    return Path(shutil.copytree(trained_corrected, tmp_path / "corrected-run"))


@pytest.fixture
def own_run(finished_run: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished_run[1], tmp_path / "own-run"))
