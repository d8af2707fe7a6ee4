"""Losses of the tokens that are learned: one entry of `LOSSES` each.

Input: log-probabilities of the positive tokens and, where a loss needs them, statistics of the
prediction. Output: one value per token, whose decrease raises the probability of the token; and for
losses that leave tokens out, a ranking of the tokens of an optimizer step. Parameters are declared
in the entry and nowhere else. Knows nothing of models, batches or of negative tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from forgetting.method.parameters import Parameter, complete
from forgetting.registry import Registry

STATISTICS = ("entropy", "sum_squares", "top_entropy")
"""What a loss may ask for about the prediction p at a token, without gradient: its entropy in nats;
the sum of p^2 over the vocabulary; the entropy in nats of the 20 most likely tokens alone,
renormalized."""
KEEP = "keep"
"""Name of the parameter of a ranking."""


@dataclass(frozen=True)
class StepRanking:
    """Which tokens of an optimizer step are learned: a share `keep` of them, the highest first."""

    value: Callable[..., Tensor]
    """`value(log_p)`, or `value(log_p, reference_log_p)` if `needs_reference`: one number per
    token, higher for a token that is rather learned."""
    needs_reference: bool = False
    """Whether log-probabilities under the reference model are needed."""
    is_per_sample: bool = False
    """Whether whole samples are ranked, by the mean over their positive tokens."""


@dataclass(frozen=True)
class Loss:
    """A loss of the tokens that are learned."""

    name: str
    formula: str
    """The value that is minimized, for people; p is the token's probability."""
    value: Callable[..., Tensor]
    """`value(log_p, *statistics, **parameters)`: one value per token, of the shape of `log_p`.
    Positions without a positive token hold finite numbers, and their values are discarded."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """Keyword arguments of `value`, and `keep` of the ranking."""
    statistics: tuple[str, ...] = ()
    """Names from `STATISTICS`, in the order of the arguments of `value`."""
    ranking: StepRanking | None = None
    """Default: every token is learned."""


def _cross_entropy(log_p: Tensor) -> Tensor:
    return -log_p


def _dft(log_p: Tensor, min_weight: float) -> Tensor:
    return -log_p.detach().exp().clamp(min=min_weight) * log_p


def _deft(log_p: Tensor, sum_squares: Tensor) -> Tensor:
    # p^a is 1 - expm1(...) near 1: nothing cancels as a approaches 0.
    return -torch.expm1(sum_squares * log_p) / sum_squares


def _eaft(log_p: Tensor, top_entropy: Tensor, alpha: float) -> Tensor:
    return -((top_entropy / math.log(20)) ** alpha) * log_p


def _excess(log_p: Tensor, reference_log_p: Tensor) -> Tensor:
    return reference_log_p - log_p


def _likely(log_p: Tensor) -> Tensor:
    return log_p


DEFAULT_LOSS = "cross_entropy"
"""The paper's, and that of plain supervised fine-tuning."""
LOSSES: Registry[Loss] = Registry(
    "loss",
    "forgetting.losses",
    [
        Loss(DEFAULT_LOSS, "−log p", _cross_entropy),
        # arXiv 2508.05629
        Loss(
            "dft",
            "−max(p, min_weight) · log p",
            _dft,
            {
                "min_weight": Parameter(
                    0.0, "Lower bound of the weight p of a token.", at_least=0, at_most=1
                )
            },
        ),
        # arXiv 2602.11424, without the 1e-6 that its code adds to the denominator.
        Loss("deft", "(1 − p^a) / a, a = sum p²", _deft, statistics=("sum_squares",)),
        # arXiv 2601.02151. Its code divides by 3 instead of log 20, which is 2.9957.
        Loss(
            "eaft",
            "−(H₂₀ / log 20)^alpha · log p",
            _eaft,
            {"alpha": Parameter(1.0, "Exponent of the weight.", at_least=0)},
            statistics=("top_entropy",),
        ),
        # arXiv 2004.14589. Its code drops a share of 0.4 too, above a quantile of the last 10,000
        # samples, and none of the first 10,000: more than a fine-tuning may have.
        Loss(
            "truncation",
            "−log p, of the samples with the lowest mean",
            _cross_entropy,
            {
                KEEP: Parameter(
                    0.6, "Share of a step's samples that are learned.", above=0, at_most=1
                )
            },
            ranking=StepRanking(_likely, is_per_sample=True),
        ),
        # arXiv 2404.07965; 0.6 is its share for the model of 1B.
        Loss(
            "rho1",
            "−log p, of the tokens with the highest −log p + log p reference",
            _cross_entropy,
            {
                KEEP: Parameter(
                    0.6, "Share of a step's tokens that are learned.", above=0, at_most=1
                )
            },
            ranking=StepRanking(_excess, needs_reference=True),
        ),
    ],
)
"""What is minimized on a positive token. The factors before log p of `dft` and `eaft` are weights
without gradient, and so is a of `deft`."""


