"""The cards of what a run gives away: what a model or a corpus was made from, on and how.

Goes in: what a run knows of itself. Comes out: Markdown with the metadata that the hub reads. All
text that comes from data or recipes is escaped, and folders of this machine are left out. Knows no
files but their names.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, DatasetCardData, ModelCardData

from forgetting.config import Recipe, SourceSettings, named_sources
from forgetting.data.sources import HUB_ID
from forgetting.data.splits import TRUSTED
from forgetting.escaping import visible
from forgetting.models.loading import ModelFacts
from forgetting.report.results import ResultsTable, plain
from forgetting.rundir.selection import SelectionSummary, SourceSelection
from forgetting.rundir.stats import DataSummary

WAYS = {
    "full": "learned all response tokens of its corpus (plain supervised fine-tuning).",
    "ignoring": "learned the response tokens of its corpus that were selected as positive; the "
    "others were left out of the loss.",
    "forgetting": "learned the response tokens of its corpus that were selected as positive and "
    "unlearned the negative ones.",
    "weighted": "learned each response token of its corpus with the weight 1 minus the probability "
    "that it is bad, as a detector of planted noise sees it.",
}
METHOD = (
    'Method: arXiv 2508.04329, "Forgetting: A New Mechanism Towards Better Large Language Model '
    'Fine-tuning".'
)
PACKAGES = ("forgetting", "torch", "transformers", "trl", "peft", "datasets")
UNKNOWN_LICENCE = "not known here: look it up with its publisher"
# Upper bounds of the sizes that the hub's filter knows.
SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
}


@dataclass(frozen=True)
class RunFacts:
    """What holds for all that a run gives away."""

    recipe: Recipe
    base: ModelFacts
    data: DataSummary
    results: ResultsTable | None = None
    """None before anything is evaluated."""


def model_card(
    facts: RunFacts,
    variant: str,
    selection: SelectionSummary | None,
    details: Mapping[str, Any],
    *,
    is_adapter: bool,
) -> str:
    """Write the card of one variant's model.

    Args:
        variant: name of one of the recipe's variants.
        selection: of the variant; None if all tokens were learned.
        details: figures of the training, by name.
        is_adapter: an adapter, not whole weights.
    """
    recipe = facts.recipe
    settings = recipe.variants[variant]
    base_id = _hub_id(recipe.model.name_or_path)
    metadata = ModelCardData(
        # The hub takes ids only; a folder means nothing there.
        base_model=base_id,
        base_model_relation=base_id and ("adapter" if is_adapter else "finetune"),
        datasets=_hub_datasets(recipe),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["forgetting", "sft", *(["lora"] if is_adapter else [])],
    )
    lines = [
        f"# {recipe.name}: {variant}",
        "",
        f"A {'LoRA adapter' if is_adapter else 'model'} fine-tuned from {_base(facts)} with "
        f"`forgetting`. It {WAYS[settings.objective]}" + (f" {METHOD}" if settings.selects else ""),
        "",
        "```python",
        *_loading(facts, is_adapter),
        "```",
        "",
        *_results(facts.results),
        "## Training",
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
    lines += ["Every logged step is in `training.jsonl`.", "", *_about(facts)]
    return _card(metadata, lines)


def data_card(
    facts: RunFacts,
    variant: str,
    selection: SelectionSummary,
    *,
    title: str,
    sentence: str,
    loading: Sequence[str],
    columns: Mapping[str, str],
    num_samples: int,
) -> str:
    """Write the card of an exported corpus.

    Args:
        variant: whose selection it is.
        selection: of the variant.
        title: what the corpus is.
        sentence: the same in numbers.
        loading: lines of Python that read it.
        columns: what each column holds, by its name.
        num_samples: rows of the data.
    """
    recipe = facts.recipe
    metadata = DatasetCardData(
        # No `configs`: with them `datasets` keeps what it read of a folder by the folder's name
        # alone, and gives an earlier export of that name in place of a newer one.
        size_categories=[next((n for size, n in SIZES.items() if num_samples < size), "n>10M")],
        task_categories=["text-generation"],
        tags=["forgetting", "sft"],
    )
    lines = [
        f"# {recipe.name}: {title}",
        "",
        f"{sentence} Tokens were judged for the model {_base(facts)} by `forgetting`, and selected "
        f"as for its variant `{variant}`. {METHOD}",
        "",
        "```python",
        *loading,
        "```",
        "",
        "| column | |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in columns.items()),
        "",
        "## Selection",
        "",
        *_selection(recipe.variants[variant].selection.by, selection),
        *_about(facts),
    ]
    return _card(metadata, lines)


def _card(metadata: CardData, lines: Sequence[str]) -> str:
    return "\n".join(["---", metadata.to_yaml(), "---", "", *lines]) + "\n"


def _base(facts: RunFacts) -> str:
    """The base model, with its revision where it has one."""
    settings = facts.recipe.model
    name = _code(_without_folders(settings.name_or_path))
    revision = facts.base.commit or settings.revision
    return f"{name} (revision {_code(revision)})" if revision else name


def _loading(facts: RunFacts, is_adapter: bool) -> list[str]:
    path = 'path = "."  # this folder, or its id on the hub'
    if not is_adapter:
        return [
            "from transformers import AutoModelForCausalLM",
            path,
            "model = AutoModelForCausalLM.from_pretrained(path)",
        ]
    if _hub_id(facts.recipe.model.name_or_path):
        return [
            "from peft import AutoPeftModelForCausalLM",
            path,
            "model = AutoPeftModelForCausalLM.from_pretrained(path)",
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        path,
        'base = AutoModelForCausalLM.from_pretrained("...")  # the folder of the base model',
        "model = PeftModel.from_pretrained(base, path)",
    ]


def _results(results: ResultsTable | None) -> list[str]:
    """A line for each figure: variants are few, figures many."""
    if results is None or not results.columns:
        return ["Not evaluated when this card was written.", ""]
    lines = [
        "## Results",
        "",
        plain(results.sentence),
        "",
        "Values ± their standard error over the items; the best one is bold where it differs from "
        "all others by more than the combined error. One run with one seed.",
        "",
        "| | items | " + " | ".join(map(plain, results.variants)) + " |",
        "|---|---:|" + "---:|" * len(results.variants),
    ]
    for column in results.columns:
        texts = []
        for variant in results.variants:
            cell, text = results.cell(variant, column), results.text(variant, column)
            texts.append(f"**{text}**" if cell is not None and cell.best else text)
        title = plain(f"{column.task_title}: {column.title}{', %' if column.percent else ''}")
        lines.append(f"| {title} | {column.num_items:,} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def _selection(by: str, selection: SelectionSummary) -> list[str]:
    counts = {
        "positive": selection.num_positive,
        "negative": selection.num_negative,
        "ignored": selection.num_ignored,
    }
    total = selection.num_tokens
    measure = "at random" if by == "random" else f"by the measure `{selection.quality}`"
    rows = [
        f"| {name} | {number:,} | {100 * number / max(total, 1):.1f} % |"
        for name, number in counts.items()
    ]
    return [
        f"Tokens were selected {measure}, per {selection.granularity}, with rho "
        f"{selection.rho:.3g}:",
        "",
        "| tokens | number | share |",
        "|---|---:|---:|",
        *rows,
        "",
        *_by_source(selection.by_source),
    ]


def _by_source(sources: Sequence[SourceSelection]) -> list[str]:
    if len(sources) < 2:
        return []
    rows = [
        f"| {plain(source.source)} | {source.num_tokens:,} | "
        f"{100 * source.num_negative / max(source.num_tokens, 1):.1f} % |"
        for source in sources
    ]
    return ["| source | tokens | negative |", "|---|---:|---:|", *rows, ""]


def _about(facts: RunFacts) -> list[str]:
    """Data, licences, versions and recipe, which every card ends with."""
    recipe = facts.recipe
    sources = [
        f"| {plain(source.name)} | {source.used:,} | {source.response_tokens:,} | "
        f"{plain(_licence(recipe, source.name))} |"
        for source in facts.data.sources
    ]
    splits = ", ".join(f"{name} {split.samples:,}" for name, split in facts.data.splits.items())
    versions = [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]
    licence = facts.base.licence
    return [
        "## Data and licences",
        "",
        "| source | samples | response tokens | licence |",
        "|---|---:|---:|---|",
        *sources,
        "",
        f"Samples of all parts of the corpus ({splits}); duplicates were dropped.",
        "",
        f"- Base model {_base(facts)}: "
        + (
            f"{plain(licence)}, by its own card."
            if licence
            else "its licence is not known here. Check it before you use or publish this."
        ),
        "- A licence above is that of the data set under its known name; a copy or a version of it "
        "may have other terms. Where none is known, check before you use or publish this.",
        "- Which licence holds for what was made of them is for whoever publishes it to say.",
        "",
        "## Versions and recipe",
        "",
        ", ".join(versions) + ".",
        "",
        "<details><summary>The whole recipe</summary>",
        "",
        _fenced(_published(recipe)),
        "",
        "</details>",
    ]


def _licence(recipe: Recipe, name: str) -> str:
    """Of a source, by the name under which it is counted."""
    label = name.removesuffix(TRUSTED)
    sources = recipe.data.sources if label == name else recipe.reference.sources or []
    source = next((source for source in sources if source.label == label), None)
    # Only the demo's world names the kinds of its records itself.
    if source is None or source.world is not None:
        return "made up by forgetting"
    return named_sources().get(source.dataset or "", {}).get("license", UNKNOWN_LICENCE)


def _hub_id(name: str | None) -> str | None:
    is_id = name is not None and not Path(name).exists() and HUB_ID.fullmatch(name)
    return name if is_id else None


def _hub_datasets(recipe: Recipe) -> list[str] | None:
    sources: list[SourceSettings] = [*recipe.data.sources, *(recipe.reference.sources or [])]
    ids = [_hub_id(source.path) for source in sources]
    return list(dict.fromkeys(each for each in ids if each)) or None


def _published(recipe: Recipe) -> str:
    """The recipe as YAML, without the folders of the machine that it ran on."""
    content = _without_folders(recipe.model_dump(mode="json"))
    return visible(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip())


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _code(text: str) -> str:
    """Text as it is, on one line, that can end no code span."""
    return "`" + " ".join(visible(text).replace("`", "'").split()) + "`"


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}\n{fence}"
