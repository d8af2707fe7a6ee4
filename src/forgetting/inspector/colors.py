"""How a quality becomes a color.

Input: a quality. Output: its share of the color scale. Knows nothing of HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from forgetting.inspector.thresholds import Floats

COLOR_LEVELS = 10
CLIP = (0.02, 0.98)


@dataclass(frozen=True)
class Scale:
    """The ends and the middle of the color scale, in units of quality."""

    low: float
    center: float
    high: float

    @classmethod
    def of(cls, quality: Floats, *, has_zero: bool) -> Scale:
        """The scale of some qualities.

        Args:
            has_zero: whether 0 divides good from bad tokens. If not, the quality has no natural
                middle, and the median is taken.
        """
        if not len(quality):
            return cls(0.0, 0.0, 0.0)
        low, high = (float(q) for q in np.quantile(quality, CLIP))
        center = 0.0 if has_zero else float(np.median(quality))
        return cls(min(low, center), center, max(high, center))

    def share(self, quality: float) -> float:
        """-1 (at `low` or below) to 1 (at `high` or above), 0 in the middle.

        The square root of the distance, because most tokens are near the middle of a long range.
        """
        distance = quality - self.center
        end = self.high - self.center if distance > 0 else self.center - self.low
        share = min(abs(distance) / end, 1.0) if end > 0 else float(distance != 0)
        return math.copysign(math.sqrt(share), distance)
