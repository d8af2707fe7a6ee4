"""Turns the log-odds of a classifier into probabilities that mean what they say.

Input: log-odds and the truth for tokens that the classifier has not seen. Output: calibrated
log-odds, and the table and error of a calibration. Knows nothing of classifiers or noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Calibration = tuple[float, float, float]
"""Weights of log s and -log(1 - s), and the offset; (1, 1, 0) changes nothing."""


def fit_calibration(
    log_odds: NDArray, bad: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> Calibration:
    """Beta calibration (Kull et al. 2017): logistic regression on log s and -log(1 - s).

    By Newton's method, with the smoothed targets of Platt (1999).
    Unmarked noise keeps the true posterior of planted noise well below 1, where scaling the
    log-odds alone cannot follow.

    Args:
        log_odds: of s, shape (tokens,), finite.
        bad: the truth, shape (tokens,).
        weights: how much each token counts, shape (tokens,); default: 1.

    Returns:
        Both weights are at least 0, so the order of tokens stays. They are 0 if the log-odds say
        nothing.
    """
    parts = _log_parts(log_odds)
    if weights is None:
        weights = np.ones(len(parts))
    num_bad, num_clean = float(weights[bad].sum()), float(weights[~bad].sum())
    high, low = (num_bad + 1) / (num_bad + 2), 1 / (num_clean + 2)
    target = np.where(bad, high, low)
    for used in ([0, 1], [0], [1], []):
        design = np.concatenate([parts[:, used], np.ones((len(parts), 1))], axis=1)
        beta = _logistic_regression(design, target, weights)
        if np.isfinite(beta).all() and (beta[:-1] >= 0).all():
            break
    fitted = np.zeros(3)
    fitted[[*used, 2]] = beta
    return float(fitted[0]), float(fitted[1]), float(fitted[2])


def calibrate(log_odds: NDArray, calibration: Calibration) -> NDArray[np.float64]:
    """Calibrated log-odds; shape (tokens,)."""
    return _log_parts(log_odds) @ np.array(calibration[:2]) + calibration[2]


def _log_parts(log_odds: NDArray) -> NDArray[np.float64]:
    """log s and -log(1 - s): shape (tokens, 2). Their sum is the log-odds."""
    x = np.asarray(log_odds, dtype=np.float64)
    return np.stack([-np.logaddexp(0, -x), np.logaddexp(0, x)], axis=1)


def _logistic_regression(design: NDArray, target: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Coefficients, from 0 on; steps are cut to 2, and a small ridge keeps them finite."""
    beta = np.zeros(design.shape[1])
    for _ in range(100):
        prob = sigmoid(design @ beta)
        weight = weights * np.maximum(prob * (1 - prob), 1e-9)
        hessian = design.T @ (design * weight[:, None]) + 1e-6 * np.eye(len(beta))
        step = np.linalg.solve(hessian, design.T @ (weights * (target - prob)) - 1e-6 * beta)
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return beta


def sigmoid(x: NDArray) -> NDArray:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(np.asarray(x) >= 0, 1 / (1 + small), small / (1 + small))


def calibration_table(
    posterior: NDArray,
    bad: NDArray[np.bool_],
    weights: NDArray[np.float64] | None = None,
    num_bins: int = 15,
) -> tuple[tuple[float, float, float], ...]:
    """(mean posterior, share of bad tokens, tokens) of each bin of equal width with tokens.

    With `weights`, shape (tokens,), a token counts as much as its weight.
    """
    if weights is None:
        weights = np.ones(len(posterior))
    bins = np.minimum((posterior * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, weights, minlength=num_bins)
    said = np.bincount(bins, posterior * weights, minlength=num_bins)
    true = np.bincount(bins, bad * weights, minlength=num_bins)
    return tuple(
        (float(said[i] / counts[i]), float(true[i] / counts[i]), float(counts[i]))
        for i in np.flatnonzero(counts)
    )


def calibration_error(table: Sequence[tuple[float, float, float]]) -> float:
    """Expected calibration error: mean distance of the two shares, weighted by tokens."""
    total = sum(count for _, _, count in table)
    return sum(abs(said - true) * count for said, true, count in table) / total if total else 0.0
