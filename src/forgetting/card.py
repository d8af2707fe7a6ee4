"""The card of a trained model: what it was trained from, on and how, as Markdown.

Goes in: the recipe, a variant, the summary of its selection. Comes out: text. Knows no files but
their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from forgetting.recipe import Recipe, dump_recipe

WAYS = {
    "full": "learned all response tokens of its corpus (plain supervised fine-tuning).",
    "ignoring": "learned the response tokens of its corpus that were selected as positive; the "
    "others were left out of the loss.",
    "forgetting": "learned the response tokens of its corpus that were selected as positive and "
    "unlearned the negative ones.",
}


def model_card(
    recipe: Recipe, variant: str, selection: Mapping[str, Any] | None, details: Mapping[str, Any]
) -> str:
    """Write the card of one variant.

    Args:
        recipe: of the run.
        variant: name of one of its variants.
        selection: `selection/<variant>/summary.json`; None where all tokens were learned.
        details: figures of the training, by name.

    Returns:
        Markdown with the metadata that the hub reads.
    """
    settings = recipe.variants[variant]
    base = recipe.model.name_or_path
    is_folder = Path(base).exists()
    is_adapter = recipe.training.lora is not None and not recipe.training.merge
    metadata: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "tags": ["forgetting", "sft"],
    }
    # The hub takes ids only; a folder means nothing there.
    if not is_folder:
        metadata["base_model"] = base
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {recipe.name}: {variant}",
        "",
        f"A {'LoRA adapter' if is_adapter else 'model'} fine-tuned from "
        f"{_code(Path(base).name if is_folder else base)} with `forgetting`. "
        f"It {WAYS[settings.objective]}",
        "",
    ]
    if selection is not None:
        lines += _selection(settings.selection.by, selection)
    if settings.objective == "forgetting":
        term = settings.forgetting
        lines += [
            f"Unlearning: term `{term.term}`, lambda by the schedule `{term.schedule}` with t_min "
            f"{term.t_min:g} and t_max {term.t_max:g}.",
            "",
        ]
    if details:
        lines += [f"- {name.replace('_', ' ')}: {value:,}" for name, value in details.items()]
        lines.append("")
    lines += [
        'Method: arXiv 2508.04329, "Forgetting: A New Mechanism Towards Better Large Language '
        'Model Fine-tuning". Training figures are in `training.jsonl`.',
        "",
        "## Recipe",
        "",
        _fenced(dump_recipe(recipe).rstrip()),
    ]
    return "\n".join(lines) + "\n"


def _selection(by: str, selection: Mapping[str, Any]) -> list[str]:
    counts = {name: selection[f"num_{name}"] for name in ("positive", "negative", "ignored")}
    total = selection["num_tokens"]
    measure = "at random" if by == "random" else f"by the measure {selection['quality']}"
    rows = [
        f"| {name} | {number:,} | {100 * number / max(total, 1):.1f} % |"
        for name, number in counts.items()
    ]
    return [
        f"Tokens were selected {measure}, per {selection['granularity']}, with rho "
        f"{selection['rho']:.3g}:",
        "",
        "| tokens | number | share |",
        "|---|---:|---:|",
        *rows,
        "",
    ]


def _code(text: str) -> str:
    """Text as it is, on one line, that can end no code span."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}\n{fence}"
