"""Cards of trained models and exported corpora: what they were made from, and how.

Input: facts about a run. Output: Markdown with the metadata that the Hub reads. Text from data
and recipes is escaped, and local folders are left out. Reads and writes no files.
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

from forgetting.config import LossSettings, Recipe, SourceSettings, named_sources
from forgetting.data.sources import HUB_ID
from forgetting.data.splits import TRUSTED
from forgetting.escaping import visible
from forgetting.models.loading import ModelFacts
from forgetting.models.prompting import uses_template
from forgetting.report.result_table import INTERVALS, ResultsTable, plain
from forgetting.report.sentences import weight_formula
from forgetting.rundir.findings import DetectorSummary
from forgetting.rundir.selections import SelectionSummary, SourceSelection
from forgetting.rundir.stats import DataSummary

WAYS = {
    "full": "was trained on all response tokens of its corpus (plain supervised fine-tuning).",
    "ignoring": "was trained on the response tokens that were selected as positive. The other "
    "tokens had no loss.",
    "forgetting": "was trained to learn the response tokens that were selected as positive and to "
    "unlearn the negative ones.",
    "weighted": "was trained on all response tokens of its corpus. The weight of each token was "
    "{weight}, where c is the probability that it is bad, estimated by a detector of planted "
    "noise.",
    "corrected": "was trained on all response tokens of its corpus. The weight of each token was 1 "
    "minus the probability that it is bad, estimated by a detector of planted noise. That "
    "probability was given to the tokens that another model expected in its place.",
}
METHOD = (
    'Method: arXiv 2508.04329, "Forgetting: A New Mechanism Towards Better Large Language Model '
    'Fine-tuning".'
)
PACKAGES = ("forgetting", "torch", "transformers", "trl", "peft", "datasets")
UNKNOWN_LICENSE = "unknown: ask the publisher"
# Upper bounds of the size categories of the Hub.
SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
}


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that every card shows."""

    recipe: Recipe
    base: ModelFacts
    data: DataSummary
    results: ResultsTable | None = None
    """None if nothing has been evaluated."""


def model_card(
    facts: RunFacts,
    variant: str,
    selection: SelectionSummary | None,
    details: Mapping[str, Any],
    *,
    is_adapter: bool,
) -> str:
    """The card of a variant's model.

    Args:
        variant: name of one of the recipe's variants.
        selection: of the variant; None if it learned all tokens.
        details: training figures by name.
        is_adapter: whether it is an adapter rather than full weights.
    """
    recipe = facts.recipe
    settings = recipe.variants[variant]
    base_id = _hub_id(recipe.model.name_or_path)
    metadata = ModelCardData(
        # The Hub accepts ids only, not folders.
        base_model=base_id,
        base_model_relation=base_id and ("adapter" if is_adapter else "finetune"),
        datasets=_hub_datasets(recipe),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["forgetting", "sft", *(["lora"] if is_adapter else [])],
    )
    way = WAYS[settings.objective].format(weight=weight_formula(settings))
    lines = [
        f"# {recipe.name}: {variant}",
        "",
        f"A {'LoRA adapter' if is_adapter else 'model'} fine-tuned from {_base(facts)} with "
        f"`forgetting`. It {way}" + (f" {METHOD}" if settings.selects else ""),
        "",
        "```python",
        *_loading(facts, is_adapter),
        "```",
        "",
        "Prompt it as it was trained:",
        "",
        "```python",
        *_prompting(recipe, is_adapter),
        "```",
        "",
        *_template_notes(facts),
        *_results(facts.results),
        "## Training",
        "",
    ]
    if selection is not None:
        lines += _selection(settings.selection.by, selection)
    if settings.rounds:
        lines += [
            f"The samples were learned in {settings.rounds} equal parts, one after the other. The "
            "first was learned whole. The tokens of each other part were selected by the model of "
            "the parts before it, as TokenCleaning does (arXiv 2502.01968). The tokens and steps "
            "below are those of the last part.",
            "",
        ]
    if settings.loss != LossSettings():
        lines += [f"Loss of the learned tokens: `{settings.loss.name}`.", ""]
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
    lines += ["`training.jsonl` has every logged step.", "", *_about(facts)]
    return _card(metadata, lines)


