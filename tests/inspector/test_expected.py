"""What the model expected is shown where the run holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from forgetting.inspector import open_inspection
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples
from forgetting.rundir.token_alternatives import TokenAlternatives, write_alternatives


def test_a_token_has_its_three_most_likely_alternatives(
    run_dir: Path, decode: Callable[..., str]
) -> None:
    samples = Samples.read(layout.train_file(run_dir))
    folder = layout.alternatives_dir(run_dir)
    folder.mkdir()
    # Shards of the scores hold 40 samples each. One token of sample 41 and two of sample 42.
    halves = [Samples(samples.table.slice(start, 40)) for start in (0, 40)]
    starts = halves[1].response_starts
    tokens = np.array([starts[1] + 2, starts[2], starts[3] - 1])
    for index, half in enumerate(halves):
        number = index * len(tokens)
        found = TokenAlternatives(
            tokens[:number],
            np.tile(np.array([97, 98, 99, 100], np.int32), (number, 1)),
            np.log(np.tile(np.float32([0.5, 0.25, 0.125, 0.0625, 0.0625]), (number, 1))),
        )
        path = layout.alternatives_file(folder, index, 2)
        write_alternatives(path, half, found, samples.fingerprint)
    inspection = open_inspection(run_dir, decode)
    assert inspection is not None
    wanted = [("a", 0.5), ("b", 0.25), ("c", 0.125)]
    found_in = [inspection.sample(row, 4096)["expected"] for row in (0, 40, 41, 42)]
    last = int(inspection.lengths[42]) - 1
    assert [sorted(found) for found in found_in] == [[], [], [2], [0, last]]
    for (text, share), (name, p) in zip(found_in[2][2], wanted, strict=True):
        assert text == name
        assert abs(share - p) < 1e-3
