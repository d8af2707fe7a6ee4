"""Section of a recipe about one variant: what is learned of which tokens, in which order."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from forgetting.config.fields import Section
from forgetting.config.unlearning import ForgettingSettings, LossSettings, SelectionSettings
from forgetting.method.columns import POSTERIOR
from forgetting.method.losses import LOSSES
from forgetting.method.measures import MEASURES
from forgetting.method.terms import TERMS

Objective = Literal["full", "ignoring", "forgetting", "weighted", "corrected"]
BY_POSTERIOR = ("weighted", "corrected")
"""The objectives that weigh tokens by the detector's posterior."""
CAUTION = 4.0
"""Default of `VariantSettings.caution`."""
# From which probability of being bad on a token is negative.
_POSTERIORS = {"ignoring": 0.5}
_POSTERIOR = 0.9
_BASE, _REFERENCE = "base_log_probs", "reference_log_probs"
# The selection of tokens by rounds, apart from rho, quality and keep_eos.
_FIXED = {
    "by": "quality",
    "threshold": "quantile",
    "granularity": "token",
    "balance": "none",
    "forget_rate": None,
}


class VariantSettings(Section):
    """One fine-tuned model of the comparison."""

    objective: Objective
    """Treatment of bad tokens. `full` learns all tokens, `ignoring` skips the negative ones,
    `forgetting` unlearns them. `weighted` learns each token with less weight the likelier it is
    bad, by the detector. `corrected` gives that probability to the tokens that the reference model
    (without one: the base model) expects there. If the detector finds nothing, both are `full`."""
    caution: Annotated[float, Field(gt=0)] = CAUTION
    """k in the weight (1 - c) / (1 - c + k c) of `weighted`, where c is the probability that a
    token is bad. 1: the weight is 1 - c. The default is higher because a bad token that is learned
    does more harm than a good one that is not, and the share of bad tokens is often estimated too
    low."""
    loss: LossSettings = LossSettings()
    """Loss of the tokens that are learned. `loss: dft` is short for `loss: {name: dft}`."""
    rounds: Annotated[int, Field(ge=2)] | None = None
    """Number of equal parts of D_train to learn one after the other, for `ignoring`. The first is
    learned whole; of each other, the best `rho` of its tokens under the model of the parts before
    it. Each part has its own `training.epochs`, optimizer and learning rate schedule. `null` learns
    D_train at once, selected with the reference model."""
    selection: SelectionSettings = SelectionSettings()
    """Selection of tokens. Fields default to those of the recipe's `selection`."""
    forgetting: ForgettingSettings = ForgettingSettings()
    """Unlearning. Fields default to those of the recipe's `forgetting`."""

    @property
    def selects(self) -> bool:
        """Whether it divides the tokens into positive and negative ones."""
        return self.objective in ("ignoring", "forgetting")

    @property
    def needs_posterior(self) -> bool:
        """Whether it needs the detector's posterior of each token."""
        measure = MEASURES[self.selection.quality]
        uses = self.selects and POSTERIOR in measure.columns
        return self.objective in BY_POSTERIOR or uses

    @property
    def needs_base(self) -> bool:
        """Whether its term compares with the base model's log-probabilities."""
        return self.objective == "forgetting" and TERMS[self.forgetting.term].needs_base

    @property
    def needs_reference(self) -> bool:
        """Whether its loss compares with the reference model's log-probabilities."""
        ranking = LOSSES[self.loss.name].ranking
        return ranking is not None and ranking.needs_reference

    @property
    def score_columns(self) -> set[str]:
        """Names of the score columns that its measure, term and loss need."""
        if self.rounds:
            # Its own reference is scored part by part.
            return {_BASE}
        needed = set(MEASURES[self.selection.quality].columns) if self.selects else set()
        if self.needs_base:
            needed.add(_BASE)
        if self.needs_reference:
            needed.add(_REFERENCE)
        return needed

    @property
    def selection_in_effect(self) -> SelectionSettings:
        """The selection with `posterior` as a number."""
        if self.selection.posterior is not None:
            return self.selection
        posterior = _POSTERIORS.get(self.objective, _POSTERIOR)
        return self.selection.model_copy(update={"posterior": posterior})

    @model_validator(mode="after")
    def _caution_fits(self) -> VariantSettings:
        if self.objective != "weighted" and self.caution != CAUTION:
            raise ValueError(
                f"caution is for objective weighted; objective {self.objective} does not use it. "
                f"Remove it, or set it to {CAUTION:g}"
            )
        return self

    @model_validator(mode="after")
    def _rounds_fit(self) -> VariantSettings:
        if self.rounds is None:
            return self
        if self.objective != "ignoring":
            raise ValueError(
                f"rounds selects the tokens to learn, which objective {self.objective} does not "
                "do. Set objective to ignoring, or remove rounds"
            )
        own = self.selection
        for field, needed in _FIXED.items():
            if getattr(own, field) != needed:
                raise ValueError(
                    f"rounds learns the best rho of the tokens of each part, so selection.{field} "
                    f"{getattr(own, field)} does not apply. Remove it, or remove rounds"
                )
        if own.rho == "auto":
            raise ValueError("rounds needs a share of tokens. Set selection.rho to a number")
        columns = MEASURES[own.quality].columns
        if _REFERENCE not in columns or not {_BASE, _REFERENCE}.issuperset(columns):
            raise ValueError(
                "rounds compares the log-probabilities of the model with those of the base, which "
                f"selection.quality {own.quality} does not. Set it to influence"
            )
        if self.needs_reference:
            raise ValueError(
                f"rounds trains no reference model, which loss {self.loss.name} needs. Set another "
                "loss, or remove rounds"
            )
        return self
