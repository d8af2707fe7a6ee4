"""What the views ask for: which samples are listed, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sort = Literal["worst", "best", "position", "bad", "span", "loss"]


@dataclass(frozen=True)
class Query:
    """Which samples are listed, in which order."""

    rho: float | None = None
    """Share of positive tokens, rounded to a step of the slider; None: as the run selected."""
    source: int | None = None
    """Index in `Inspection.sources`; None: all."""
    text: str = ""
    """Searched in messages and fields, ignoring case."""
    min_negative: float = 0.0
    """Minimum share of a sample's response tokens that is negative."""
    sort: Sort = "worst"
    """By mean quality, lowest or highest first; in the order of D_train
    or, without a selection, of the data; by mean loss under the
    base model; or, where the detector has run, by the expected number of bad tokens, or those of
    the worst span, highest first."""
    offset: int = 0
    limit: int = 50
    kind: int | None = None
    """Likely kind of noise, as an index in `Judgment.kinds`; None: all."""
    least: float | None = None
    """Only samples with a token whose posterior is at least this; None: all."""
    only: tuple[int, ...] | None = None
    """Identities of the samples that are listed; None: all."""
    without: tuple[int, ...] = ()
    """Identities of samples that are not listed."""
    row: int | None = None
    """If this row of D_train is listed, `offset` is that of its page."""
