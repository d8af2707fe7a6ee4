"""Which variants have the same model, by the checksums of its files."""

from __future__ import annotations

import pytest

from forgetting.rundir.manifest import Manifest, Output, StageEntry, same_model


def manifest(**models):
    """A manifest in which variants were trained in this order; weights and card of each."""
    stages = {}
    for variant, (weights, card) in models.items():
        files = {"adapter.safetensors": weights, "README.md": card, "log/training.jsonl": "log"}
        outputs = {
            f"models/{variant}/{name}": Output(sha256=checksum, size=1, mtime_ns=0)
            for name, checksum in files.items()
        }
        stages[f"train:{variant}"] = StageEntry(
            fingerprint="f", outputs=outputs, finished="", seconds=1, peak_memory_bytes=1
        )
    return Manifest(name="mine", stages=stages)


def test_the_same_files_are_the_same_model_whatever_the_card_says():
    found = manifest(full=("a", "1"), other=("b", "1"), weighted=("a", "2"), corrected=("a", "3"))
    same = {name: same_model(found, name) for name in ("full", "other", "weighted", "corrected")}
    assert same == {"full": None, "other": None, "weighted": "full", "corrected": "full"}


@pytest.mark.parametrize("found", [None, manifest(), manifest(full=("a", "1"))])
def test_what_was_not_trained_is_the_model_of_nothing(found):
    assert same_model(found, "weighted") is None


def test_a_model_without_files_is_the_model_of_nothing():
    found = manifest(full=("a", "1"), weighted=("a", "1"))
    for entry in found.stages.values():
        entry.outputs.clear()
    assert same_model(found, "weighted") is None
