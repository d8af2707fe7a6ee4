"""What a user asks for: one pydantic model per stage, read from YAML.

Goes in: a YAML file (or the name of a shipped recipe) and `section.field=value` overrides.
Comes out: a `Recipe` in which every field has a value and every local path is absolute.
Defaults are those of arXiv 2508.04329. This module loads no data and no model.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from forgetting.errors import InputError
from forgetting.method import MEASURES, Granularity, QualityName, Threshold
from forgetting.method.loss import Normalization, ScheduleKind, TermKind

PLAIN_TEMPLATE = "plain"
Share = Annotated[float, Field(gt=0, lt=1)]


def _share_or_auto(value: Any) -> Any:
    """One message for what would be two, one for each half of the union."""
    try:
        good = value == "auto" or 0 < float(value) < 1
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError("must be a number strictly between 0 and 1, or `auto`")
    return value if value == "auto" else float(value)


ShareOrAuto = Annotated[float | Literal["auto"], BeforeValidator(_share_or_auto)]
Positive = Annotated[int, Field(gt=0)]
Objective = Literal["full", "ignoring", "forgetting"]
# A name becomes a folder of the run directory, so it can hold nothing that leaves it.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]


class Section(BaseModel):
    """A part of a recipe: unknown fields are errors, values are fixed once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelSettings(Section):
    """The base model."""

    name_or_path: str
    """Folder with config, safetensors weights and tokenizer, or an id on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights and of the arithmetic; auto: bfloat16 on GPUs that have it, else float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """Keep the base weights in 4 bits (QLoRA, arXiv 2305.14314) or 8, in every stage; adapters
    only. Needs bitsandbytes."""
    attn_implementation: str | None = None
    """As in transformers (sdpa, flash_attention_2, eager); null: its choice."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you trust its source."""
    chat_template: str | None = None
    """Jinja file, or `plain` for lines `<|user|>` and `<|assistant|>` as text; null: the
    tokenizer's own, or the plain one where it has none."""
    architecture: dict[str, Any] | None = None
    """Fields of the model's configuration, for `--dry-run` where the model cannot be read."""


