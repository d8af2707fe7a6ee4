"""What a verdict is worth, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from experiments.noise import verdicts
from experiments.noise.verdicts import Case, table
from forgetting.rundir import layout
from forgetting.rundir.heldout_losses import write_heldout
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, write_table


def case(named, gain, error, **accuracy):
    best = max(accuracy, key=accuracy.__getitem__)
    return Case(0.2, 1, named, best, accuracy, gain, error)


def test_good_and_harmful_verdicts_are_counted():
    cases = [
        case("full", 0.0, 0.0, full=0.9, weighted=0.9),
        case("weighted", 0.02, 0.01, full=0.9, weighted=0.92),
        case("weighted", -0.005, 0.01, full=0.9, weighted=0.895),
        case("weighted", -0.05, 0.01, full=0.9, weighted=0.85),
    ]
    text = table(cases)
    assert "as accurate: 2 of 4." in text
    assert "more than its error: 1." in text
    assert "| 20 % | 1 | weighted | full | 90.0 | 85.0 | 90.0 | -5.0 ± 1.0 |" in text


def test_models_are_compared_on_clean_samples_only(tmp_path, monkeypatch):
    rows = [
        {
            "sample_id": number,
            "source": "a",
            "input_ids": [3, 4, 5],
            "labels": [-100, 4, 5],
            "noise": [0, int(number == 3)],
            "noise_kind": None,
        }
        for number in range(4)
    ]
    file = layout.split_file(layout.data_dir(tmp_path), "heldout")
    file.parent.mkdir(parents=True)
    write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), file)
    samples = Samples.read(file)
    hits = {"full": [1, 1, 1, 0, 0, 0, 1, 1], "weighted": [1, 1, 1, 1, 0, 1, 0, 0]}
    for name, values in hits.items():
        folder = layout.evaluation_dir(tmp_path, name)
        folder.mkdir(parents=True)
        write_heldout(folder, samples, np.zeros(8), np.array(values, bool))
    recipe = SimpleNamespace(variants=dict.fromkeys(hits))
    monkeypatch.setattr(verdicts, "RunReader", lambda path: SimpleNamespace(recipe=recipe))
    monkeypatch.setattr(verdicts, "run_verdict", lambda run: SimpleNamespace(model="weighted"))
    found = verdicts.judge(tmp_path, 0.2, 1)
    # The last sample is noisy: that `full` has it right does not count.
    assert found.accuracy == {"full": 1 / 3, "weighted": 2 / 3}
    assert (found.named, found.best, found.is_best) == ("weighted", "weighted", True)
    assert found.gain == 1 / 3
    assert found.error == pytest.approx(np.std([0, 1, 0], ddof=1) / np.sqrt(3))
