"""Sections of a recipe about the method: which tokens to learn and to forget, and how."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError, core_schema

from forgetting.config.fields import (
    CorruptionNames,
    LossName,
    MeasureName,
    Positive,
    Section,
    Share,
    ShareOrAuto,
    TermName,
)
from forgetting.method.loss import Normalization
from forgetting.method.losses import DEFAULT_LOSS, LOSSES
from forgetting.method.measures import DEFAULT_MEASURE, DETECTOR, MEASURES
from forgetting.method.parameters import Parameter
from forgetting.method.schedule import ScheduleKind
from forgetting.method.selection import Granularity, Threshold
from forgetting.method.terms import DEFAULT_TERM, TERMS, declared_parameters, described


class SelectionSettings(Section):
    """Selection of the positive tokens (learned) and the negative ones (forgotten or ignored)."""

    rho: ShareOrAuto = 0.7
    """Share of positive tokens. `auto` uses the share of tokens with a quality above 0."""
    quality: MeasureName = DEFAULT_MEASURE
    """Measure of token quality. The paper uses `influence`. `detector` is 1 minus the probability
    that the token is bad, as the planted-noise detector sees it."""
    granularity: Granularity = "token"
    """Unit of selection: single tokens, or whole samples by their mean quality."""
    balance: Literal["none", "source"] = "none"
    """Population that rho and forget_rate are shares of: `none` for all of D_train, `source` for
    each source separately."""
    threshold: Threshold = "quantile"
    """Rule for positive tokens. `quantile`: the best `rho`. `zero`: quality above 0. `mixture`:
    estimated by fitting two components to the quality. `posterior`: by the probability that
    `quality: detector` gives."""
    posterior: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    """Probability of being bad from which `threshold: mixture` or `posterior` makes a token
    negative. Below 1/2 a token is positive, in between it is ignored. `null` uses 0.5 for
    `ignoring` and 0.9 for `forgetting`."""
    forget_rate: Share | None = None
    """Share of negative tokens; tokens between these and the positive ones are ignored. `null`
    makes all tokens negative that are not positive."""
    by: Literal["quality", "random", "known"] = "quality"
    """Basis of the selection. `random` is a control that selects as many tokens regardless of their
    quality. `known` is a ceiling: negative is the noise that the data marks, whatever `rho` and
    `quality` are."""
    keep_eos: bool = True
    """Whether end-of-sequence tokens are never negative. A model that unlearns them does not stop
    generating."""

    @property
    def negative_from(self) -> float:
        """`posterior` as a number: 0.9 if it is `null`."""
        return 0.9 if self.posterior is None else self.posterior

    @model_validator(mode="after")
    def _shares_fit(self) -> SelectionSettings:
        if (
            self.forget_rate is not None
            and isinstance(self.rho, float)
            and self.threshold == "quantile"
            and self.forget_rate > 1 - self.rho + 1e-9
        ):
            raise ValueError(
                f"forget_rate {self.forget_rate} is above 1 - rho = {1 - self.rho:g}: "
                "a token cannot be both learned and forgotten"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_measure(self) -> SelectionSettings:
        measure = MEASURES[self.quality]
        looks_at_zero = self.threshold == "zero" or (
            self.threshold == "quantile" and self.rho == "auto"
        )
        if looks_at_zero and not measure.has_zero:
            raise ValueError(
                f"0 does not divide good from bad tokens by quality {self.quality}, so threshold "
                "zero and rho auto do not apply to it. Set rho to a number"
            )
        if looks_at_zero and self.balance == "source":
            raise ValueError(
                "threshold zero and rho auto divide every source at 0, so there is nothing to "
                "balance. Set rho to a number, or balance to none"
            )
        if self.threshold == "mixture" and measure.is_stepped:
            raise ValueError(
                f"quality {self.quality} takes few distinct values, so threshold mixture finds no "
                "peaks in it. Set another quality"
            )
        is_detector = self.quality == DETECTOR
        if (self.threshold == "posterior" and not is_detector) or (
            self.threshold == "mixture" and is_detector
        ):
            raise ValueError(
                f"threshold {self.threshold} does not apply to quality {self.quality}. Set both: "
                "quality detector and threshold posterior"
            )
        if self.threshold in ("mixture", "posterior"):
            self._check_estimated()
        if self.by == "known":
            self._check_known()
        return self

    def _check_known(self) -> None:
        unread = {"threshold": "quantile", "granularity": "token", "balance": "none"}
        for field, default in {**unread, "forget_rate": None}.items():
            if getattr(self, field) != default:
                raise ValueError(
                    f"by known takes the noise that the data marks, so {field} "
                    f"{getattr(self, field)} has no effect. Remove it"
                )

    def _check_estimated(self) -> None:
        for field, unread in (("by", "quality"), ("balance", "none"), ("forget_rate", None)):
            if getattr(self, field) != unread:
                raise ValueError(
                    f"threshold {self.threshold} estimates how many tokens are negative, so "
                    f"{field} {getattr(self, field)} has no effect. Remove it"
                )


class DetectorSettings(Section):
    """The planted-noise detector. It runs if a variant uses its posterior."""

    copies: Positive | None = None
    """Number of copies of D_train records to plant noise into. `null` uses 40 % of the number of
    records, or in a small corpus twice that number up to 600; at least 200 and at most 2000."""
    corruptions: CorruptionNames = "all"  # type: ignore[assignment]
    """Kinds of noise to plant, as a list of names, or `all`."""
    alternatives: Positive = 32
    """Number of tokens that are kept as expected in the place of a bad one, for `objective:
    corrected`. All others are one more outcome."""
    prompt: Literal["empty", "other"] = "empty"
    """Prompt of the second pass of each model, which shows what a response owes to its own prompt.
    `empty`: the template around nothing. `other`: the prompt of another record of D_train."""
    reference: Literal["auto", "always", "never"] = "auto"
    """Whether the detector also looks through the reference model. `auto`: if a measure needs the
    reference model anyway."""


def _completed(
    title: str,
    own: Mapping[str, Parameter],
    given: Mapping[str, Any],
    known: Mapping[str, Parameter] = MappingProxyType({}),
) -> dict[str, float]:
    """All parameters of an entry of a registry: those that a section sets, else their defaults.

    Args:
        known: parameters of other entries, which the section may hold. They are checked, and not
            returned.

    Raises:
        ValidationError: a parameter is unknown or out of range, with its path.
    """
    values = {name: parameter.default for name, parameter in own.items()}
    errors: list[InitErrorDetails] = []
    for name, value in given.items():
        declared = own.get(name) or known.get(name)
        if declared is None:
            errors.append({"type": "extra_forbidden", "loc": (name,), "input": value})
            continue
        try:
            number = declared.check(value)
        except ValueError as error:
            custom = PydanticCustomError("parameter", str(error))
            errors.append({"type": custom, "loc": (name,), "input": value})
        else:
            if name in own:
                values[name] = number
    if errors:
        raise ValidationError.from_exception_data(title, errors)
    return values


def _with_parameters(
    schema: dict[str, Any], after: str, declared: Mapping[str, tuple[Parameter, str]]
) -> dict[str, Any]:
    """A section's JSON schema with the parameters of all entries after one of its fields."""
    bounds = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum"}
    properties: dict[str, Any] = {}
    for name, field in schema["properties"].items():
        properties[name] = field
        if name == after:
            for parameter, (own, description) in declared.items():
                limits = {key: getattr(own, given) for given, key in bounds.items()}
                properties[parameter] = {
                    "type": "number",
                    "default": own.default,
                    "description": description,
                    **{key: limit for key, limit in limits.items() if limit is not None},
                }
    return {**schema, "properties": properties, "additionalProperties": False}