class WorldSettings(Section):
    """The demo's procedural questions, with noise that is known token by token."""

    num_records: Positive = 8000
    """Distinct questions to draw; the splits are taken from them."""
    noise_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of records whose response is noisy."""
    noise_kinds: dict[
        Literal[
            "wrong_answer", "swapped_response", "junk_phrase", "label_flip", "truncated_response"
        ],
        float,
    ] = {
        "wrong_answer": 1.0,
        "swapped_response": 1.0,
        "junk_phrase": 1.0,
    }
    """Kinds of noise and their weights among the noisy records."""
    num_new_entities: Annotated[int, Field(ge=0)] = 0
    """Entities that the demo's base model has never met; each adds 60 questions to the records, so
    that right answers about them are as surprising as wrong ones."""

    @field_validator("noise_kinds")
    @classmethod
    def _has_weight(cls, kinds: dict[str, float]) -> dict[str, float]:
        if any(weight < 0 for weight in kinds.values()) or sum(kinds.values()) <= 0:
            raise ValueError("weights must be at least 0, and one of them above 0")
        return kinds


@functools.cache
def named_sources() -> dict[str, dict[str, Any]]:
    """The data sets known by name: what to read from the hub, and how local files are read."""
    text = (resources.files("forgetting.config") / "datasets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


class SourceSettings(Section):
    """One data set: a local file or folder, a data set on the hub, or the demo's world.

    A mere string is the name of a known data set, else a path.
    """

    dataset: str | None = None
    """A data set known by name (flan_v2, dolly, oasst1, alpaca, wizardlm, paper_corpus): where it
    is on the hub and how it is read. With `path`: a local copy of it."""
    path: str | None = None
    """Local .json, .jsonl, .csv or .tsv file (also .gz, .bz2, .xz, .zst), .parquet or .arrow file,
    a folder that `datasets` reads, or a hub id."""
    world: WorldSettings | None = None
    """The demo's world, in place of `path`."""
    name: Name | None = None
    """Under which the source is counted; null: the name of the file or data set."""
    format: Literal[
        "auto",
        "alpaca",
        "dolly",
        "prompt_completion",
        "messages",
        "sharegpt",
        "oasst",
        "question_answer",
        "text",
    ] = "auto"
    """How a record is read; auto: recognised by its fields."""
    fields: dict[str, str] = {}
    """Renames a record's fields before it is read: `{instruction: question}` reads `question`."""
    columns: list[str] | None = None
    """Names of the columns of a .csv or .tsv file that has no header."""
    escaped: bool = False
    """A quote in a .csv or .tsv file is mere text; `\\n`, `\\t`, `\\\\` are a line break, a tab, a
    backslash."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    limit: Positive | None = None
    """Read at most this many records, from the start."""
    num_samples: Positive | None = None
    """Samples that the source gives to the corpus (all splits together), drawn with the seed."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the corpus that the source gives. Sources with neither give what is left, each in
    proportion to its size."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Fill in what is known of a data set by its name."""
        if isinstance(given, str):
            given = {"dataset" if given in named_sources() else "path": given}
        name = given.get("dataset") if isinstance(given, Mapping) else None
        if name is None:
            return given
        known = named_sources().get(name) if isinstance(name, str) else None
        if known is None:
            raise ValueError(f"no data set is known as {name!r}. Known: {_listed(named_sources())}")
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
            raise ValueError("a source has either `path` or `world`, or a known `dataset`")
        if self.num_samples is not None and self.share is not None:
            raise ValueError("a source has either `num_samples` or `share`")
        if (
            self.limit is not None
            and self.num_samples is not None
            and self.limit < self.num_samples
        ):
            raise ValueError(f"limit {self.limit} leaves fewer than num_samples {self.num_samples}")
        is_table = not {".csv", ".tsv"}.isdisjoint(Path(self.path or "").suffixes)
        if (self.columns is not None or self.escaped) and not is_table:
            raise ValueError("`columns` and `escaped` are for .csv and .tsv files")
        return self

    @property
    def label(self) -> str:
        """The name under which the source's records are counted."""
        if self.name is not None:
            return self.name
        return "world" if self.path is None else Path(self.path).name.split(".")[0]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


class DataSettings(Section):
    """The corpus and its disjoint parts."""

    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """Mixed, stripped of duplicates, shuffled with the recipe's seed, then split so that every
    part holds every source in the same proportion."""
    num_reference: Annotated[int, Field(ge=0)] = 10_000
    """Samples of D_ref, which trains the reference model. Not taken where `reference.folds` is
    given, and taken from `reference.sources` where those are."""
    num_train: Positive = 50_000
    """Samples of D_train, which is scored, selected from and trained on."""
    num_heldout: Annotated[int, Field(ge=0)] = 500
    """Samples in neither, for the held-out loss of every variant."""
    max_length: Annotated[int, Field(gt=1)] = 2048
    """Tokens of a sample; what is longer is cut at the end."""
    duplicates: Literal["exact", "near"] = "exact"
    """Which records are dropped as repeats. exact: the same conversation after NFC and white-space
    normalisation; near: also those that share most of their words (needs datasketch)."""
    near_threshold: Annotated[float, Field(gt=0, le=0.95)] = 0.8
    """Jaccard similarity of word 5-grams from which `near` takes records for repeats."""
    duplicates_in_reference: bool = False
    """Draw D_ref from all records, repeats and those of D_train included (the paper's appendix
    B.2); D_train and the held-out samples stay what they are without it."""
    special_tokens_in_text: bool = False
    """Special tokens that are written out in the text of the data become tokens; else mere text."""
    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Stop when more than this share of a source's records cannot be used."""

    @property
    def num_samples(self) -> int:
        """Samples of all splits."""
        return self.num_reference + self.num_train + self.num_heldout

    @model_validator(mode="after")
    def _sources_fit(self) -> DataSettings:
        asked = sum(s.num_samples or (s.share or 0) * self.num_samples for s in self.sources)
        is_open = any(s.num_samples is None and s.share is None for s in self.sources)
        if asked > self.num_samples * (1 + 1e-9) or (
            not is_open and asked < self.num_samples * (1 - 1e-9)
        ):
            raise ValueError(
                f"num_samples and share of the sources come to {asked:g} samples, but "
                f"num_reference {self.num_reference} + num_train {self.num_train} + num_heldout "
                f"{self.num_heldout} make {self.num_samples}"
            )
        return self


