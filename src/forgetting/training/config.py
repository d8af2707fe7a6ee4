"""The settings of `ForgettingTrainer`: TRL's, and how tokens are learned and unlearned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import Any, get_args

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from forgetting.method.loss import Normalization
from forgetting.method.losses import DEFAULT_LOSS, PositiveLoss
from forgetting.method.schedule import LambdaSchedule, ScheduleKind
from forgetting.method.terms import (
    BUILT_IN_PARAMETERS,
    DEFAULT_TERM,
    ForgettingTerm,
    parameter_fields,
)

# A field for each parameter of the built-in terms, from their entries.
TermParameters: Any = make_dataclass("TermParameters", parameter_fields())


@dataclass
class ForgettingConfig(TermParameters, SFTConfig):
    """`trl.SFTConfig`, and how positive tokens are learned and negative ones unlearned.

    Parameters:
        schedule: schedule of lambda over the optimizer steps, see `LambdaSchedule`; default
            `linear`.
        t_min: lower end of lambda's range; default 1e-4.
        t_max: upper end of lambda's range; default 0.25. With `schedule="constant"` and `t_max=0`,
            negative tokens are ignored.
        term: what is minimized on negative tokens, a name in `TERMS`; default `ga`. Terms that
            compare with the base model need a column `base_log_probs`. The parameters of the
            built-in terms are fields as well, as their entries declare them.
        term_parameters: parameters of the term by name, for terms that you registered; default:
            as the term declares them.
        loss: what is minimized on positive tokens, a name in `LOSSES`; default `cross_entropy`.
            Losses that rank the tokens of a step read it once more before they learn from it.
        loss_parameters: parameters of the loss by name; default: as the loss declares them.
        floor: probability below which a token is no longer unlearned; default: none.
        normalization: `group` (default, the paper's) divides each set by its own count, `token`
            both by the count of all labeled tokens, so that no token of a small negative set
            weighs more than a positive one.
        divergence_ratio: training stops with a `DivergenceError` when the positive loss of a step
            is more than this many times the median of the first ten steps; default 10; None:
            never.
        sort_by_length: sort the samples of an optimizer step into its micro-batches by length,
            which needs less padding; default: unless dropout or another random number would then
            fall on other samples than in `trl.SFTTrainer`, or a router's loss see other batches.
        bf16: train in bfloat16; default: if the accelerator supports it and `fp16` is off.
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
    loss: str = field(
        default=DEFAULT_LOSS, metadata={"help": "What is minimized on positive tokens."}
    )
    loss_parameters: dict[str, float] | None = field(
        default=None, metadata={"help": "Parameters of the loss."}
    )
    floor: float | None = field(
        default=None, metadata={"help": "Probability below which a token is left alone."}
    )
    normalization: Normalization = field(
        default="group", metadata={"help": "Divide by the count of each group, or of all tokens."}
    )
    divergence_ratio: float | None = field(
        default=10.0,
        metadata={"help": "Stop if the positive loss is this many times its start."},
    )
    sort_by_length: bool | None = field(
        default=None,
        metadata={"help": "Sort a step's samples by length. Default: if it only saves padding."},
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Train in bfloat16. Default: if the accelerator supports it."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Off: the filter would hide NaN and infinite losses from the log."},
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            # TRL's default is True, which Trainer refuses on a machine without accelerator.
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        # Parameters that have a field are kept there only: else setting the field would do nothing.
        others = dict(self.term_parameters or {})
        for name in BUILT_IN_PARAMETERS.keys() & others:
            setattr(self, name, others.pop(name))
        self.term_parameters = others or None
        self.check()
        super().__post_init__()

    # Computed on each use, so that a field set after construction counts, as it does for every
    # other field of `TrainingArguments`.

    @property
    def lambda_schedule(self) -> LambdaSchedule:
        """Lambda over the optimizer steps."""
        return LambdaSchedule(self.schedule, self.t_min, self.t_max)

    @property
    def forgetting_term(self) -> ForgettingTerm:
        """What is minimized on negative tokens."""
        flat = {name: getattr(self, name) for name in BUILT_IN_PARAMETERS}
        return ForgettingTerm(
            self.term, floor=self.floor, **{**flat, **(self.term_parameters or {})}
        )

    @property
    def positive_loss(self) -> PositiveLoss:
        """What is minimized on positive tokens."""
        return PositiveLoss(self.loss, **(self.loss_parameters or {}))

    def check(self) -> None:
        """Check all fields of this class as they are now.

        Raises:
            ValueError: a name is unknown, something is not a number or outside its range, or two do
                not go together.
        """
        self._check_numbers()
        _ = self.lambda_schedule, self.positive_loss
        term = self.forgetting_term
        if self.divergence_ratio is not None and not self.divergence_ratio > 1:
            raise ValueError(f"divergence_ratio must be above 1, got {self.divergence_ratio}")
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"normalization must be one of {get_args(Normalization)}")
        if self.normalization == "token" and term.is_per_sample:
            raise ValueError(f"the term {self.term} has one value per sample: normalize by group")

    def _check_numbers(self) -> None:
        optional = ("floor", "divergence_ratio")
        given = {name: getattr(self, name) for name in ("t_min", "t_max", *optional)}
        given |= {name: getattr(self, name) for name in BUILT_IN_PARAMETERS}
        for field_name in ("term_parameters", "loss_parameters"):
            parameters = getattr(self, field_name) or {}
            if not isinstance(parameters, Mapping):
                raise ValueError(f"{field_name} must be a dictionary, got {parameters!r}")
            given |= {f"{field_name}[{name!r}]": value for name, value in parameters.items()}
        for name, value in given.items():
            is_number = hasattr(value, "__float__") and not isinstance(value, str)
            if not is_number and not (value is None and name in optional):
                raise ValueError(f"{name} must be a number, got {value!r}")
