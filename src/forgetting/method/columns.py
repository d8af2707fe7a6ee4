"""Names of the numbers that are stored for each response token of a corpus.

A score column is `<pass>_<statistic>`, such as `base_empty_log_probs`: what a forward pass says
about the token. One more column, `posterior`, comes from the detector. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Collection

PASSES = ("base", "base_empty", "reference", "reference_empty")
"""Forward passes: a model with the sample's own prompt, or with an empty one (or that of another
record, by `detector.prompt`)."""
STATISTICS = (
    "log_probs",
    "entropy",
    "surprise_std",
    "best_other_log_prob",
    "rank",
    "sum_squares",
)
"""What a pass says about each token; `models.token_statistics` has the formulas."""
POSTERIOR = "posterior"
"""The detector's probability that a token is bad; 0 everywhere if nothing was found."""
CORRECTED_FROM = 0.05
"""Posterior from which `objective: corrected` corrects a token; below, it is learned as it is."""
_PARTS = {f"{name}_{statistic}": (name, statistic) for name in PASSES for statistic in STATISTICS}
SCORE_COLUMNS = tuple(_PARTS)
"""Columns that scoring can write."""
COLUMNS = (*SCORE_COLUMNS, POSTERIOR)
"""What a measure of quality may ask for."""


def split_column(column: str) -> tuple[str, str]:
    """The pass and the statistic of a score column.

    Raises:
        KeyError: there is no such column.
    """
    return _PARTS[column]


def columns_of(passes: Collection[str]) -> list[str]:
    """All columns of some passes, in the order of `SCORE_COLUMNS`."""
    return [column for column, (name, _) in _PARTS.items() if name in passes]


def of_reference(column: str) -> bool:
    """Whether a column needs the reference model."""
    return column in _PARTS and _PARTS[column][0].startswith("reference")