class LoraSettings(Section):
    """A low-rank adapter."""

    rank: Positive = 64
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """All linear layers but the head, or their names."""


class TrainingSettings(Section):
    """How a model is trained: the reference on D_ref, each variant on D_train."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak of the schedule."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps over which the learning rate rises."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 24
    """Samples of an optimizer step, over all micro-batches and processes."""
    micro_batch_size: Positive = 2
    """Samples in memory at once, per process."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradients are clipped to this norm; 0: not clipped, as in the paper."""
    lora: LoraSettings | None = LoraSettings()
    """Adapter to train; null: all weights are trained."""
    merge: bool = False
    """Save the whole model with the adapter merged into it, in place of the adapter."""
    gradient_checkpointing: bool = True
    """Less memory for a third more time."""
    save_steps: Positive = 200
    """A checkpoint from which a killed run resumes, every so many steps."""
    logging_steps: Positive = 10
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Trackers that receive every logged figure."""

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainingSettings:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        if self.merge and self.lora is None:
            raise ValueError("merge needs an adapter: set lora, or merge to false")
        return self

    def num_steps(self, num_samples: int) -> int:
        """Optimizer steps over `num_samples` samples, as the trainer counts them."""
        micro_batches = math.ceil(num_samples / self.micro_batch_size)
        per_epoch = math.ceil(micro_batches / (self.batch_size // self.micro_batch_size))
        return math.ceil(self.epochs * per_epoch)


class ReferenceSettings(TrainingSettings):
    """The reference model. Training fields left out are those of `training`."""

    name_or_path: str | None = None
    """A reference model of one's own (adapter or full weights) in place of training on D_ref."""
    sources: Annotated[list[SourceSettings], Field(min_length=1)] | None = None
    """Trusted data that D_ref is taken from, in place of the corpus; what D_train or the held-out
    samples hold too is left out of D_ref."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Divide D_train into so many parts, and score each by a reference model that was trained on
    the others: no data is spent on D_ref, for the time of so many trainings."""

    @model_validator(mode="after")
    def _one_kind(self) -> ReferenceSettings:
        given = [name for name in ("name_or_path", "sources", "folds") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} exclude each other: each says where the reference model "
                "comes from"
            )
        return self


class ScoringSettings(Section):
    """Log-probabilities of D_train's response tokens under base and reference."""

    tokens_per_batch: Positive | None = None
    """Padded tokens in one forward pass; null: 8192 on an accelerator, 1024 on a CPU."""
    samples_per_shard: Positive = 2000
    """Samples of one file; a killed run computes only the missing files. This many are held in
    memory, and sorted by length."""


