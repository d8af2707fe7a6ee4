"""Where a selection divides at each step of the page's slider, and what that finds of known noise.

Input: the quality of all response tokens. Output: the thresholds of `method.selection` for
every step of rho, and counts of tokens below them. The page compares qualities with these
thresholds; it does not know the rule behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forgetting.errors import InputError
from forgetting.method.selection import rho_thresholds
from forgetting.rundir.samples import Samples, list_column

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

UNKNOWN = -1
NUM_STEPS = 199
RHOS: npt.NDArray[np.float64] = np.arange(1, NUM_STEPS + 1) / (NUM_STEPS + 1)
"""The steps of the slider: 0.005 to 0.995."""


def step_of(rho: float) -> int:
    """The step nearest to a rho."""
    return int(np.abs(RHOS - rho).argmin())


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one group of tokens (all of them, or one source) at each step.

    A value below `positive` is not learned; one below `negative` is negative. Both have shape
    (NUM_STEPS,); infinity if no value is learned, or if all are negative.
    """

    positive: npt.NDArray[np.float64]
    negative: npt.NDArray[np.float64]

    @classmethod
    def of(cls, values: Floats, forget_rate: float | None) -> Thresholds:
        """Find the thresholds of some values, in any order."""
        return cls(*rho_thresholds(np.sort(values), RHOS, forget_rate))


@dataclass(frozen=True)
class NoiseCurve:
    """Tokens with known noise that are not learned at each step; shape (NUM_STEPS,)."""

    num_not_positive: Ints
    num_found: Ints
    """Noisy tokens among them."""

    @classmethod
    def of(cls, values: Floats, noisy: Bools, is_end: Bools, at: Thresholds) -> NoiseCurve:
        """Count tokens of one group whose noise is known.

        Args:
            values: what decides for each token, shape (tokens,).
            noisy: shape (tokens,).
            is_end: tokens that are learned where they would be negative, shape (tokens,).
            at: thresholds of the group.
        """

        def count(chosen: Bools) -> Ints:
            below = np.searchsorted(np.sort(values[chosen]), at.positive)
            return below - np.searchsorted(np.sort(values[chosen & is_end]), at.negative)

        return cls(count(np.ones(len(values), dtype=bool)), count(noisy))

    def __add__(self, other: NoiseCurve) -> NoiseCurve:
        return NoiseCurve(
            self.num_not_positive + other.num_not_positive, self.num_found + other.num_found
        )


def known_noise(samples: Samples) -> npt.NDArray[np.int8]:
    """Known noise of each response token, or UNKNOWN."""
    is_known = samples.table["noise"].is_valid().to_numpy()
    flags, starts = list_column(samples.table, "noise")
    if not np.array_equal(np.diff(starts)[is_known], samples.num_response_tokens[is_known]):
        raise InputError(
            "the samples of D_train do not have one noise mark per response token. Prepare the run "
            "again with `forgetting prepare`"
        )
    noise = np.full(len(samples.response_ids), UNKNOWN, dtype=np.int8)
    noise[np.repeat(is_known, samples.num_response_tokens)] = flags
    return noise


def decimals(values: npt.NDArray[Any]) -> list[float]:
    """The shortest decimals that are these numbers in float32."""
    return [float(str(value)) for value in values.astype(np.float32)]