def register_loss(
    name: str,
    value: Callable[..., Tensor],
    *,
    formula: str = "",
    parameters: Mapping[str, float | Parameter] = MappingProxyType({}),
    statistics: tuple[str, ...] = (),
) -> None:
    """Add a loss of the tokens that are learned, which recipes then accept as `loss` of a variant.

    Installed packages declare theirs as entry points in the group `forgetting.losses`.

    Args:
        name: lowercase letters, digits and underscores.
        value: `value(log_p, *statistics, **parameters)` returns what is minimized on each positive
            token, a tensor of the shape of `log_p`. `log_p` holds natural log-probabilities, at
            most 0, and positions whose values are discarded.
        formula: for people; p is the probability of the token.
        parameters: defaults of the keyword arguments of `value`; a `Parameter` also has a range
            and a description. Recipes set them next to the loss's `name`.
        statistics: what `value` takes after `log_p`, each without gradient: `entropy` of the
            prediction in nats, `sum_squares` of its probabilities, or `top_entropy`, the entropy
            of its 20 most likely tokens in nats.

    Raises:
        ValueError: the name is malformed or taken, a statistic is unknown, or a parameter cannot
            have its name.

    Example:
        >>> def focal(log_p, gamma):
        ...     return -((1 - log_p.exp()) ** gamma) * log_p
        >>> register_loss("focal", focal, formula="−(1 − p)^gamma log p", parameters={"gamma": 2})
    """
    for statistic in statistics:
        if statistic not in STATISTICS:
            raise ValueError(
                f"the loss {name} asks for {statistic!r}. The statistics are "
                f"{', '.join(STATISTICS)}"
            )
    declared = {}
    for parameter, given in parameters.items():
        if not parameter.isidentifier() or parameter in ("name", KEEP):
            raise ValueError(f"the loss {name} cannot have a parameter named {parameter!r}")
        declared[parameter] = given if isinstance(given, Parameter) else Parameter(float(given))
    LOSSES.register(Loss(name, formula or name, value, declared, tuple(statistics)))


@dataclass(frozen=True, init=False)
class PositiveLoss:
    """What is minimized on positive tokens: a loss of `LOSSES` with its parameters.

    Args:
        kind: name of the loss; default `cross_entropy`.
        **parameters: parameters of the loss; default: as its entry declares them.

    Raises:
        ValueError: the loss or a parameter is unknown, or a number is outside its range.
    """

    kind: str
    parameters: Mapping[str, float] = field(hash=False)
    """All parameters of the loss."""

    def __init__(self, kind: str = DEFAULT_LOSS, **parameters: Any) -> None:
        if kind not in LOSSES:
            raise ValueError(LOSSES.unknown(kind))
        own = complete(f"the loss {kind}", LOSSES[kind].parameters, parameters)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "parameters", own)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics that are needed, names from `STATISTICS`."""
        return LOSSES[self.kind].statistics

    @property
    def ranking(self) -> StepRanking | None:
        """How the tokens of a step that are learned are chosen; None: all are."""
        return LOSSES[self.kind].ranking

    @property
    def keep(self) -> float:
        """Share of the tokens or samples of a step that are learned."""
        return self.parameters.get(KEEP, 1.0)

    def __call__(
        self,
        log_probs: Tensor,
        is_positive: Tensor,
        statistics: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """The loss of each positive token, 0 elsewhere.

        Args:
            log_probs: in nats, any shape.
            is_positive: same shape.
            statistics: by name, each of the same shape.

        Returns:
            The same shape. Other tokens receive no gradient, even if they are infinite.

        Raises:
            ValueError: a statistic is missing, or the function of a registered loss returns
                another shape.
        """
        if LOSSES[self.kind].value is _cross_entropy:
            return torch.where(is_positive, -log_probs, log_probs.new_zeros(()))
        missing = [name for name in self.statistics if name not in statistics]
        if missing:
            raise ValueError(f"the loss {self.kind} needs {missing[0]}")
        dtype = torch.promote_types(log_probs.dtype, torch.float32)
        # A token that is not positive may be infinite, and zero times infinity is NaN.
        inputs = [torch.where(is_positive, log_probs.to(dtype), -1.0)]
        for name in self.statistics:
            inputs.append(torch.where(is_positive, statistics[name].detach().to(dtype), 1.0))
        arguments = {name: x for name, x in self.parameters.items() if name != KEEP}
        values = LOSSES[self.kind].value(*inputs, **arguments)
        if not isinstance(values, Tensor) or values.shape != log_probs.shape:
            raise ValueError(
                f"the function of the loss {self.kind} must return a tensor of shape "
                f"{tuple(log_probs.shape)}, one value per token"
            )
        return torch.where(is_positive, values, 0.0)


CROSS_ENTROPY = PositiveLoss()


def kept_of_step(values: Tensor, keep: float) -> Tensor:
    """Which of some values are among the highest share `keep`.

    Args:
        values: of all tokens or samples of a step, shape (values,).
        keep: share, in (0, 1].

    Returns:
        Bool, the same shape: `round(keep * values)` of them, at least one if there is any; of
        equal values, the earlier.
    """
    num_kept = min(len(values), max(1, round(keep * len(values))))
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[values.argsort(descending=True, stable=True)[:num_kept]] = True
    return kept