def data_card(
    facts: RunFacts,
    variant: str,
    judgment: SelectionSummary | DetectorSummary,
    *,
    title: str,
    sentence: str,
    loading: Sequence[str],
    columns: Mapping[str, str],
    num_samples: int,
) -> str:
    """The card of an exported corpus.

    Args:
        variant: the variant whose selection or weights they are.
        judgment: the selection of the variant, or the findings that its weights come from.
        title: what the corpus is.
        sentence: its size.
        loading: Python code that loads it.
        columns: description of each column, by name.
        num_samples: number of rows.
    """
    recipe = facts.recipe
    if isinstance(judgment, SelectionSummary):
        done, by = "selected", recipe.variants[variant].selection.by
        lines_of_judgment = ["## Selection", "", *_selection(by, judgment)]
    else:
        done, lines_of_judgment = "weighed", ["## Weights", "", plain(judgment.verdict), ""]
    metadata = DatasetCardData(
        # No `configs`: with them, `datasets` caches a folder by its name alone and returns an
        # earlier export of the same name.
        size_categories=[next((n for size, n in SIZES.items() if num_samples < size), "n>10M")],
        task_categories=["text-generation"],
        tags=["forgetting", "sft"],
    )
    lines = [
        f"# {recipe.name}: {title}",
        "",
        f"{sentence} `forgetting` scored the tokens with the model {_base(facts)} and {done} "
        f"them for the variant `{variant}`. {METHOD}",
        "",
        "```python",
        *loading,
        "```",
        "",
        "| column | content |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in columns.items()),
        "",
        *lines_of_judgment,
        *_about(facts),
    ]
    return _card(metadata, lines)


def _card(metadata: CardData, lines: Sequence[str]) -> str:
    return "\n".join(["---", metadata.to_yaml(), "---", "", *lines]) + "\n"


def _base(facts: RunFacts) -> str:
    """The base model with its revision, if known."""
    settings = facts.recipe.model
    name = _code(_without_folders(settings.name_or_path))
    revision = facts.base.commit or settings.revision
    return f"{name} (revision {_code(revision)})" if revision else name


