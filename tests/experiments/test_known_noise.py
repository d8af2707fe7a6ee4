"""What is true of samples whose noise is known, by hand."""

from __future__ import annotations

import numpy as np

from experiments.known_noise import KnownNoise, describe_negatives


def test_negatives_are_counted_against_the_noise():
    polarity = np.array([-1, -1, -1, 0, 1, 1, 1, -1], np.int8)
    noisy = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool)
    kinds = np.array(["a", "b", "", "b", "a", "a", "", ""])
    found = describe_negatives(polarity, KnownNoise(None, noisy, kinds))
    assert found.share == 4 / 8
    assert found.share_ignored == 1 / 8
    assert found.precision == 2 / 4
    assert found.recall == 2 / 4
    assert found.recall_by_kind == {"a": 1 / 2, "b": 1 / 2}
    clean = KnownNoise(None, np.zeros(8, bool), kinds)
    none = describe_negatives(np.ones(8, np.int8), clean)
    assert (none.precision, none.recall, none.recall_by_kind) == (None, None, {})
