"""Lambda over a training run: how strongly each optimizer step unlearns.

Algorithm 1 of arXiv 2508.04329 and its relatives. Pure Python; knows nothing of losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

ScheduleKind = Literal["linear", "linear_from_t_min", "constant", "cosine"]


@dataclass(frozen=True)
class LambdaSchedule:
    """Weight lambda of unlearning at each optimizer step; `step` counts from 0.

    * `linear` (Algorithm 1 of the paper): `(t_max - t_min) * step / total_steps`, starts at 0
    * `linear_from_t_min`: `t_min + (t_max - t_min) * step / total_steps`
    * `cosine`: `t_min + (t_max - t_min) * (1 - cos(pi * step / total_steps)) / 2`
    * `constant`: `t_max` at every step

    Args:
        kind: default `linear`, as in the paper.
        t_min: default 1e-4, as in the paper.
        t_max: default 0.25, as in the paper.

    Raises:
        ValueError: the kind is unknown, or `0 <= t_min <= t_max < infinity` does not hold.
    """

    kind: ScheduleKind = "linear"
    t_min: float = 1e-4
    t_max: float = 0.25

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise ValueError(f"unknown schedule {self.kind!r}; one of {get_args(ScheduleKind)}")
        if not 0 <= self.t_min <= self.t_max < math.inf:
            raise ValueError(
                f"a schedule needs 0 <= t_min <= t_max, got t_min {self.t_min}, t_max {self.t_max}"
            )

    def __call__(self, step: int, total_steps: int) -> float:
        """Lambda at optimizer step `step` of `total_steps`; later steps keep the last value."""
        progress = min(step / total_steps, 1.0) if total_steps > 0 else 0.0
        span = self.t_max - self.t_min
        if self.kind == "linear":
            return span * progress
        if self.kind == "linear_from_t_min":
            return self.t_min + span * progress
        if self.kind == "cosine":
            return self.t_min + span * (1 - math.cos(math.pi * progress)) / 2
        return self.t_max