def _prompting(recipe: Recipe, is_adapter: bool) -> list[str]:
    """Code that generates a response as it was trained."""
    prompt = 'prompt = tokenizer("...", return_tensors="pt")'
    if uses_template(recipe):
        prompt = (
            'messages = [{"role": "user", "content": "..."}]\n'
            "prompt = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
            ")"
        )
    ends = ["model.generation_config = GenerationConfig.from_pretrained(path)  # the end tokens"]
    return [
        f"from transformers import AutoTokenizer{', GenerationConfig' if is_adapter else ''}",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        *(ends if is_adapter else []),
        prompt,
        "output = model.generate(**prompt, max_new_tokens=256)[0]",
        'print(tokenizer.decode(output[prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _template_notes(facts: RunFacts) -> list[str]:
    """What the chat template does that its users may not expect."""
    notes = []
    if facts.recipe.model.system_role == "fold" and uses_template(facts.recipe):
        notes += ["The chat template puts a system turn before the first user turn.", ""]
    if facts.data.date is not None:
        notes += [
            "The chat template prints the current date. In training and evaluation it was "
            f"{facts.data.date}.",
            "",
        ]
    return notes


def _loading(facts: RunFacts, is_adapter: bool) -> list[str]:
    path = 'path = "."  # this folder, or its id on the Hub'
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
    """One row per metric and one column per variant."""
    if results is None or not results.columns:
        return ["Not evaluated when this card was written.", ""]
    lines = [
        "## Results",
        "",
        plain(results.sentence),
        "",
        f"{INTERVALS} ± is one standard error over the items. Bold marks a value that is better "
        "than all others by more than the combined standard error. Results of one run with one "
        "seed.",
        "",
        "| | items | " + " | ".join(map(plain, results.variants)) + " |",
        "|---|---:|" + "---:|" * len(results.variants),
    ]
    for column in results.columns:
        texts = []
        for variant in results.variants:
            cell, text = results.cell(variant, column), results.text(variant, column)
            texts.append(f"**{text}**" if cell is not None and cell.best else text)
        title = plain(f"{column.task_title}: {column.title}{' (%)' if column.percent else ''}")
        lines.append(f"| {title} | {column.num_items:,} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def _selection(by: str, selection: SelectionSummary) -> list[str]:
    counts = {
        "positive": selection.num_positive,
        "negative": selection.num_negative,
        "ignored": selection.num_ignored,
    }
    total = selection.num_tokens
    measures = {"random": "at random", "known": "by the noise that the data marks"}
    measure = measures.get(by, f"by the measure `{selection.quality}`")
    rows = [
        f"| {name} | {number:,} | {100 * number / max(total, 1):.1f}% |"
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
        f"{100 * source.num_negative / max(source.num_tokens, 1):.1f}% |"
        for source in sources
    ]
    return ["| source | tokens | negative |", "|---|---:|---:|", *rows, ""]


def _about(facts: RunFacts) -> list[str]:
    """The end of every card: data, licenses, versions and recipe."""
    recipe = facts.recipe
    sources = [
        f"| {plain(source.name)} | {source.used:,} | {source.response_tokens:,} | "
        f"{plain(_license(recipe, source.name))} |"
        for source in facts.data.sources
    ]
    splits = ", ".join(f"{name} {split.samples:,}" for name, split in facts.data.splits.items())
    versions = [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]
    license = facts.base.licence
    return [
        "## Data and licenses",
        "",
        "| source | samples | response tokens | license |",
        "|---|---:|---:|---|",
        *sources,
        "",
        f"These are the samples of all parts of the corpus ({splits}), without duplicates.",
        "",
        f"- Base model {_base(facts)}: "
        + (
            f"{plain(license)}, according to its card."
            if license
            else "its license is unknown. Check it before you use or publish this."
        ),
        "- The licenses above are those of the named data sets. Copies or other versions may have "
        "other terms. If a license is unknown, check it before you use or publish this.",
        "- This card claims no license for the result. Whoever publishes it must choose one.",
        "",
        "## Versions and recipe",
        "",
        ", ".join(versions) + ".",
        "",
        "<details><summary>Full recipe</summary>",
        "",
        _fenced(_published(recipe)),
        "",
        "</details>",
    ]


def _license(recipe: Recipe, name: str) -> str:
    """The license of a source."""
    label = name.removesuffix(TRUSTED)
    sources = recipe.data.sources if label == name else recipe.reference.sources or []
    source = next((source for source in sources if source.label == label), None)
    # Only the records of the demo world have source names that the recipe does not know.
    if source is None or source.world is not None:
        return "generated by forgetting"
    return named_sources().get(source.dataset or "", {}).get("license", UNKNOWN_LICENSE)


def _hub_id(name: str | None) -> str | None:
    is_id = name is not None and not Path(name).exists() and HUB_ID.fullmatch(name)
    return name if is_id else None


def _hub_datasets(recipe: Recipe) -> list[str] | None:
    sources: list[SourceSettings] = [*recipe.data.sources, *(recipe.reference.sources or [])]
    ids = [_hub_id(source.path) for source in sources]
    return list(dict.fromkeys(each for each in ids if each)) or None


def _published(recipe: Recipe) -> str:
    """The recipe as YAML, without local folders."""
    content = _without_folders(recipe.model_dump(mode="json"))
    return visible(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip())


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _code(text: str) -> str:
    """Text as a code span on one line; backticks become apostrophes."""
    return "`" + " ".join(visible(text).replace("`", "'").split()) + "`"


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}\n{fence}"
