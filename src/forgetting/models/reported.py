"""What loading reports: weights that are missing, without a place, or of other sizes.

Input: the report of a library, or the names of an adapter's weights and of the places for them.
Output: nothing, or an error with the names. The libraries only warn, and then fill what is missing
with random numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from forgetting.errors import InputError
from forgetting.models.adapter_files import saved_shapes

NUM_NAMES = 3
_OTHER_FORM = ". If they are those of a compiled or wrapped model, save the model inside it"


def check_report(name: str, report: Mapping[str, Any]) -> None:
    """Refuse a model whose weights are not those that its configuration describes.

    Args:
        name: folder or Hub id of the model.
        report: the loading info of transformers; weights that are tied to others are not in it.

    Raises:
        InputError: weights are missing, left over, or of another size.
    """
    sizes = [
        f"{key} is {list(found)} instead of {list(needed)}"
        for key, found, needed in sorted(report["mismatched_keys"])
    ]
    problems = _problems(report["missing_keys"], report["unexpected_keys"], sizes)
    if problems:
        raise InputError(
            f"{name}: the weights are not those of config.json: {problems}. Use the config.json "
            f"that belongs to the weights{_OTHER_FORM if report['unexpected_keys'] else ''}"
        )


def check_adapter_names(path: object, saved: Iterable[str], adapted: Any) -> None:
    """Refuse an adapter that does not fill the places that its configuration makes.

    Args:
        path: of the adapter.
        saved: names of its weights.
        adapted: a model with the places for them.

    Raises:
        InputError: weights are missing, or have no place.
    """
    from peft import get_peft_model_state_dict

    saved = set(saved)
    needed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # An adapter may hold embeddings as well, which PEFT loads into the base model.
    unexpected = saved.difference(needed, saved_shapes(adapted))
    if problems := _problems(needed.keys() - saved, unexpected, []):
        raise InputError(
            f"the adapter {path} does not have the weights that adapter_config.json describes on "
            f"this model: {problems}. Set the model that it was trained on, or save it again"
        )


def _problems(missing: Collection[str], unexpected: Collection[str], sizes: list[str]) -> str:
    found = (
        (f"{len(missing)} missing", sorted(missing)),
        (f"{len(unexpected)} without a place", sorted(unexpected)),
        (f"{len(sizes)} of another size", sizes),
    )
    return "; ".join(f"{title} ({_listed(names)})" for title, names in found if names)


def _listed(names: list[str]) -> str:
    more = len(names) - NUM_NAMES
    return ", ".join(names[:NUM_NAMES]) + (f" and {more} more" if more > 0 else "")


def first_not_finite(model: Any) -> str | None:
    """The name of a weight with a NaN or an infinity; None if all are finite."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight.detach()).all()):
            return str(name)
    return None
