"""A recipe: one section per stage, each a pydantic model whose fields document themselves.

Defaults are those of arXiv 2508.04329. `load` reads recipes from YAML. This module loads no data
and no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from forgetting.config.fields import ItemLimit, Name, Positive, Section
from forgetting.config.inheritance import inherit_reference, inherit_variant, note_own_fields
from forgetting.config.inputs import DataSettings, ModelSettings, SourceSettings
from forgetting.config.unlearning import DetectorSettings, ForgettingSettings, SelectionSettings
from forgetting.config.variants import BY_POSTERIOR, Objective, VariantSettings
from forgetting.method.columns import (
    PASSES,
    SCORE_COLUMNS,
    columns_of,
    of_reference,
)

NUM_LOGS = 50
"""About how many times a training logs its figures by default."""


class LoraSettings(Section):
    """A low-rank adapter (LoRA)."""

    rank: Annotated[int, Field(gt=0, le=65536)] = 64
    """Rank of the adapter's matrices."""
    alpha: Positive = 16
    """Scale of the adapter's output, which is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout probability of the adapter's input."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers to adapt, or `all-linear` for all but the output head."""
    modules_to_save: list[str] = []
    """Names of modules to train whole and to save with the adapter: `[embed_tokens, lm_head]` for
    tokens that the base model was not trained on."""


