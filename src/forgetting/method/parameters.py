"""A number that an entry of a registry depends on: its default, its range and its meaning.

Terms and losses declare their parameters with it; recipes and trainer settings take them from
there. Pure Python; knows nothing of what the numbers do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """A number that a term or a loss depends on: its default, its range and its meaning."""

    default: float
    help: str = ""
    """Noun phrase that stands alone."""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    def check(self, value: Any) -> float:
        """The value as a number.

        Raises:
            ValueError: it is no finite number, or outside the range.
        """
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError("must be a finite number")
        if self.at_least is not None and number < self.at_least:
            raise ValueError(f"must be at least {self.at_least:g}")
        if self.above is not None and number <= self.above:
            raise ValueError(f"must be above {self.above:g}")
        if self.at_most is not None and number > self.at_most:
            raise ValueError(f"must be at most {self.at_most:g}")
        return number


def complete(what: str, own: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, float]:
    """All parameters of an entry: the given ones, and the defaults of the others.

    Args:
        what: the entry for messages, such as "the loss dft".
        own: as the entry declares them.

    Raises:
        ValueError: a parameter is unknown or outside its range; the message names it.
    """
    values = {name: parameter.default for name, parameter in own.items()}
    for name, value in given.items():
        if name not in own:
            known = ", ".join(own) or "none"
            raise ValueError(f"{what} has no parameter {name!r}. Its parameters: {known}")
        try:
            values[name] = own[name].check(value)
        except ValueError as error:
            raise ValueError(f"parameter {name} of {what} {error}, got {value}") from error
    return values
