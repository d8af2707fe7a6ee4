"""Building blocks of the recipe's sections: their base class and the types of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import core_schema

from forgetting.formats import FORMATS
from forgetting.method.corruptions import CORRUPTIONS
from forgetting.method.losses import LOSSES
from forgetting.method.measures import MEASURES
from forgetting.method.terms import TERMS
from forgetting.registry import Registry


class Section(BaseModel):
    """A part of a recipe: unknown fields are errors, and values cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def field_names(cls) -> list[str]:
        """Names of the fields that a recipe may set."""
        return list(cls.model_fields)


@dataclass(frozen=True)
class NameIn:
    """Validates a string as a name in a registry, at the time of validation."""

    registry: Registry[Any]
    others: tuple[str, ...] = ()
    """Names allowed in addition, listed first."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        del schema, handler
        return {"type": "string", "enum": [*self.others, *self.registry]}

    def _check(self, name: str) -> str:
        if name not in self.others:
            if name not in self.registry:
                raise ValueError(self.registry.unknown(name))
            # A package that declares the name and is broken is reported here, not hours later.
            self.registry[name]
        return name


def _share_or_auto(value: Any) -> Any:
    """One message instead of one for each half of the union."""
    try:
        good = value == "auto" or 0 < float(value) < 1
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError("must be a number strictly between 0 and 1, or `auto`")
    return value if value == "auto" else float(value)


def _number_or_share(value: Any) -> Any:
    """One message instead of one for each half of the union."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (value >= 1 and value == int(value))):
        raise ValueError("must be a whole number above 0, or a share between 0 and 1")
    return int(value) if value >= 1 else float(value)


def _every_corruption(value: Any) -> Any:
    """`all` as the names that are known when the recipe is read."""
    return list(CORRUPTIONS) if value == "all" else value


Share = Annotated[float, Field(gt=0, lt=1)]
ShareOrAuto = Annotated[float | Literal["auto"], BeforeValidator(_share_or_auto)]
Positive = Annotated[int, Field(gt=0)]
ItemLimit = Annotated[int | float, BeforeValidator(_number_or_share)]
"""A number of items of a task, or a share of them."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
"""A name that becomes a folder of the run directory, so it must not lead out of it."""
MeasureName = Annotated[str, NameIn(MEASURES)]
CorruptionName = Annotated[str, NameIn(CORRUPTIONS)]
CorruptionNames = Annotated[
    list[CorruptionName],
    Field(min_length=1, validate_default=True),
    BeforeValidator(_every_corruption),
]
LossName = Annotated[str, NameIn(LOSSES)]
TermName = Annotated[str, NameIn(TERMS)]
FormatName = Annotated[str, NameIn(FORMATS, ("auto",))]