class TrainingSettings(Section):
    """Training of the reference model on D_ref and of each variant on D_train."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """Learning rate schedule."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Number of passes over the samples."""
    batch_size: Positive = 24
    """Number of samples per optimizer step, over all micro-batches and processes."""
    micro_batch_size: Positive = 2
    """Number of samples per forward pass and process."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Maximum gradient norm. 0 turns clipping off, as in the paper."""
    lora: LoraSettings | None = LoraSettings()
    """Adapter to train. `null` trains all weights."""
    merge: bool = False
    """Whether to save the full model with the adapter merged in, instead of the adapter."""
    gradient_checkpointing: bool = True
    """Whether to recompute activations in the backward pass: less memory, about a third more
    time."""
    save_steps: Positive | None = None
    """Number of steps between checkpoints, from which an interrupted run resumes. `null` writes
    one at least every 5 minutes. Ctrl-C and SIGTERM always write one before the run ends."""
    logging_steps: Positive | None = None
    """Number of steps between logged figures. `null` logs about 50 times."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Experiment trackers that receive the logged figures."""

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainingSettings:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        if self.merge and self.lora is None:
            raise ValueError("merge needs an adapter: set lora, or set merge to false")
        return self

    def num_steps(self, num_samples: int) -> int:
        """Number of optimizer steps over `num_samples` samples, as the trainer counts them."""
        micro_batches = math.ceil(num_samples / self.micro_batch_size)
        per_epoch = math.ceil(micro_batches / (self.batch_size // self.micro_batch_size))
        return math.ceil(self.epochs * per_epoch)

    def logging_interval(self, num_samples: int) -> int:
        """Number of steps between logged figures of a training on `num_samples` samples."""
        if self.logging_steps is not None:
            return self.logging_steps
        return max(1, round(self.num_steps(num_samples) / NUM_LOGS))


class ReferenceSettings(TrainingSettings):
    """The reference model. Training fields default to those of `training`."""

    name_or_path: str | None = None
    """Your own reference model, used instead of training one on D_ref: an adapter of the base
    model, or full weights of any size and architecture with the base model's tokenizer."""
    sources: Annotated[list[SourceSettings], Field(min_length=1)] | None = None
    """Trusted data sets to draw D_ref from, instead of the corpus. Samples that are also in D_train
    or held out are dropped from D_ref."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Number of parts of D_train for cross-fitting: each part is scored by a reference model that
    was trained on the others. Needs no D_ref, but as many trainings as parts."""

    @model_validator(mode="after")
    def _one_kind(self) -> ReferenceSettings:
        given = [name for name in ("name_or_path", "sources", "folds") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} exclude each other, because each defines the reference "
                "model. Set only one of them"
            )
        return self


class ScoringSettings(Section):
    """Scores of the response tokens of D_train, and of the detector's copies, under the models."""

    tokens_per_batch: Positive | None = None
    """Number of tokens per forward pass, padding included. `null` uses 8192 on an accelerator and
    1024 on a CPU."""
    samples_per_shard: Positive = 2000
    """Number of samples per file and in memory. An interrupted run computes only missing files."""


class TaskSettings(Section):
    """A task or suite to evaluate. A string is short for `{task: NAME}`."""

    task: str
    """Task, group or tag of lm-eval, suite (`paper`, `paper-diverse`), or your own task or
    suite."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Number of examples in the prompt. `null` uses `evaluation.num_fewshot`. Not allowed for
    suites, which define it."""
    limit: ItemLimit | None = None
    """Maximum number of items, or share of them. `null` uses `evaluation.limit`."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"task": given} if isinstance(given, str) else given


class EvaluationSettings(Section):
    """Evaluation of every variant and of the untrained base model."""

    heldout: bool = True
    """Whether to measure loss, perplexity and greedy exact match on the held-out responses."""
    num_answers: Annotated[int, Field(ge=0)] = 20
    """Number of held-out prompts that every model answers, side by side in the report. Decoding is
    greedy. 0 turns it off."""
    answer_tokens: Positive = 256
    """Maximum number of tokens of an answer. Prompt and answer are at most `data.max_length`."""
    tasks: list[TaskSettings] = []
    """Tasks and suites. A task in several suites is evaluated once."""
    include_path: str | None = None
    """Folder with your own task and suite files."""
    data_dir: str | None = None
    """Folder with local files for the nine benchmarks of the suites, used instead of the Hub."""
    limit: ItemLimit | None = None
    """Maximum number of items per task without a limit of its own, or share of them. `null` sets no
    limit. A suite's own limits stay in force."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Number of examples in the prompt. `null` uses each task's own number."""
    apply_chat_template: bool = False
    """Whether the prompts of tasks are rendered with the chat template of the run. Examples in the
    prompt become earlier turns."""
    system_instruction: str | None = None
    """System turn of every prompt. Without `apply_chat_template`, text before the prompt."""
    batch_size: Positive = 8
    """Number of sequences per forward pass of an lm-eval task, and number of prompts that are
    answered together."""
    log_samples: bool = False
    """Whether to save every prompt and answer as JSON lines next to the results."""


class ReportSettings(Section):
    """The report."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the choice of samples that are shown token by token."""


class Recipe(Section):
    """All settings of a run."""

    name: Name
    """Name of the run and of its default directory, `runs/NAME`. Defaults to the file name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of the splits, the order of samples, adapter weights and dropout."""
    model: ModelSettings
    data: DataSettings
    training: TrainingSettings = TrainingSettings()
    reference: ReferenceSettings = ReferenceSettings()
    scoring: ScoringSettings = ScoringSettings()
    detector: DetectorSettings = DetectorSettings()
    selection: SelectionSettings = SelectionSettings()
    forgetting: ForgettingSettings = ForgettingSettings()
    variants: Annotated[dict[Name, VariantSettings], Field(min_length=1)]
    """Models to train. Defaults to full, ignoring (with rho 0.5, the paper's best) and
    forgetting. In a recipe that extends another, null leaves out a variant that the other names."""
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, given: Any) -> Any:
        """Fill in what sections inherit from each other, so that every section is complete."""
        if not isinstance(given, Mapping):
            return given
        recipe = {**given, "reference": inherit_reference(given)}
        variants = recipe.get("variants", DEFAULT_VARIANTS)
        if isinstance(variants, Mapping):
            recipe["variants"] = {
                name: inherit_variant(name, variant, recipe, get_args(Objective))
                for name, variant in variants.items()
            }
        return recipe

    @model_validator(mode="wrap")
    @classmethod
    def _note_own_fields(cls, given: Any, handler: ModelWrapValidatorHandler[Recipe]) -> Recipe:
        recipe = handler(given)
        if isinstance(given, Mapping):
            variants = given.get("variants", DEFAULT_VARIANTS)
            note_own_fields(recipe, {**given, "variants": variants})
        return recipe

    @field_validator("variants")
    @classmethod
    def _base_is_taken(cls, variants: dict[str, VariantSettings]) -> dict[str, VariantSettings]:
        if "base" in variants:
            raise ValueError("`base` is the untrained model, which is always evaluated")
        return variants

    @model_validator(mode="after")
    def _quantized_weights_are_frozen(self) -> Recipe:
        for section in ("training", "reference"):
            if self.model.quantization is not None and getattr(self, section).lora is None:
                raise ValueError(
                    f"model.quantization freezes the base weights, so {section}.lora cannot be "
                    "null. Set an adapter, or remove the quantization"
                )
        return self

    @model_validator(mode="after")
    def _reference_has_data(self) -> Recipe:
        if not self.needs_reference or self.reference.name_or_path:
            return self
        if self.reference.folds is None and not self.data.num_reference:
            raise ValueError(
                "data.num_reference 0 leaves no samples to train the reference model on. Set it to "
                "a number above 0, or set reference.folds or reference.name_or_path"
            )
        if self.reference.folds is not None and self.reference.folds > self.data.num_train:
            raise ValueError(
                f"reference.folds {self.reference.folds} is more than data.num_train "
                f"{self.data.num_train}"
            )
        return self

    @model_validator(mode="after")
    def _parts_have_samples(self) -> Recipe:
        for name in self.evolving_variants:
            rounds = self.variants[name].rounds or 0
            if rounds > self.data.num_train:
                raise ValueError(
                    f"variants.{name}.rounds {rounds} is more than data.num_train "
                    f"{self.data.num_train}. Set fewer rounds, or more samples"
                )
        return self

    @model_validator(mode="after")
    def _reference_is_of_the_corpus(self) -> Recipe:
        other = next((n for n in ("sources", "folds") if getattr(self.reference, n)), None)
        if self.data.duplicates_in_reference and other is not None:
            raise ValueError(
                f"data.duplicates_in_reference draws D_ref from the corpus. Remove "
                f"reference.{other}, or remove data.duplicates_in_reference"
            )
        return self

    @model_validator(mode="after")
    def _negatives_are_forgotten(self) -> Recipe:
        if any(source.negatives for source in self.reference.sources or ()):
            raise ValueError(
                "reference.sources hold only responses to learn. Remove `negatives` from them"
            )
        if any(source.negatives for source in self.data.sources) and not self.forgets:
            raise ValueError(
                "data.sources ask for `negatives`, which no variant forgets. Add a variant with "
                "`objective: forgetting`, or remove `negatives`"
            )
        return self

    @property
    def forgets(self) -> bool:
        """Whether a variant unlearns tokens."""
        return any(variant.objective == "forgetting" for variant in self.variants.values())

    @property
    def num_reference(self) -> int:
        """Number of samples in D_ref, from the corpus or from trusted sources."""
        return 0 if self.reference.folds else self.data.num_reference

    @property
    def fold_names(self) -> list[str]:
        """Folder names of the cross-fitted reference models."""
        return [f"fold-{fold}" for fold in range(self.reference.folds or 0)]

    @property
    def selecting_variants(self) -> list[str]:
        """Names of the variants that need a selection."""
        return [name for name, variant in self.variants.items() if variant.selects]

    @property
    def evolving_variants(self) -> list[str]:
        """Names of the variants whose reference evolves."""
        return [name for name, variant in self.variants.items() if variant.rounds]

    def plain_variant(self, name: str) -> str | None:
        """The variant whose model is that of a `weighted` or `corrected` one if the detector finds
        nothing: the first with the same loss that learns all tokens. None if there is none."""
        variant = self.variants[name]
        if variant.objective not in BY_POSTERIOR:
            return None
        plain = (n for n, v in self.variants.items() if v.objective == "full")
        return next((n for n in plain if self.variants[n].loss == variant.loss), None)

    @property
    def variants_in_order(self) -> list[str]:
        """Names of the variants in the order in which they are trained: those that others may be
        copies of come first."""
        return sorted(self.variants, key=lambda name: self.variants[name].objective != "full")

    @property
    def needs_detector(self) -> bool:
        """Whether a variant uses the detector's posterior."""
        return any(variant.needs_posterior for variant in self.variants.values())

    @property
    def needs_alternatives(self) -> bool:
        """Whether a variant corrects tokens."""
        return any(variant.objective == "corrected" for variant in self.variants.values())

    @property
    def detector_passes(self) -> list[str]:
        """Forward passes that the detector looks at; none if no variant uses it."""
        if not self.needs_detector:
            return []
        use = self.detector.reference
        if use == "always" or (use == "auto" and any(map(of_reference, self._measure_columns))):
            return list(PASSES)
        return [name for name in PASSES if not name.startswith("reference")]

    @property
    def scores_heldout(self) -> bool:
        """Whether the detector judges held-out samples too."""
        return self.needs_detector and self.data.num_heldout > 0

    @property
    def score_columns(self) -> list[str]:
        """Names of the score columns that measures, terms, losses and detector need; none: no
        scores."""
        needed = {*self._measure_columns, *columns_of(self.detector_passes)}
        return [column for column in SCORE_COLUMNS if column in needed]

    @property
    def needs_reference(self) -> bool:
        """Whether any score comes from the reference model."""
        return any(map(of_reference, self.score_columns))

    @property
    def _measure_columns(self) -> set[str]:
        """Columns that measures, terms and losses need."""
        needed = set()
        for variant in self.variants.values():
            needed |= variant.score_columns
        return needed


DEFAULT_VARIANTS: Mapping[str, Any] = {
    "full": {},
    "ignoring": {"selection": {"rho": 0.5}},
    "forgetting": {},
}
