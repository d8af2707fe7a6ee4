"""`--set SECTION.FIELD=VALUE`: puts the value into a recipe, and refuses what has no effect.

Input: the fields of a recipe as they were written, and an override. An override that no part of the
recipe reads is an error: else a sweep would compare models that are all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from forgetting.config.inheritance import OF_VARIANTS
from forgetting.config.schema import (
    DEFAULT_VARIANTS,
    Recipe,
    ReferenceSettings,
    TrainingSettings,
)
from forgetting.config.variants import VariantSettings
from forgetting.config.yaml_text import NOT_YAML, parse_yaml
from forgetting.errors import InputError
from forgetting.method.terms import declared_parameters

# Sections that may be written as a string, which is this field of them.
_SHORT = {"loss": "name", "tasks": "task"}
_VERBS = {"selection": "selects", "forgetting": "unlearns"}
"""What a variant that uses a section does to tokens."""
# Fields that say which reference model there is, and not how it is trained.
_KINDS = frozenset(ReferenceSettings.model_fields) - frozenset(TrainingSettings.model_fields)


def apply_override(given: dict[str, Any], override: str) -> None:
    """Set a field of a recipe as it was written.

    Raises:
        InputError: the override is malformed, or there is no such field.
    """
    keys, equals, text = override.partition("=")
    parts = keys.split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {override}: expected section.field=value")
    try:
        value = parse_yaml(text)
    except NOT_YAML as error:
        raise InputError(f"--set {override}: the value is not YAML") from error
    node: Any = given
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise InputError(f"--set {override}: {part!r} is not an item of the list")
            part_key: Any = int(part)
            if not last and isinstance(node[part_key], str) and parts[depth - 1] in _SHORT:
                node[part_key] = {_SHORT[parts[depth - 1]]: node[part_key]}
        elif isinstance(node, dict):
            part_key = part
            if not last and isinstance(node.get(part), str) and part in _SHORT:
                node[part] = {_SHORT[part]: node[part]}
            elif not last and not isinstance(node.get(part), (dict, list)):
                # `--set variants.forgetting...` must not drop the other default variants.
                default = DEFAULT_VARIANTS if (depth == 0 and part == "variants") else {}
                node[part] = copy.deepcopy(dict(default))
        else:
            raise InputError(f"--set {override}: there is no field {'.'.join(parts[: depth + 1])}")
        if last:
            node[part_key] = value
        else:
            node = node[part_key]


def check_effect(recipe: Recipe, override: str) -> None:
    """Refuse an override of a field that nothing in the recipe reads.

    Args:
        recipe: with the override.

    Raises:
        InputError: the message says why, and what to set instead.
    """
    path = override.partition("=")[0]
    reason = _without_effect(recipe, path.split("."))
    if reason is not None:
        raise InputError(f"{override} changes nothing: {reason}")


def _without_effect(recipe: Recipe, path: Sequence[str]) -> str | None:
    """Why nothing reads a field; None if something may."""
    section, *rest = path
    if section == "variants" and len(rest) == 3:
        name, inner, field = rest
        variant = recipe.variants.get(name)
        if variant is None or inner not in _VERBS:
            return None
        if not _uses(variant, inner):
            return f"the variant {name} ({variant.objective}) {_VERBS[inner]} no tokens"
        return _unread(variant, inner, field)
    if section in OF_VARIANTS and len(rest) == 1:
        return _unread_by_variants(recipe, section, rest[0])
    if section == "reference" and rest:
        if not recipe.needs_reference:
            return "no variant of the recipe needs a reference model"
        if recipe.reference.name_or_path is not None and rest[0] not in _KINDS:
            return "reference.name_or_path is set, so no reference model is trained"
    if section == "detector" and not recipe.needs_detector:
        return "no variant of the recipe uses the detector"
    return None


def _unread_by_variants(recipe: Recipe, section: str, field: str) -> str | None:
    users = {name: v for name, v in recipe.variants.items() if _uses(v, section)}
    if not users:
        return f"no variant of the recipe {_VERBS[section]} tokens"
    reasons = {name: _unread(variant, section, field) for name, variant in users.items()}
    users = {name: variant for name, variant in users.items() if reasons[name] is None}
    if not users:
        return ", ".join(f"{reason} ({name})" for name, reason in reasons.items())
    if all(field in getattr(variant, section).model_fields_set for variant in users.values()):
        instead = " or ".join(f"variants.{name}.{section}.{field}" for name in users)
        use = f"{_VERBS[section]} tokens"
        return f"every variant that {use} has its own {section}.{field}. Set {instead}"
    return None


def _unread(variant: VariantSettings, section: str, field: str) -> str | None:
    """Why another setting of a variant leaves a field of a section without use; None if none does.

    Args:
        section: that the variant uses.
    """
    if section == "forgetting":
        own = variant.forgetting
        if field in declared_parameters() and field not in own.term_parameters:
            return f"the term {own.term} has no parameter {field}"
        is_unread = field == "t_min" and own.schedule == "constant"
        return "the schedule constant does not read t_min" if is_unread else None
    selection = variant.selection
    estimates = selection.threshold in ("mixture", "posterior")
    if field == "rho" and selection.by == "known":
        return "by known does not read rho"
    if (field == "rho" and selection.threshold != "quantile") or (
        field == "posterior" and not estimates
    ):
        return f"the threshold {selection.threshold} does not read {field}"
    return None


def _uses(variant: VariantSettings, section: str) -> bool:
    return variant.selects if section == "selection" else variant.objective == "forgetting"
