"""TRL's SFT trainer with the forgetting objective.

Takes what `trl.SFTTrainer` takes, with one more column: `polarity`, as long as `input_ids`
(+1 learn, -1 forget, 0 elsewhere). With every labelled token positive it trains exactly as its
parent. This class adds only what differs; each override says which trap it avoids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import pad
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer

from forgetting.checkpoints import (
    latest_checkpoint,
    load_state,
    random_state,
    save_state,
    seal,
    set_random_state,
)
from forgetting.console import progress
from forgetting.errors import DivergenceError
from forgetting.head import add_tiled_head
from forgetting.objective import (
    ForgettingTerm,
    LambdaSchedule,
    Normalization,
    ScheduleKind,
    TermKind,
    forgetting_loss,
    polarity_sums,
)

# Columns with a value for each token, beside those that TRL knows.
TOKEN_COLUMNS = ("polarity", "base_log_probs")
COUNTERS = (
    "positive_loss",
    "negative_loss",
    "negative_prob",
    "entropy",
    "num_positive",
    "num_negative",
    "num_tokens",
)


@dataclass
class ForgettingConfig(SFTConfig):
    """`trl.SFTConfig`, and how negative tokens are unlearned.

    Parameters:
        schedule: of lambda over the optimizer steps, see `LambdaSchedule`; default `linear`.
        t_min: default 1e-4.
        t_max: default 0.25. With `schedule="constant"` and `t_max=0`, negatives are ignored.
        term: what is minimised on negative tokens, see `ForgettingTerm`; default `ga`. Those that
            compare with the base model need a column `base_log_probs`.
        alpha, beta, beta1, beta2, floor: of the term.
        normalization: `group` (default, the paper's) divides each set by its own count, `token`
            both by the count of all labelled tokens, so that no token of a small negative set
            weighs more than a positive one.
        divergence_ratio: training stops with a `DivergenceError` when the positive loss of a
            logging step is more than so many times that of the first; default 10, None: never.
        bf16: default: where an accelerator computes in it and `fp16` is off.
    """

    schedule: ScheduleKind = field(
        default="linear", metadata={"help": "Schedule of lambda over the optimizer steps."}
    )
    t_min: float = field(default=1e-4, metadata={"help": "Lower end of lambda's range."})
    t_max: float = field(default=0.25, metadata={"help": "Upper end of lambda's range."})
    term: TermKind = field(default="ga", metadata={"help": "Minimised on negative tokens."})
    alpha: float = field(default=1.0, metadata={"help": "Exponent of p in wga and wtnpo."})
    beta: float = field(default=0.1, metadata={"help": "Of npo, tnpo and wtnpo."})
    beta1: float = field(default=5.0, metadata={"help": "Exponent of p in satimp."})
    beta2: float = field(default=1.0, metadata={"help": "Exponent of 1 - p in satimp."})
    floor: float | None = field(
        default=None, metadata={"help": "Probability below which a token is left alone."}
    )
    normalization: Normalization = field(
        default="group", metadata={"help": "Divide by the count of each group, or of all tokens."}
    )
    divergence_ratio: float | None = field(
        default=10.0, metadata={"help": "Stop where the positive loss is so many times its start."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Whether to train in bfloat16; default: where an accelerator has it."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Kept off: the filter would hide the steps that matter most."},
    )

    def __post_init__(self) -> None:
        self.lambda_schedule = LambdaSchedule(self.schedule, self.t_min, self.t_max)
        self.forgetting_term = ForgettingTerm(
            self.term, self.alpha, self.beta, self.beta1, self.beta2, self.floor
        )
        if self.divergence_ratio is not None and not self.divergence_ratio > 1:
            raise ValueError(f"divergence_ratio must be above 1, got {self.divergence_ratio}")
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"normalization must be one of {get_args(Normalization)}")
        if self.normalization == "token" and self.forgetting_term.is_per_sample:
            raise ValueError(f"the term {self.term} is one value a sample: normalise by group")
        if self.bf16 is None:
            # TRL's default is true everywhere, and then refused on a machine without accelerator.
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        super().__post_init__()


class PolarityCollator:
    """Collates with TRL's collator and pads `TOKEN_COLUMNS` to the same shape, with zeros."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        for name in TOKEN_COLUMNS:
            if name not in examples[0]:
                continue  # an evaluation set need not have it
            dtype = torch.long if name == "polarity" else torch.float32
            padded = torch.zeros(batch["labels"].shape, dtype=dtype)
            for row, example in enumerate(examples):
                values = torch.tensor(example[name])
                padded[row, : len(values)] = values
            batch[name] = padded
        return batch


class ForgettingTrainer(SFTTrainer):
    """Learns the positive tokens and unlearns the negative ones (arXiv 2508.04329, equation 8).

    Args:
        args: a `ForgettingConfig`; default: its defaults.
        train_dataset: with `input_ids`, `labels` (-100 where nothing is predicted) and
            `polarity`, all of one length per sample; some terms need `base_log_probs` too, the
            base model's log-probability of each labelled token.
        **kwargs: as for `trl.SFTTrainer`.

    Raises:
        ValueError: a column is missing, or an option is on that cannot carry polarity.
    """

    # The loss is divided by the counts of the whole optimizer step: Trainer must not divide it
    # by the number of micro-batches again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: ForgettingConfig | None = None,
        *,
        train_dataset: Dataset,
        **kwargs: Any,
    ) -> None:
        args = args or ForgettingConfig()
        _refuse(args, train_dataset, kwargs)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        add_tiled_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        # SFTTrainer refuses a custom collator in some modes and builds the right one itself.
        self.data_collator: Any = PolarityCollator(self.data_collator)
        self._num_positive = self._num_negative = torch.tensor(1)
        self._sums: Tensor | None = None

    @property
    def lam(self) -> float:
        """Lambda of the optimizer step that is being taken."""
        return self.args.lambda_schedule(self.state.global_step, self.state.max_steps)

    def _set_signature_columns_if_needed(self) -> None:
        # SFTTrainer drops every column that it does not know.
        super()._set_signature_columns_if_needed()
        known = set(self._signature_columns)
        self._signature_columns += [name for name in TOKEN_COLUMNS if name not in known]

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, *more: Any, **kwargs: Any
    ) -> Any:
        # SFTTrainer cuts `input_ids` and `labels` to max_length, and nothing else.
        limit = args.max_length
        columns = [name for name in TOKEN_COLUMNS if name in dataset.column_names]
        if limit is not None and columns:
            dataset = dataset.map(lambda row: {name: row[name][:limit] for name in columns})
        return super()._prepare_dataset(dataset, processing_class, args, *more, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        # The only place that sees all micro-batches of an optimizer step before the first of
        # them is computed.
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = sorted_by_length(batches, self.args.pad_to_multiple_of)
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for batch in batches:
            polarity = _target_polarity(batch)
            if self.args.normalization == "token":
                counts += (batch["labels"][:, 1:] != -100).sum().to(device)
                continue
            is_negative = polarity < 0
            per_sample = self.args.forgetting_term.is_per_sample
            counts[0] += (polarity > 0).sum().to(device)
            counts[1] += (is_negative.any(-1) if per_sample else is_negative).sum().to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._num_positive, self._num_negative = counts[0], counts[1]
        return batches, num_items

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Equation 8 over one micro-batch, divided by the counts of the whole step.

        Outside training it is the parent's mean cross-entropy over all labels.
        """
        batch = inputs
        inputs = {name: value for name, value in batch.items() if name not in TOKEN_COLUMNS}
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        polarity = _target_polarity(batch)
        base_log_probs = batch["base_log_probs"][:, 1:] if "base_log_probs" in batch else None
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        outputs = model(**inputs, fused_lm_head=True)
        loss = forgetting_loss(
            outputs.log_probs,
            polarity,
            self.lam,
            term=self.args.forgetting_term,
            base_log_probs=base_log_probs,
            num_positive=self._num_positive,
            num_negative=self._num_negative,
        )
        # The counts are those of all processes, whose gradients DDP averages.
        loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            # A mean over the micro-batch, so here the mean over micro-batches is due.
            weight = self.router_aux_loss_coef / self.current_gradient_accumulation_steps
            loss = loss + weight * outputs.aux_loss
        self._count(outputs, polarity)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _count(self, outputs: Any, polarity: Tensor) -> None:
        # Sums and counts, divided once when logged: a mean over micro-batches would be biased
        # where some hold no negative token.
        log_probs = outputs.log_probs.detach().float()
        positive, negative = polarity_sums(log_probs, polarity)
        is_negative = polarity < 0
        sums = torch.stack(
            [
                positive,
                negative,
                torch.where(is_negative, log_probs.exp(), 0.0).sum(),
                outputs.entropy.detach().float().sum(),
                (polarity > 0).sum(),
                is_negative.sum(),
                outputs.label_mask.sum(),
            ]
        ).double()
        self._sums = sums if self._sums is None else self._sums + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self._sums is not None and "loss" in logs:
            sums = self._sums
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
            self._sums = None
            total = dict(zip(COUNTERS, sums.tolist(), strict=True))
            if total["num_positive"]:
                logs["positive_loss"] = total["positive_loss"] / total["num_positive"]
            if total["num_negative"]:
                logs["negative_loss"] = total["negative_loss"] / total["num_negative"]
                logs["negative_prob"] = total["negative_prob"] / total["num_negative"]
            logs["share_negative"] = total["num_negative"] / max(total["num_tokens"], 1)
            logs["entropy"] = total["entropy"] / max(total["num_tokens"], 1)
            # The step counter has moved on by the time its figures are logged.
            step = self.state.global_step - 1
            logs["lambda"] = self.args.lambda_schedule(step, self.state.max_steps)
            self._check_positive_loss(logs.get("positive_loss"))
        super().log(logs, start_time)

    def _check_positive_loss(self, value: float | None) -> None:
        # Logged before a checkpoint of the same step is written, and kept in checkpoints, so that
        # a resumed run compares with the same start.
        ratio = self.args.divergence_ratio
        logged = (entry.get("positive_loss") for entry in self.state.log_history)
        start = next((loss for loss in logged if loss is not None), None)
        if value is None or start is None or ratio is None or value <= ratio * start:
            return
        self._diverged(
            self.state.global_step,
            f"the positive loss is {value:.4g}, more than {ratio:g} times the {start:.4g} of its "
            "start",
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Called on every step before the optimizer acts, so bad gradients never reach the weights.
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            self._diverged(self.state.global_step + 1, f"the gradient norm is {float(norm)}")
        return norm

    def _diverged(self, step: int, reason: str) -> NoReturn:
        kept = latest_checkpoint(Path(self.args.output_dir))
        lam = self.args.lambda_schedule(step - 1, self.state.max_steps)
        raise DivergenceError(
            f"training diverged at step {step} of {self.state.max_steps}: {reason}, at lambda "
            f"{lam:g}. Last good checkpoint: {kept or 'none yet'}. Lower t_max or the learning "
            "rate, or set a floor or max_grad_norm"
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Trainer pickles its arguments beside the weights.
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            seal(Path(self.args.output_dir) / folder)

    # Trainer pickles optimizer, scheduler and generators. Sharded optimizers keep the format of
    # their framework.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            save_state(self.optimizer.state_dict(), Path(output_dir) / "optimizer")
            save_state(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self.optimizer.load_state_dict(load_state(Path(checkpoint) / "optimizer"))
        self.lr_scheduler.load_state_dict(load_state(Path(checkpoint) / "scheduler"))

    def _save_rng_state(self, output_dir: str) -> None:
        save_state(random_state(), self._random_state_path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(load_state(self._random_state_path(checkpoint)))

    def _random_state_path(self, checkpoint: str) -> Path:
        Path(checkpoint).mkdir(parents=True, exist_ok=True)
        return Path(checkpoint) / f"random_state_{self.args.process_index}"


class ProgressCallback(TrainerCallback):
    """Shows steps and time left in the library's own way."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._stack = ExitStack()
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        bar = progress(self.label, state.max_steps, state.global_step)
        self._advance = self._stack.enter_context(bar)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1, self._note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stack.close()


def sorted_by_length(
    batches: list[dict[str, Tensor]], multiple: int | None = None
) -> list[dict[str, Tensor]]:
    """Deal the samples of an optimizer step to its micro-batches by length, longest first.

    The loss is divided by the counts of the whole step, so which micro-batch a sample is in
    changes nothing but the padding that is computed with it.

    Args:
        batches: as collated, padded on the right; sizes and number stay as they are.
        multiple: widths are multiples of it; default: of 1.
    """
    if len(batches) < 2 or any("attention_mask" not in batch for batch in batches):
        return batches
    width = max(batch["input_ids"].shape[1] for batch in batches)
    padding = {"labels": -100}
    whole = {
        name: torch.cat(
            [
                pad(batch[name], (0, width - batch[name].shape[1]), value=padding.get(name, 0))
                for batch in batches
            ]
        )
        for name in batches[0]
    }
    lengths = whole["attention_mask"].sum(1)
    order = lengths.argsort(descending=True, stable=True)
    dealt = []
    for rows in order.split([len(batch["input_ids"]) for batch in batches]):
        longest = int(lengths[rows[0]])
        end = longest + -longest % (multiple or 1)
        dealt.append({name: values[rows, :end] for name, values in whole.items()})
    return dealt


def _target_polarity(batch: dict[str, Any]) -> Tensor:
    """Polarity of the predicted tokens, shape (batch, length - 1): zero where no label is."""
    polarity, labels = batch["polarity"][:, 1:], batch["labels"][:, 1:]
    return torch.where(labels == -100, torch.zeros_like(polarity), polarity)


def _refuse(args: ForgettingConfig, dataset: Dataset, kwargs: dict[str, Any]) -> None:
    if not isinstance(args, ForgettingConfig):
        raise TypeError(f"args must be a ForgettingConfig, got {type(args).__name__}")
    columns = set(dataset.column_names or ())
    if args.forgetting_term.needs_base and "base_log_probs" not in columns:
        raise ValueError(
            f"the term {args.term} needs a column base_log_probs in train_dataset: the base "
            "model's log-probability of each labelled token, and anything elsewhere"
        )
    missing = sorted({"input_ids", "labels", "polarity"} - columns)
    if missing:
        raise ValueError(
            f"train_dataset has no column {', '.join(missing)}. Tokenise it first: input_ids, "
            "labels (-100 where nothing is predicted) and polarity (+1 learn, -1 forget, 0 ignore)"
        )
    if args.packing or args.padding_free:
        raise ValueError(
            "packing and padding_free would separate polarity from its tokens: set both to False"
        )
    if args.loss_type != "nll" or args.label_smoothing_factor:
        raise ValueError(
            "the forgetting objective replaces the loss: leave loss_type at 'nll' and "
            "label_smoothing_factor at 0"
        )
    if args.truncation_mode != "keep_start":
        raise ValueError("truncation_mode must be 'keep_start': a response ends its sample")
    if not args.average_tokens_across_devices:
        raise ValueError(
            "average_tokens_across_devices must stay True: the means are over all processes"
        )
    for option in ("data_collator", "compute_loss_func", "formatting_func"):
        if kwargs.get(option) is not None:
            raise ValueError(f"{option} would bypass the forgetting objective: leave it out")