class SelectionSettings(Section):
    """Which tokens are positive (learned), negative (forgotten or ignored)."""

    rho: ShareOrAuto = 0.7
    """Share of positive tokens; auto: the share whose quality is above 0."""
    quality: QualityName = "influence"
    """What a token is measured by; influence is the paper's. `forgetting.method.measures` has
    the formulas."""
    granularity: Granularity = "token"
    """Choose tokens, or whole samples by their mean quality."""
    balance: Literal["none", "source"] = "none"
    """source: rho and forget_rate are shares of each source, so that all give negative tokens
    alike; none: of the whole of D_train."""
    threshold: Threshold = "quantile"
    """quantile: the best `rho` are positive; zero: those with quality above 0 are; mixture: how
    many are negative is estimated by fitting two components to the quality."""
    posterior: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    """With threshold mixture: from which probability of being in the lower component on a token
    is negative; it is positive below 1/2, ignored between."""
    forget_rate: Share | None = None
    """Only this share is negative, what lies between is ignored; null: all but the positives."""
    by: Literal["quality", "random"] = "quality"
    """random: a control that chooses as many tokens without looking at their quality."""
    keep_eos: bool = True
    """End-of-sequence tokens are never negative: a model that unlearns them does not stop."""

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
    def _have_meaning(self) -> SelectionSettings:
        looks_at_zero = self.threshold == "zero" or (
            self.threshold == "quantile" and self.rho == "auto"
        )
        if looks_at_zero and not MEASURES[self.quality].has_zero:
            raise ValueError(
                f"quality {self.quality} is never above 0, so neither threshold zero nor rho auto "
                "can be taken from it: give rho as a number"
            )
        if self.threshold == "mixture":
            self._check_mixture()
        if looks_at_zero and self.balance == "source":
            raise ValueError(
                "threshold zero and rho auto divide every source at 0, so there is nothing to "
                "balance: give rho as a number, or balance none"
            )
        return self

    def _check_mixture(self) -> None:
        if self.quality == "rank_gap":
            raise ValueError(
                "rank_gap steps from rank to rank, so threshold mixture finds no peaks in it: take "
                "another quality"
            )
        for field, unread in (("by", "quality"), ("balance", "none"), ("forget_rate", None)):
            if getattr(self, field) != unread:
                raise ValueError(
                    f"threshold mixture estimates how many tokens are negative, so {field} "
                    f"{getattr(self, field)} has no meaning: leave it out"
                )


class ForgettingSettings(Section):
    """How negative tokens are unlearned (equation 8, Algorithm 1)."""

    schedule: ScheduleKind = "linear"
    """Of lambda over the steps; linear is the paper's and starts at 0."""
    t_min: Annotated[float, Field(ge=0)] = 1e-4
    t_max: Annotated[float, Field(ge=0)] = 0.25
    """The largest lambda; `constant` keeps it from the first step."""
    term: TermKind = "ga"
    """What is minimised on negative tokens; ga (gradient ascent) is the paper's."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Exponent of p in wga and wtnpo."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Of npo, tnpo and wtnpo."""
    beta1: Annotated[float, Field(ge=0)] = 5.0
    """Exponent of p in satimp."""
    beta2: Annotated[float, Field(ge=0)] = 1.0
    """Exponent of 1 - p in satimp."""
    floor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability below which a token is unlearned no further; null: none, as in the paper."""
    normalization: Normalization = "group"
    """group: each set is divided by its own count (the paper); token: both by that of all
    response tokens."""
    divergence_ratio: Annotated[float, Field(gt=1)] | None = 10.0
    """Stop when the positive loss is more than so many times that of the first logged step."""

    @model_validator(mode="after")
    def _ordered(self) -> ForgettingSettings:
        if self.t_min > self.t_max:
            raise ValueError(f"t_min {self.t_min} is above t_max {self.t_max}")
        if self.term == "npo" and self.normalization == "token":
            raise ValueError("term npo is one value a sample: normalization must be group")
        return self


class VariantSettings(Section):
    """One fine-tuned model of the comparison."""

    objective: Objective
    """full: learn all tokens; ignoring: leave the negative ones out; forgetting: unlearn them."""
    selection: SelectionSettings = SelectionSettings()
    """Fields left out are those of the recipe's `selection`."""
    forgetting: ForgettingSettings = ForgettingSettings()
    """Fields left out are those of the recipe's `forgetting`."""


def _number_or_share(value: Any) -> Any:
    """One message for what would be two, one for each half of the union."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (value >= 1 and value == int(value))):
        raise ValueError("must be a whole number above 0, or a share between 0 and 1")
    return int(value) if value >= 1 else float(value)


ItemLimit = Annotated[int | float, BeforeValidator(_number_or_share)]
"""So many items of a task, or such a share of them."""


class TaskSettings(Section):
    """A task or a suite to be measured. Its name alone is short for `{task: NAME}`."""

    task: str
    """A task, group or tag of lm-eval; a suite (`paper`, `paper-diverse`); a task or suite of
    one's own."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples in the prompt; null: `evaluation.num_fewshot`. Not for suites, which say it."""
    limit: ItemLimit | None = None
    """Items, or the share of them; null: all. `evaluation.limit` caps it."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"task": given} if isinstance(given, str) else given


class EvaluationSettings(Section):
    """What every variant, and the untrained base, is measured on."""

    heldout: bool = True
    """Loss, perplexity and greedy exact match on the held-out responses."""
    tasks: list[TaskSettings] = []
    """Tasks and suites; `forgetting` measures each task once."""
    include_path: str | None = None
    """Folder with task and suite files of one's own."""
    data_dir: str | None = None
    """Folder with local files for the nine benchmarks of the suites, in place of the hub."""
    limit: ItemLimit | None = None
    """At most so many items of each task, or such a share of them; null: all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples in the prompt; null: what each task says."""
    batch_size: Positive = 8
    """Sequences in one forward pass of an lm-eval task."""
    log_samples: bool = False
    """Keep every prompt and answer, as JSON lines beside the results."""


