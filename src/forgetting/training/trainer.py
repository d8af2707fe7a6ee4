"""TRL's SFT trainer with the forgetting objective.

Takes what `trl.SFTTrainer` takes, with one more column: `polarity` (+1 learn, -1 forget, 0
ignore). With every labelled token positive it trains exactly as its parent. This class adds only
what differs; each override says which trap it avoids.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer
from trl.data_utils import get_dataset_column_names

from forgetting.console import progress
from forgetting.errors import DivergenceError
from forgetting.method.loss import Normalization, forgetting_loss, polarity_sums
from forgetting.method.schedule import LambdaSchedule, ScheduleKind
from forgetting.method.terms import (
    BUILT_IN_PARAMETERS,
    DEFAULT_TERM,
    ForgettingTerm,
    parameter_fields,
)
from forgetting.models.lm_head import add_tiled_head
from forgetting.training.checkpoints import (
    RANDOM_STATE,
    latest_checkpoint,
    load_state,
    random_state,
    save_state,
    seal,
    set_random_state,
)
from forgetting.training.columns import (
    TOKEN_COLUMNS,
    TokenColumnCollator,
    align_token_columns,
    cut_to_length,
    deal_by_length,
    pack,
)

# In every checkpoint: what must not change when it is resumed.
COURSE = "course.json"
COUNTERS = (
    "positive_loss",
    "negative_loss",
    "negative_prob",
    "entropy",
    "num_greedy",
    "num_positive",
    "num_negative",
    "num_tokens",
)


# A field for each parameter of the built-in terms, from their entries.
TermParameters: Any = make_dataclass("TermParameters", parameter_fields())


@dataclass
class ForgettingConfig(TermParameters, SFTConfig):
    """`trl.SFTConfig`, and how negative tokens are unlearned.

    Parameters:
        schedule: of lambda over the optimizer steps, see `LambdaSchedule`; default `linear`.
        t_min: default 1e-4.
        t_max: default 0.25. With `schedule="constant"` and `t_max=0`, negatives are ignored.
        term: what is minimized on negative tokens, a name in `TERMS`; default `ga`. Terms that
            compare with the base model need a column `base_log_probs`.
        alpha: parameter of the terms `wga` and `wtnpo`; default 1.
        beta: parameter of the terms `npo`, `tnpo` and `wtnpo`; default 0.1.
        beta1: parameter of the term `satimp`; default 5.
        beta2: parameter of the term `satimp`; default 1.
        term_parameters: parameters of the term by name, for terms that you registered; default:
            as the term declares them.
        floor: probability below which a token is no longer unlearned; default: none.
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
    term: str = field(
        default=DEFAULT_TERM, metadata={"help": "What is minimized on negative tokens."}
    )
    term_parameters: dict[str, float] | None = field(
        default=None, metadata={"help": "Parameters of the term that have no field of their own."}
    )
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
        for name, value in (self.term_parameters or {}).items():
            if name in BUILT_IN_PARAMETERS:
                setattr(self, name, value)
        flat = {name: getattr(self, name) for name in BUILT_IN_PARAMETERS}
        parameters = {**flat, **(self.term_parameters or {})}
        self.forgetting_term = ForgettingTerm(self.term, floor=self.floor, **parameters)
        if self.divergence_ratio is not None and not self.divergence_ratio > 1:
            raise ValueError(f"divergence_ratio must be above 1, got {self.divergence_ratio}")
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"normalization must be one of {get_args(Normalization)}")
        if self.normalization == "token" and self.forgetting_term.is_per_sample:
            raise ValueError(f"the term {self.term} has one value per sample: normalize by group")
        if self.bf16 is None:
            # TRL's default is true everywhere, and then refused on a machine without accelerator.
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        super().__post_init__()


