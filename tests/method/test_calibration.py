"""Calibration against probabilities that are known."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.method.calibration import (
    calibrate,
    calibration_error,
    calibration_table,
    fit_calibration,
    sigmoid,
)


def test_calibration_recovers_a_plateau() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60_000) * 3
    true = 0.6 * sigmoid(x)
    bad = rng.random(len(x)) < true
    found = sigmoid(calibrate(x, fit_calibration(x, bad)))
    assert np.abs(found - true).mean() < 0.02


def test_calibration_recovers_slope_and_offset() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40_000) * 3
    bad = rng.random(len(x)) < sigmoid(0.5 * x - 1.0)
    of_s, of_rest, offset = fit_calibration(x, bad)
    assert of_s == pytest.approx(0.5, abs=0.05)
    assert of_rest == pytest.approx(0.5, abs=0.05)
    assert offset == pytest.approx(-1.0, abs=0.1)
    np.testing.assert_allclose(calibrate(x, (1.0, 1.0, 0.0)), x, atol=1e-12)


@pytest.mark.parametrize("bad", [np.zeros(10, bool), np.ones(10, bool), np.arange(10) < 5])
def test_calibration_of_what_says_nothing_is_finite(bad: np.ndarray) -> None:
    for x in (np.zeros(10), np.arange(10.0), -np.arange(10.0) * 100):
        found = fit_calibration(x, bad)
        assert found[0] >= 0
        assert found[1] >= 0
        assert np.isfinite(calibrate(x, found)).all()


def test_calibration_error_against_a_loop() -> None:
    rng = np.random.default_rng(1)
    posterior = np.r_[rng.random(500), 0.0, 1.0]
    bad = rng.random(502) < posterior**2
    expected = 0.0
    for bin_ in range(15):
        inside = (np.minimum((posterior * 15).astype(int), 14)) == bin_
        if inside.any():
            expected += abs(posterior[inside].mean() - bad[inside].mean()) * inside.sum() / 502
    assert calibration_error(calibration_table(posterior, bad)) == pytest.approx(expected)
    assert calibration_error(()) == 0.0


def test_a_weight_counts_like_as_many_copies_of_a_token() -> None:
    rng = np.random.default_rng(3)
    log_odds = rng.normal(size=300) * 2
    bad = rng.random(300) < 1 / (1 + np.exp(-log_odds))
    weights = rng.integers(0, 4, 300)
    repeated = np.repeat(log_odds, weights), np.repeat(bad, weights)
    np.testing.assert_allclose(
        fit_calibration(log_odds, bad, weights.astype(float)),
        fit_calibration(*repeated),
        rtol=1e-6,
        atol=1e-8,
    )
    posterior = sigmoid(log_odds)
    np.testing.assert_allclose(
        calibration_table(posterior, bad, weights.astype(float)),
        calibration_table(sigmoid(repeated[0]), repeated[1]),
    )
