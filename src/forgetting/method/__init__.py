"""The mathematics of the choice: log-probabilities to quality, quality to polarity.

`quality` measures tokens, `choice` divides them into those to learn, to forget and to ignore,
`order` finds the exact value at which to cut in bounded memory, `summary` counts what came out.
Nothing here knows of models, of texts or of files.
"""

from forgetting.method.measures import MEASURES, QualityName, token_quality
from forgetting.method.selection import (
    Granularity,
    Threshold,
    select_tokens,
    share_above_zero,
)

__all__ = [
    "MEASURES",
    "Granularity",
    "QualityName",
    "Threshold",
    "select_tokens",
    "share_above_zero",
    "token_quality",
]