class ReportSettings(Section):
    """The page."""

    seed: int = 0
    """Of the choice of samples that are shown token by token."""


class Recipe(Section):
    """Everything a run needs to know."""

    name: Name
    """Names the run, and by default its directory, `runs/NAME`; default: the name of the file."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Of the split, of the order of the samples, of adapters and dropout."""
    model: ModelSettings
    data: DataSettings
    training: TrainingSettings = TrainingSettings()
    reference: ReferenceSettings = ReferenceSettings()
    scoring: ScoringSettings = ScoringSettings()
    selection: SelectionSettings = SelectionSettings()
    forgetting: ForgettingSettings = ForgettingSettings()
    variants: Annotated[dict[Name, VariantSettings], Field(min_length=1)]
    """Models to train; default: full, ignoring (with rho 0.5, the paper's best) and forgetting."""
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, given: Any) -> Any:
        """Fill what sections inherit from each other, so that every section is whole."""
        if not isinstance(given, Mapping):
            return given
        recipe = dict(given)
        training = recipe.get("training")
        if isinstance(training, Mapping) and isinstance(recipe.get("reference", {}), Mapping):
            # A merged reference would be a second copy of the base's weights.
            shared = {field: value for field, value in training.items() if field != "merge"}
            recipe["reference"] = {**shared, **recipe.get("reference", {})}
        variants = recipe.get("variants", DEFAULT_VARIANTS)
        if isinstance(variants, Mapping):
            recipe["variants"] = {
                name: _inherit_variant(name, variant, recipe) for name, variant in variants.items()
            }
        return recipe

    @field_validator("variants")
    @classmethod
    def _base_is_taken(cls, variants: dict[str, VariantSettings]) -> dict[str, VariantSettings]:
        if "base" in variants:
            raise ValueError("`base` names the untrained model, which is always evaluated")
        return variants

    @model_validator(mode="after")
    def _quantised_weights_are_frozen(self) -> Recipe:
        for section in ("training", "reference"):
            if self.model.quantization is not None and getattr(self, section).lora is None:
                raise ValueError(
                    f"model.quantization keeps the base weights as they are, so {section}.lora "
                    "cannot be null"
                )
        return self

    @model_validator(mode="after")
    def _reference_has_data(self) -> Recipe:
        if not self.selecting_variants or self.reference.name_or_path:
            return self
        if self.reference.folds is None and not self.data.num_reference:
            raise ValueError(
                "data.num_reference 0 leaves nothing to train the reference model on: give it a "
                "number, or reference.folds or reference.name_or_path"
            )
        if self.reference.folds is not None and self.reference.folds > self.data.num_train:
            raise ValueError(
                f"reference.folds {self.reference.folds} is more than data.num_train "
                f"{self.data.num_train}"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_of_the_corpus(self) -> Recipe:
        other = next((n for n in ("sources", "folds") if getattr(self.reference, n)), None)
        if self.data.duplicates_in_reference and other is not None:
            raise ValueError(
                "data.duplicates_in_reference draws D_ref from the corpus: leave out "
                f"reference.{other}"
            )
        return self

    @property
    def num_reference(self) -> int:
        """Samples of D_ref, wherever they come from."""
        return 0 if self.reference.folds else self.data.num_reference

    @property
    def fold_names(self) -> list[str]:
        """Folders of the reference models below `reference`, where they are cross-fitted."""
        return [f"fold-{fold}" for fold in range(self.reference.folds or 0)]

    @property
    def selecting_variants(self) -> list[str]:
        """The variants that need scores and a selection."""
        return [name for name, v in self.variants.items() if v.objective != "full"]

    @property
    def score_columns(self) -> list[str]:
        """The scores that the variants' measures of quality need, by their names in the shards."""
        measures = (MEASURES[self.variants[v].selection.quality] for v in self.selecting_variants)
        return sorted({column for measure in measures for column in measure.columns})


DEFAULT_VARIANTS: Mapping[str, Any] = {
    "full": {},
    "ignoring": {"selection": {"rho": 0.5}},
    "forgetting": {},
}


def _inherit_variant(name: Any, variant: Any, recipe: Mapping[str, Any]) -> Any:
    variant = {} if variant is None else variant
    if not isinstance(variant, Mapping):
        return variant
    merged = {"objective": name, **variant} if name in DEFAULT_VARIANTS else dict(variant)
    for section in ("selection", "forgetting"):
        outer, own = recipe.get(section, {}), merged.get(section, {})
        if isinstance(outer, Mapping) and isinstance(own, Mapping):
            merged[section] = {**outer, **own}
    return merged


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("forgetting.config") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    A recipe with `extends: OTHER` (a file beside it, or a shipped name) changes only the fields
    that it gives.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe.
        overrides: `section.field=value`, the value in YAML, applied before validation.

    Raises:
        InputError: no such recipe, not YAML, or a field that is unknown or wrong; the message
            names every such field by its path.
    """
    path = _find(path_or_name, Path())
    given, folders = _read(path, ())
    for override in overrides:
        _override(given, override)
    given.setdefault("name", path.stem)
    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        raise InputError(f"{path} cannot be used:\n{_explain(error)}") from error
    return _with_absolute_paths(recipe, folders)


# A date that does not exist and bytes that are not UTF-8 are ValueErrors.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def _find(path_or_name: str | Path, folder: Path) -> Path:
    path = folder / path_or_name
    if not path.is_file() and str(path_or_name) in shipped_recipes():
        path = Path(str(resources.files("forgetting.config") / "recipes" / f"{path_or_name}.yaml"))
    if not path.is_file():
        raise InputError(
            f"no recipe at {path}. Give a YAML file, or one of the shipped recipes: "
            + ", ".join(shipped_recipes())
        )
    return path


def _read(path: Path, inner: tuple[Path, ...]) -> tuple[dict[str, Any], list[Path]]:
    """A recipe's fields over those of the recipe that it extends, and the folders of both."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except _NOT_YAML as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise InputError(f"{path} holds no recipe: expected sections such as `model` and `data`")
    if "extends" not in given:
        return given, [path.parent]
    outer = _find(str(given.pop("extends")), path.parent)
    if outer.resolve() in {p.resolve() for p in (*inner, path)}:
        raise InputError(f"{path} extends itself")
    extended, folders = _read(outer, (*inner, path))
    extended.pop("name", None)
    return _merged(extended, given), [path.parent, *folders]


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Field by field; a list or a value replaces what it covers."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        merged[key] = value
    return merged


def _override(given: dict[str, Any], override: str) -> None:
    keys, equals, text = override.partition("=")
    parts = keys.split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {override}: expected section.field=value")
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise InputError(f"--set {override}: the value is not YAML") from error
    node: Any = given
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise InputError(f"--set {override}: {part!r} is no item of the list there")
            part_key: Any = int(part)
        elif isinstance(node, dict):
            part_key = part
            if not last and not isinstance(node.get(part), (dict, list)):
                # `--set variants.forgetting...` must not drop the other default variants.
                default = DEFAULT_VARIANTS if (depth == 0 and part == "variants") else {}
                node[part] = copy.deepcopy(dict(default))
        else:
            raise InputError(f"--set {override}: there is no field {'.'.join(parts[: depth + 1])}")
        if last:
            node[part_key] = value
        else:
            node = node[part_key]


def _explain(error: ValidationError) -> str:
    """One line a field. What a section inherits is reported where it was written."""
    errors = error.errors()
    reported = {tuple(item["loc"]): item["msg"] for item in errors}
    lines: dict[str, None] = {}
    for item in errors:
        loc = tuple(item["loc"])
        if not loc:
            # Of fields that do not go together: the message names them.
            lines[f"  {item['msg'].removeprefix('Value error, ')}"] = None
            continue
        written = {"variants": loc[2:], "reference": ("training", *loc[1:])}.get(str(loc[0]))
        if written is not None and reported.get(written) == item["msg"]:
            continue
        # Pydantic names the branch of a union it tried, and keys; a person wrote only the field.
        path = ".".join(str(part) for part in loc if "[" not in str(part))
        lines[f"  {path}: {_reason(item['type'], item['msg'], loc, item['input'])}"] = None
    return "\n".join(lines)


def _reason(kind: str, message: str, loc: tuple[int | str, ...], given: Any) -> str:
    if kind == "extra_forbidden":
        return f"unknown field. Allowed here: {_allowed(loc[:-1])}"
    if kind == "missing":
        return "is missing"
    if kind == "model_type":
        return f"expected a section with fields (got {given!r}). Allowed here: {_allowed(loc)}"
    if kind == "string_pattern_mismatch":
        message = (
            "must be letters, digits, `_`, `.` and `-`, the first a letter or digit, at most 100"
        )
    message = message.removeprefix("Value error, ")
    return message if isinstance(given, dict) else f"{message} (got {given!r})"


def _allowed(loc: Sequence[int | str]) -> str:
    """The fields of the section at a path, for the message about an unknown one."""
    annotation: Any = Recipe
    for part in loc:
        annotation = _section(annotation)
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = annotation.model_fields[str(part)].annotation
        else:
            # An item of a list, or a value of a dictionary under a name of the user's own.
            annotation = get_args(annotation)[-1]
    return ", ".join(_section(annotation).model_fields)


def _section(annotation: Any) -> Any:
    """What an optional section is when it is there."""
    if get_origin(annotation) in (Union, UnionType):
        return next(arm for arm in get_args(annotation) if arm is not type(None))
    return annotation


def _with_absolute_paths(recipe: Recipe, folders: Sequence[Path]) -> Recipe:
    """Resolve what exists locally: beside the recipe first, then from the current directory.

    What exists in neither place stays as it is: a hub id, or an error of the stage that reads it.
    """

    def resolve(value: str | None) -> str | None:
        if value is None or value == PLAIN_TEMPLATE:
            return value
        for candidate in (*(folder / value for folder in folders), Path(value)):
            if candidate.exists():
                return str(candidate.resolve())
        return value

    def updated(section: Any, *fields: str) -> Any:
        return section.model_copy(update={f: resolve(getattr(section, f)) for f in fields})

    sources = [updated(source, "path") for source in recipe.data.sources]
    trusted = recipe.reference.sources and [
        updated(source, "path") for source in recipe.reference.sources
    ]
    reference = updated(recipe.reference, "name_or_path").model_copy(update={"sources": trusted})
    return recipe.model_copy(
        update={
            "model": updated(recipe.model, "name_or_path", "chat_template"),
            "reference": reference,
            "evaluation": updated(recipe.evaluation, "include_path", "data_dir"),
            "data": recipe.data.model_copy(update={"sources": sources}),
        }
    )


def check_batches(recipe: Recipe, num_processes: int) -> None:
    """Refuse a number of processes that an optimizer step's samples cannot be dealt to.

    Raises:
        InputError: the message names the field of the recipe and what to set.
    """
    for section in ("training", "reference"):
        if section == "reference" and recipe.reference.name_or_path:
            continue
        settings: TrainingSettings = getattr(recipe, section)
        together = settings.micro_batch_size * num_processes
        if settings.batch_size % together:
            raise InputError(
                f"{section}.batch_size {settings.batch_size} cannot be dealt to {num_processes} "
                f"processes with {section}.micro_batch_size {settings.micro_batch_size}: it must "
                f"be a multiple of {together}. Set --processes or one of the two accordingly"
            )


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, as it is kept in the run directory."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