class LossSettings(Section):
    """Loss of the tokens that are learned. A name is short for `{name: NAME}`.

    The parameters of a loss are fields as well: as `LOSSES` declares them, built in or registered.
    """

    model_config = ConfigDict(extra="allow")

    name: LossName = DEFAULT_LOSS
    """Value to minimize on positive tokens. `dft`, `deft` and `eaft` weigh tokens by the
    prediction. In each step, `truncation` drops the samples with the highest loss, and `rho1` the
    tokens with the lowest excess loss over the reference model. Both take an extra forward
    pass."""

    @classmethod
    def field_names(cls) -> list[str]:
        """Names of the fields that a recipe may set, with the parameters of all losses."""
        return [*cls.model_fields, *dict.fromkeys(n for e in LOSSES.values() for n in e.parameters)]

    @property
    def parameters(self) -> dict[str, float]:
        """All parameters of the loss."""
        return dict(self.__pydantic_extra__ or {})

    def trainer_arguments(self) -> dict[str, Any]:
        """These settings as arguments of `ForgettingConfig`."""
        return {"loss": self.name, "loss_parameters": self.parameters}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler.resolve_ref_schema(handler(schema))
        declared: dict[str, tuple[Parameter, str]] = {}
        for loss in LOSSES.values():
            for name, own in loss.parameters.items():
                owners = [other.name for other in LOSSES.values() if name in other.parameters]
                declared.setdefault(name, (own, f"{own.help} For {', '.join(owners)}."))
        found.update(_with_parameters(found, "name", declared))
        return found

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _complete_the_parameters(self) -> LossSettings:
        extra = self.__pydantic_extra__
        assert extra is not None
        own = LOSSES[self.name].parameters
        errors: list[InitErrorDetails] = []
        for name in set(self.field_names()).intersection(extra).difference(own):
            message = f"loss {self.name} does not have it. It has {', '.join(own) or 'none'}"
            errors.append(
                {
                    "type": PydanticCustomError("parameter", "{reason}", {"reason": message}),
                    "loc": (name,),
                    "input": extra[name],
                }
            )
        if errors:
            raise ValidationError.from_exception_data(type(self).__name__, errors)
        values = _completed(type(self).__name__, own, extra)
        extra.clear()
        extra.update(values)
        return self


