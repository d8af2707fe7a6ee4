"""Qualities that say nothing: thresholds that many tokens share.

Input: a division of tokens or samples by their quality. Output: a warning, or an error.
"""

from __future__ import annotations

from forgetting.console import logger
from forgetting.errors import InputError
from forgetting.method.selection import Division

MAX_TIED = 0.01
"""Largest share that a threshold may divide by the order in the data without a warning."""


def check_ties(division: Division, what: str) -> None:
    """Warn of a threshold that many share; refuse it if all do.

    Args:
        what: is divided, in the plural.

    Raises:
        InputError: all have the same quality.
    """
    total = division.num_values
    if division.is_flat:
        raise InputError(
            f"selection: all {total:,} {what} have the same quality, so nothing says which of them "
            "are bad. Set another selection.quality, or train the reference for more steps"
        )
    if division.num_tied > MAX_TIED * total:
        logger.warning(
            "%.1f %% of the %s have exactly the quality of a threshold. Which of them are learned "
            "is decided by their order in the data",
            100 * division.num_tied / total,
            what,
        )
