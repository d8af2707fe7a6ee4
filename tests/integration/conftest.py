"""A run whose detector says what a test wants it to say."""

from __future__ import annotations

import shutil

import pytest

from forgetting.pipeline import run as run_stages
from forgetting.rundir.findings import DetectorSummary
from tests.conftest import save_findings


@pytest.fixture
def judged(detected_run, tmp_path, monkeypatch):
    """Trains and selects with a copy of the run, using findings that the test supplies."""

    def do(posterior, found, *overrides, stages=("select", "train")):
        from forgetting.stages import corpus_detection

        recipe, source = detected_run
        run = tmp_path / "run"
        shutil.copytree(source, run)

        def detect(recipe, run, corpus, output, scratch, advance):
            save_findings(source.parent / "judged", posterior, found)
            (output / "posterior.parquet").write_bytes(
                (source.parent / "judged" / "detector" / "posterior.parquet").read_bytes()
            )
            return DetectorSummary.load(source.parent / "judged" / "detector")

        shutil.copytree(source, source.parent / "judged", dirs_exist_ok=True)
        monkeypatch.setattr(corpus_detection, "detect", detect)
        shutil.rmtree(run / "detector")
        return run_stages(recipe, run, stages=("detect", *stages), overrides=overrides)

    return do
