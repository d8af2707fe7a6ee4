"""A run is opened by a selection, by what the detector found, or by both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetting.errors import InputError
from forgetting.inspector import Inspection, open_inspection
from forgetting.inspector.overview import whole
from forgetting.inspector.queries import Query
from forgetting.rundir import layout
from forgetting.rundir.findings import PosteriorWriter
from forgetting.rundir.samples import Samples
from tests.conftest import save_findings

Decode = Callable[..., str]


@pytest.fixture
def samples(run_dir: Path) -> Samples:
    return Samples.read(layout.train_file(run_dir))


@pytest.fixture
def posterior(samples: Samples) -> Any:
    return np.random.default_rng(0).beta(0.3, 1, samples.response_ids.size).astype(np.float32)


def opened(run: Path, decode: Decode, **more: Any) -> Inspection:
    inspection = open_inspection(run, decode, **more)
    assert inspection is not None
    return inspection


def test_findings_are_shown_next_to_a_selection(
    run_dir: Path, decode: Decode, samples: Samples, posterior: Any
) -> None:
    before = opened(run_dir, decode)
    save_findings(run_dir, posterior)
    inspection = opened(run_dir, decode)
    assert inspection.selection == before.selection
    assert np.array_equal(inspection.polarity, before.polarity)
    assert np.array_equal(inspection.quality, before.quality)
    starts = samples.response_starts
    sums = [posterior[a:b].sum() for a, b in pairwise(starts)]
    assert inspection.expected_bad == pytest.approx(sums)
    rows, _ = inspection.find(Query(sort="bad"))
    assert rows.tolist() == np.argsort(-inspection.expected_bad, kind="stable").tolist()
    sample = inspection.sample(5, 4096)
    assert sample["num_bad"] == pytest.approx(sums[5])
    assert np.float32(sample["posterior"]).tolist() == posterior[starts[5] : starts[6]].tolist()
    assert sample["kind"] == [place % 2 for place in range(starts[5], starts[6])]
    facts = whole(inspection)
    assert facts["detector"]["kinds"] == ["garbled word", "answer to another question"]
    assert facts["about"].endswith("Detector: About half of the tokens look bad.")


def test_without_a_selection_the_posterior_divides(
    run_dir: Path, decode: Decode, samples: Samples, posterior: Any
) -> None:
    shutil.rmtree(layout.selection_dir(run_dir))
    save_findings(run_dir, posterior)
    inspection = opened(run_dir, decode)
    is_bad = posterior >= 0.5  # the end of a response among them
    assert (inspection.polarity < 0).tolist() == is_bad.tolist()
    assert (inspection.polarity != 0).all()
    assert inspection.quality == pytest.approx(1 - posterior)
    assert inspection.selection.variant is None
    assert not whole(inspection)["has_selection"]
    assert whole(inspection)["own_negative"] == is_bad.sum()


def test_findings_of_nothing_are_opened_too(run_dir: Path, decode: Decode, posterior: Any) -> None:
    shutil.rmtree(layout.selection_dir(run_dir))
    save_findings(run_dir, 0 * posterior, found=False)
    inspection = opened(run_dir, decode, explain=lambda row, tokens: [[("loss", 1.0)]])
    assert (inspection.polarity == 1).all()
    assert whole(inspection)["detector"]["verdict"].startswith("Nothing found.")
    # Where nothing was found, nothing speaks for a token being bad.
    assert inspection.telling(0, [0]) == [[]]


def test_neither_is_nothing_to_open(run_dir: Path, decode: Decode) -> None:
    shutil.rmtree(layout.selection_dir(run_dir))
    assert open_inspection(run_dir, decode) is None


def test_tokens_are_explained_within_the_response(
    run_dir: Path, decode: Decode, posterior: Any
) -> None:
    save_findings(run_dir, posterior)
    asked = []

    def explain(row: int, tokens: Any) -> list[list[tuple[str, float]]]:
        asked.append((row, tokens))
        return [[("base loss", float(token))] for token in tokens]

    inspection = opened(run_dir, decode, explain=explain)
    last = int(inspection.lengths[3]) - 1
    assert inspection.telling(3, [0, last]) == [[("base loss", 0.0)], [("base loss", last)]]
    for token in (-1, last + 1):
        with pytest.raises(ValueError, match=str(token)):
            inspection.telling(3, [token])
    assert asked == [(3, [0, last])]


def test_samples_are_not_sorted_by_what_nobody_found(run_dir: Path, decode: Decode) -> None:
    inspection = opened(run_dir, decode)
    with pytest.raises(KeyError):
        inspection.find(Query(sort="bad"))
    assert inspection.sample(0, 9)["num_bad"] is None


def test_a_posterior_of_other_lengths_is_refused(
    run_dir: Path, decode: Decode, posterior: Any, samples: Samples
) -> None:
    save_findings(run_dir, posterior)
    lengths = samples.num_response_tokens
    lengths[:2] += (1, -1)
    with PosteriorWriter(
        layout.posterior_file(layout.detector_dir(run_dir)), samples.fingerprint
    ) as writer:
        kinds = np.zeros(len(posterior), np.int8)
        writer.write(samples.sample_ids, lengths, posterior, kinds)
    with pytest.raises(InputError, match="one posterior for each response token"):
        open_inspection(run_dir, decode)
