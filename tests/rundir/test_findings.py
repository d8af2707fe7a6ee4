"""What the detector found: what was written is read, other tokens and wrong values are refused."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.findings import (
    DetectorSummary,
    has_findings,
    posterior_parts,
    read_findings,
)
from forgetting.rundir.reader import RunReader
from forgetting.rundir.samples import Samples
from tests.conftest import save_findings, save_scored_run


@pytest.fixture
def run(tmp_path):
    """A run directory with 12 samples that a detector has judged."""
    return save_scored_run(tmp_path / "run")


def fingerprint(run):
    return Samples.read(layout.train_file(run)).fingerprint


@pytest.mark.parametrize("sizes", [None, [5, 7], [1] * 12])
def test_what_was_written_is_read(run, sizes):
    samples = Samples.read(layout.train_file(run))
    posterior = np.linspace(0, 1, samples.response_ids.size, dtype=np.float32)
    save_findings(run, posterior)
    parts = list(posterior_parts(run, samples.fingerprint, sizes))
    assert np.array_equal(np.concatenate([part.posterior for part in parts]), posterior)
    assert np.concatenate([part.kind for part in parts]).tolist()[:4] == [0, 1, 0, 1]
    lengths = np.concatenate([part.lengths for part in parts])
    assert lengths.tolist() == samples.num_response_tokens.tolist()
    ids = np.concatenate([part.sample_ids for part in parts])
    assert ids.tolist() == samples.sample_ids.tolist()
    assert read_findings(run, samples.fingerprint) == DetectorSummary.load(layout.detector_dir(run))


def test_what_was_found_in_other_tokens_is_refused(run):
    with pytest.raises(InputError, match=r"posterior.parquet belongs to other tokens"):
        next(posterior_parts(run, "0" * 64))
    with pytest.raises(InputError, match=r"summary.json belongs to other tokens"):
        read_findings(run, "0" * 64)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_what_is_no_probability_is_refused(run, bad):
    size = Samples.read(layout.train_file(run)).response_ids.size
    posterior = np.zeros(size, np.float32)
    posterior[3] = bad
    save_findings(run, posterior)
    with pytest.raises(InputError, match="does not hold one probability for each token"):
        list(posterior_parts(run, fingerprint(run)))


def test_a_run_without_a_detector_has_no_findings(run):
    layout.recipe_file(run).write_text("name: some")
    assert has_findings(run)
    assert RunReader(run).findings == read_findings(run, fingerprint(run))
    layout.summary_file(layout.detector_dir(run)).unlink()
    assert not has_findings(run)
    assert RunReader(run).findings is None
    with pytest.raises(InputError, match="forgetting detect"):
        read_findings(run, fingerprint(run))