class ForgettingTrainer(SFTTrainer):
    """Learns the positive tokens and unlearns the negative ones (arXiv 2508.04329, equation 8).

    Args:
        args: a `ForgettingConfig`; default: its defaults.
        train_dataset: any form that `trl.SFTTrainer` takes (tokens with labels, prompt and
            completion, messages), and `polarity`. A row's polarity is one value for each of its
            tokens, or one for each that is predicted (label other than -100), in order, or one
            number for all of them. In the same three forms: `base_log_probs`, which some terms
            need, and `token_weights`, at least 0, of each token's part in its mean (default 1).
        **kwargs: as for `trl.SFTTrainer`. A `data_collator` of your own must give `input_ids`,
            `labels` and an `attention_mask` that is 1 on the tokens of each sample; it may pad on
            either side.

    Raises:
        ValueError: a column is missing or does not fit its tokens, or an option is on that cannot
            carry polarity.
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
        _refuse_sharded_sequences(self.accelerator.parallelism_config)
        add_tiled_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        # SFTTrainer refuses a custom collator in some modes and builds the right one itself.
        self.data_collator: Any = TokenColumnCollator(self.data_collator)
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
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        # SFTTrainer cuts and packs `input_ids` and `labels`, and nothing else: it tokenises here,
        # and what follows is done to all columns alike, in its order.
        present = get_dataset_column_names(dataset)
        columns = [name for name in TOKEN_COLUMNS if name in present]
        if not columns:
            return super()._prepare_dataset(
                dataset, processing_class, args, packing, formatting_func, dataset_name
            )
        uncut = copy.copy(args)
        uncut.max_length, uncut.shuffle_dataset = None, False
        dataset = super()._prepare_dataset(
            dataset, processing_class, uncut, False, formatting_func, dataset_name
        )
        dataset = align_token_columns(dataset, columns)
        columns = ["input_ids", "labels", *columns]
        if packing:
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
            dataset = pack(dataset, columns, args.max_length, args.packing_strategy)
        elif args.max_length is not None:
            dataset = cut_to_length(dataset, columns, args.max_length)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        # The only place that sees all micro-batches of an optimizer step before the first of
        # them is computed.
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._blank_repeated_samples(batches)
        batches = deal_by_length(batches, self.args.pad_to_multiple_of)
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for batch in batches:
            polarity = _target_polarity(batch)
            if self.args.normalization == "token":
                counts += (batch["labels"][:, 1:] != -100).sum().to(device)
                continue
            is_negative = polarity < 0
            if self.args.forgetting_term.is_per_sample:
                is_negative = _rows_of_samples(batch, is_negative).any(-1)
            counts[0] += (polarity > 0).sum().to(device)
            counts[1] += is_negative.sum().to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._num_positive, self._num_negative = counts[0], counts[1]
        return batches, num_items

    def _blank_repeated_samples(self, batches: list[Any]) -> None:
        # At the end of an epoch accelerate fills the micro-batches of all processes with samples
        # from its start; the step of one process does not hold them.
        state, size = self.accelerator.gradient_state, self.args.per_device_train_batch_size
        if self.args.world_size == 1 or not batches or not state.end_of_dataloader:
            return
        if self.args.dataloader_drop_last or not hasattr(self.train_dataset, "__len__"):
            return
        num_left = len(self.train_dataset) % (size * self.args.world_size)
        num_own = max(num_left - self.args.process_index * size, 0)
        if not num_left or num_own >= size:
            return
        batch = batches[-1]
        where: Any = slice(num_own, None)
        if len(batch["labels"]) != size:
            # Padding-free: one row of samples. Of packed rows it does not say where they begin,
            # and they are left as they are.
            positions = batch.get("position_ids", torch.ones(1, 1))
            starts = (positions[0] == 0).nonzero()[:, 0]
            if len(starts) != size:
                return
            where = (0, slice(int(starts[num_own]), None))
        batch["labels"][where] = -100
        batch["polarity"][where] = 0

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
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        outputs = model(**inputs, fused_lm_head=True)
        of_targets = {
            "log_probs": outputs.log_probs,
            "polarity": polarity,
            "base_log_probs": batch["base_log_probs"][:, 1:] if "base_log_probs" in batch else None,
            "weights": batch["token_weights"][:, 1:] if "token_weights" in batch else None,
        }
        if self.args.forgetting_term.is_per_sample:
            of_targets = {
                name: None if values is None else _rows_of_samples(batch, values)
                for name, values in of_targets.items()
            }
        loss = forgetting_loss(
            **of_targets,
            lam=self.lam,
            term=self.args.forgetting_term,
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
                outputs.is_top1.sum(),
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
            logs["mean_token_accuracy"] = total["num_greedy"] / max(total["num_tokens"], 1)
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        # Trainer writes nothing where checkpoints are sharded. A checkpoint has the weights in
        # another form, see below.
        if not _internal_call:
            weights = self.accelerator.get_state_dict(self.model)
            # Gathered one by one, so that save_pretrained cannot see which of them are one.
            for name in self.model.all_tied_weights_keys:
                weights.pop(name, None)
            if self.args.should_save:
                self._save(output_dir, weights)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # Each process writes the state of its own generators.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / (
                f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            (folder / COURSE).write_text(json.dumps(self._course(), indent=1))
            seal(folder)

    def _course(self) -> dict[str, Any]:
        """What all steps of a run depend on alike."""
        args, term = self.args, self.args.forgetting_term
        return {
            "max_steps": self.state.max_steps,
            "num_processes": args.world_size,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "normalization": args.normalization,
            **asdict(args.lambda_schedule),
            "term.kind": term.kind,
            "term.floor": term.floor,
            **{f"term.{name}": value for name, value in term.parameters.items()},
        }

    def _check_course(self, checkpoint: str) -> None:
        # Trainer goes on with other settings, and lambda would jump to another schedule's value.
        file = Path(checkpoint) / COURSE
        if not file.is_file():
            return
        before = json.loads(file.read_text())
        for name, value in self._course().items():
            if name in before and before[name] != value:
                raise ValueError(
                    f"{checkpoint} was written with {name} {before[name]}, and this run has "
                    f"{value}: lambda and the order of the samples would jump. Set it back, or "
                    "train from the start"
                )

    # Trainer pickles optimizer, scheduler and generators, and under FSDP the weights. DeepSpeed
    # keeps a format of its own.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        if self.is_fsdp_enabled:
            # Gathered on the first process, the weights under the names of the sharded model.
            options = StateDictOptions(
                full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
            )
            weights, optimizer = get_state_dict(self.model, self.optimizer, options=options)
            if self.args.should_save:
                save_state(weights, Path(output_dir) / "weights")
        else:
            optimizer = self.optimizer.state_dict()
        if self.args.should_save:
            save_state(optimizer, Path(output_dir) / "optimizer")
            save_state(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._check_course(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        if self.is_fsdp_enabled:
            # Only the first process reads. One function for each, as the one for both takes no
            # weights for "leave the weights alone", and the first would wait for the others.
            options = StateDictOptions(
                full_state_dict=True, broadcast_from_rank0=True, strict=False
            )
            is_main = self.accelerator.is_main_process
            weights = load_state(folder / "weights") if is_main else {}
            set_model_state_dict(self.model, weights, options=options)
            state = load_state(folder / "optimizer") if is_main else {}
            set_optimizer_state_dict(self.model, self.optimizer, state, options=options)
        else:
            self.optimizer.load_state_dict(load_state(folder / "optimizer"))
        self.lr_scheduler.load_state_dict(load_state(folder / "scheduler"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Under FSDP the weights come with the optimizer, see above.
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_rng_state(self, output_dir: str) -> None:
        save_state(random_state(), self._random_state_path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(load_state(self._random_state_path(checkpoint)))

    def _random_state_path(self, checkpoint: str) -> Path:
        Path(checkpoint).mkdir(parents=True, exist_ok=True)
        return Path(checkpoint) / f"{RANDOM_STATE}_{self.args.process_index}"


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


def _target_polarity(batch: dict[str, Any]) -> Tensor:
    """Polarity of the predicted tokens, shape (batch, length - 1): zero where no label is."""
    polarity, labels = batch["polarity"][:, 1:], batch["labels"][:, 1:]
    return torch.where(labels == -100, torch.zeros_like(polarity), polarity)


def _rows_of_samples(batch: dict[str, Any], values: Tensor) -> Tensor:
    """Values of the predicted tokens with a row for each sample, filled up with zeros.

    A padding-free batch has all samples in one row, shape (1, length - 1).
    """
    if "cu_seq_lens_q" not in batch:
        return values
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    lengths[0] -= 1  # its first token is not predicted; those of the others carry no label
    return pad_sequence(list(values[0].split(lengths)), batch_first=True)


def _refuse(args: ForgettingConfig, dataset: Dataset, kwargs: dict[str, Any]) -> None:
    if not isinstance(args, ForgettingConfig):
        raise TypeError(f"args must be a ForgettingConfig, got {type(args).__name__}")
    columns = set(get_dataset_column_names(dataset))
    if {"image", "images"} & columns:
        raise ValueError("train_dataset holds images: the forgetting objective is for text alone")
    if "polarity" not in columns:
        raise ValueError(
            "train_dataset has no column polarity (+1 learn, -1 forget, 0 ignore). Select tokens "
            "first, or give every row the number 1 to learn all tokens"
        )
    if "input_ids" in columns and not {"labels", "completion_mask", "assistant_masks"} & columns:
        raise ValueError(
            "train_dataset has input_ids and no column labels, so prompts would be trained on as "
            "well. Add labels: the token where it is to be predicted, -100 elsewhere"
        )
    if args.forgetting_term.needs_base and "base_log_probs" not in columns:
        raise ValueError(
            f"the term {args.term} needs a column base_log_probs in train_dataset: the base "
            "model's log-probability of each labelled token"
        )
    if args.forgetting_term.is_per_sample and "token_weights" in columns:
        raise ValueError(
            f"the term {args.term} is one value a sample: drop token_weights, or use another term"
        )
    if args.forgetting_term.is_per_sample and args.packing and args.packing_strategy != "bfd":
        raise ValueError(
            f"the term {args.term} is one value a sample, and packing_strategy "
            f"{args.packing_strategy!r} takes samples apart: use 'bfd'"
        )
    if args.packing and args.max_length is None:
        raise ValueError("packing needs a max_length: the tokens of a row")
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
    if kwargs.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func would bypass the forgetting objective: leave it out")


def _refuse_sharded_sequences(parallelism: Any) -> None:
    for name in ("tp", "cp", "sp"):
        if parallelism is not None and getattr(parallelism, f"{name}_enabled", False):
            raise ValueError(
                f"{name}_size above 1 divides samples between processes, and their tokens would "
                "be counted wrongly: use data parallelism (DDP, FSDP2, ZeRO) alone"
            )
