"""What is shown of a corpus next to its tokens: how they are divided, and what the detector found.

Input: the summary of a selection, or the detector's posterior. Output: the facts that the views
need. Knows nothing of the corpus itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forgetting.inspector.thresholds import Floats, Ints
from forgetting.method.measures import DETECTOR, MEASURES, Measure
from forgetting.rundir.selections import SelectionSummary

Explain = Callable[[int, Sequence[int]], list[list[tuple[str, float]]]]
"""Given a row of D_train and places of tokens in its response: for each token, the features that
speak most for it being bad, with what each adds to the log-odds."""


@dataclass(frozen=True)
class ShownRun:
    """What is said of the run."""

    name: str
    fingerprint: str
    """Fingerprint of D_train."""
    model: str
    """The model that judged, for people; empty if it is not known."""


@dataclass(frozen=True)
class ShownSelection:
    """How the tokens are divided: by the selection of a variant, or by the detector alone."""

    variant: str | None
    """None: a token is negative if the detector gives it a probability of being bad of at least
    0.5."""
    quality: str
    """Name of the measure."""
    measure: Measure
    rho: float
    """Share of tokens that are learned."""
    granularity: str
    balance: str
    forget_rate: float | None
    end_token_ids: Sequence[int]
    """Tokens that are never negative."""

    @classmethod
    def of_variant(cls, selection: SelectionSummary) -> ShownSelection:
        """As a variant selected."""
        return cls(
            selection.variant,
            selection.quality,
            selection.measure,
            selection.rho,
            selection.granularity,
            selection.balance,
            selection.forget_rate,
            selection.end_token_ids,
        )

    @classmethod
    def of_detector(cls, share_good: float) -> ShownSelection:
        """As the detector judged. The end of a response may be what is bad."""
        measure = MEASURES[DETECTOR]
        return cls(None, DETECTOR, measure, share_good, "token", "none", None, ())


@dataclass(frozen=True)
class Judgment:
    """What the detector found."""

    found: bool
    """If not, every posterior is 0, unless it is suspected."""
    verdict: str
    kinds: Sequence[str]
    """What is wrong with a token of each kind, for people."""
    posterior: Floats
    """Probability that a token is bad, shape (response tokens,)."""
    kind: Ints
    """Place in `kinds` of the kind that a token is if it is bad, or -1; the same shape."""
    share_of_samples: float | None = None
    """Estimated share of samples with a token that is probably bad; None if nothing was found."""
    suspected: bool = False
    """Whether the posterior is that of a guessed share of bad tokens, for want of findings."""

    @property
    def is_shown(self) -> bool:
        """Whether the posterior says something."""
        return self.found or self.suspected

    @property
    def words(self) -> str:
        """The verdict, for a page that begins with it."""
        if self.share_of_samples is None:
            return self.verdict
        share = f"{100 * self.share_of_samples:.1f}%"
        return f"{self.verdict} {share} of the records hold a token that is probably bad."
