"""Losses of held-out samples: what was written is summed, other tokens are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.heldout_losses import (
    read_heldout_hits,
    read_heldout_losses,
    write_heldout,
)
from forgetting.rundir.samples import Samples

LABELS = [[-100, 4, 5, 6], [-100, -100, 7], [-100, 8, -100, 9]]
SAMPLES = Samples.from_lists([[3, 4, 5, 6], [3, 3, 7], [3, 8, 3, 9]], LABELS)
LOG_PROBS = np.array([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
IS_GREEDY = np.array([1, 0, 1, 1, 1, 0], bool)


def test_sums_are_those_of_weighted_losses(tmp_path):
    write_heldout(tmp_path, SAMPLES, LOG_PROBS, IS_GREEDY)
    weights = np.array([1.0, 0.5, 0.0, 0.25, 1.0, 0.5], np.float32)
    found = read_heldout_losses(tmp_path, SAMPLES, weights)
    assert found.tolist() == [1 + 1, 1, 5 + 3]
    plain = read_heldout_losses(tmp_path, SAMPLES, np.ones(6))
    assert plain.tolist() == [6, 4, 11]


def test_hits_are_weighted_and_summed(tmp_path):
    write_heldout(tmp_path, SAMPLES, LOG_PROBS, IS_GREEDY)
    weights = np.array([1.0, 0.5, 0.25, 0.5, 1.0, 0.5], np.float32)
    assert read_heldout_hits(tmp_path, SAMPLES, weights).tolist() == [1.25, 0.5, 1.0]


def test_a_loss_that_is_not_finite_stays_in_its_sample(tmp_path):
    write_heldout(tmp_path, SAMPLES, np.where(LOG_PROBS == -4, -np.inf, LOG_PROBS), IS_GREEDY)
    found = read_heldout_losses(tmp_path, SAMPLES, np.ones(6))
    assert math.isinf(found[1])
    assert (found[0], found[2]) == (6, 11)


def test_a_model_that_was_not_measured_has_none(tmp_path):
    assert read_heldout_losses(tmp_path, SAMPLES, np.ones(6)) is None
    assert read_heldout_hits(tmp_path, SAMPLES, np.ones(6)) is None


def test_other_tokens_and_damage_are_refused(tmp_path):
    write_heldout(tmp_path, SAMPLES, LOG_PROBS, IS_GREEDY)
    other = Samples.from_lists([[3, 4]], [[-100, 4]])
    with pytest.raises(InputError, match="belongs to other tokens"):
        read_heldout_losses(tmp_path, other, np.ones(1))
    layout.heldout_file(tmp_path).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"heldout\.parquet cannot be read"):
        read_heldout_losses(tmp_path, SAMPLES, np.ones(6))