class ForgettingSettings(Section):
    """Unlearning of negative tokens (equation 8, Algorithm 1).

    The parameters of a `term` are fields as well: as `TERMS` declares them, built in or registered.
    """

    model_config = ConfigDict(extra="allow")

    schedule: ScheduleKind = "linear"
    """Schedule of lambda over the optimizer steps. The paper uses `linear`, which starts at 0."""
    t_min: Annotated[float, Field(ge=0)] = 1e-4
    """Lower end of lambda's range."""
    t_max: Annotated[float, Field(ge=0)] = 0.25
    """Upper end of lambda's range. `constant` uses it from the first step."""
    term: TermName = DEFAULT_TERM
    """Value to minimize on negative tokens. The paper uses `ga` (gradient ascent)."""
    floor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability below which a token is no longer unlearned. `null` sets no limit, as in the
    paper."""
    normalization: Normalization = "group"
    """Divisor of the two sums of the loss. `group`: the size of each set, as in the paper. `token`:
    the number of all response tokens for both."""
    divergence_ratio: Annotated[float, Field(gt=1)] | None = 10.0
    """Stop training when the positive loss of a step exceeds this multiple of the median of the
    first ten."""

    @classmethod
    def field_names(cls) -> list[str]:
        """Names of the fields that a recipe may set, with the parameters of all terms."""
        return [*cls.model_fields, *declared_parameters()]

    @property
    def term_parameters(self) -> dict[str, float]:
        """All parameters of the term."""
        return dict(self.__pydantic_extra__ or {})

    def trainer_arguments(self) -> dict[str, Any]:
        """These settings as arguments of `ForgettingConfig`."""
        own = self.model_dump(include=set(type(self).model_fields))
        return {**own, "term_parameters": self.term_parameters}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler.resolve_ref_schema(handler(schema))
        declared = {name: (own, described(name)) for name, own in declared_parameters().items()}
        found.update(_with_parameters(found, "term", declared))
        return found

    @model_validator(mode="after")
    def _ordered(self) -> ForgettingSettings:
        if self.t_min > self.t_max:
            raise ValueError(f"t_min {self.t_min} is above t_max {self.t_max}")
        if TERMS[self.term].is_per_sample and self.normalization == "token":
            raise ValueError(
                f"term {self.term} has one value per sample: set normalization to group"
            )
        return self

    @model_validator(mode="after")
    def _complete_the_parameters(self) -> ForgettingSettings:
        """Keep the parameters of the term, with defaults; check those of other terms, which
        variants may inherit."""
        extra = self.__pydantic_extra__
        assert extra is not None
        own = TERMS[self.term].parameters
        known = {} if own.keys() >= extra.keys() else declared_parameters()
        values = _completed(type(self).__name__, own, extra, known)
        extra.clear()
        extra.update(values)
        return self
