"""What sections of a recipe inherit from each other, and what is their own.

`reference` inherits the fields of `training`, and each variant the recipe's `selection` and
`forgetting`. Every section of a `Recipe` is complete. The fields that a section was given itself
are its `model_fields_set`, so a saved recipe can leave out what is inherited: an override of
`selection.rho` then reaches the same variants as in the recipe that was saved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from forgetting.method.terms import TERMS

# A merged reference would be a second copy of the base model's weights.
NOT_SHARED = frozenset({"merge"})
OF_VARIANTS = ("selection", "forgetting")
"""The sections that variants inherit."""


def inherit_reference(recipe: Mapping[str, Any]) -> Any:
    """The section `reference` with the fields of `training` that it does not set."""
    training, own = recipe.get("training"), recipe.get("reference", {})
    if not isinstance(training, Mapping) or not isinstance(own, Mapping):
        return own
    shared = {field: value for field, value in training.items() if field not in NOT_SHARED}
    return {**shared, **own}


def inherit_variant(
    name: Any, variant: Any, recipe: Mapping[str, Any], objectives: Collection[str]
) -> Any:
    """A variant with the fields that it does not set; its name may be its objective."""
    variant = {} if variant is None else variant
    if not isinstance(variant, Mapping):
        return variant
    merged = {"objective": name, **variant} if name in objectives else dict(variant)
    for section in OF_VARIANTS:
        outer, own = recipe.get(section, {}), merged.get(section, {})
        if isinstance(outer, Mapping) and isinstance(own, Mapping):
            merged[section] = {**outer, **own}
    return merged


def note_own_fields(recipe: Any, given: Mapping[str, Any]) -> None:
    """Reduce the `model_fields_set` of inheriting sections to the fields that they were given.

    Args:
        recipe: a `Recipe`, as validated.
        given: the recipe as it was written.
    """
    own = given.get("reference", {})
    if isinstance(own, Mapping):
        recipe.reference.model_fields_set.intersection_update(own)
    variants = given.get("variants")
    for name, variant in recipe.variants.items():
        written = variants.get(name) if isinstance(variants, Mapping) else {}
        if written is not None and not isinstance(written, Mapping):
            continue
        for section in OF_VARIANTS:
            own = (written or {}).get(section, {})
            if isinstance(own, Mapping):
                getattr(variant, section).model_fields_set.intersection_update(own)


def without_inherited(recipe: Any) -> dict[str, Any]:
    """The recipe as JSON values, complete but for what sections inherit from others of it.

    Args:
        recipe: a `Recipe`.
    """
    whole: dict[str, Any] = recipe.model_dump(mode="json")
    shared = {name: v for name, v in whole["training"].items() if name not in NOT_SHARED}
    whole["reference"] = _own(whole["reference"], shared, recipe.reference.model_fields_set)
    for variant_name, variant in recipe.variants.items():
        written = whole["variants"][variant_name]
        for section in OF_VARIANTS:
            outer = whole[section]
            if section == "forgetting":
                # Parameters that the variant's term has and the section's term does not.
                parameters = TERMS[variant.forgetting.term].parameters
                outer = {**{name: p.default for name, p in parameters.items()}, **outer}
            own = getattr(variant, section).model_fields_set
            written[section] = _own(written[section], outer, own)
            if not written[section]:
                del written[section]
    return whole


def _own(inner: dict[str, Any], outer: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """The fields of a section that it was given, or that differ from what it would inherit."""
    return {
        name: value
        for name, value in inner.items()
        if name in own or name not in outer or value != outer[name]
    }
