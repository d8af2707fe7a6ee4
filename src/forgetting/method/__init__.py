"""The mathematics: scores to quality, quality to polarity, polarity to the loss of a step.

`measures` rates tokens, `selection` decides which to learn, forget and ignore, `loss` and `terms`
define the objective, `schedule` its lambda. `quantile` finds an exact threshold in bounded memory,
`mixture` fits two components, `tally` and `metrics` count results. Needs torch and numpy only.
Knows nothing of models, texts, files or settings.
"""

from forgetting.method.measures import MEASURES, token_quality
from forgetting.method.selection import (
    Granularity,
    Threshold,
    select_tokens,
    share_above_zero,
)

__all__ = [
    "MEASURES",
    "Granularity",
    "Threshold",
    "select_tokens",
    "share_above_zero",
    "token_quality",
]
