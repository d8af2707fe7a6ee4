"""Ways to unlearn a token: what is minimized on a negative token, one entry of `TERMS` each.

Input: log-probabilities of the negative tokens, under the base model too where a term compares
with it. Output: one value per token (or per sample), whose decrease lowers the probability of
the token. A term's parameters are declared in its entry and nowhere else. Knows nothing of models,
batches or weights of the two parts of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from forgetting.method.parameters import Parameter
from forgetting.registry import Registry

# A token that is certain in float32 has 1 - p = 0. Its terms are those of this log-probability.
LARGEST_LOG_PROB = -1e-7


@dataclass(frozen=True)
class Term:
    """A way to unlearn."""

    name: str
    formula: str
    """The value that is minimized, for people; p is the token's probability, r that under the base
    model, q that of the most likely other token, and n the number of negative tokens in a
    sample."""
    value: Callable[..., Tensor]
    """`value(log_p, **parameters)`, with more tensors after `log_p`, in this order: `base_log_p` if
    `needs_base`, `other_log_p` if `needs_best_other`, `count` if `needs_count`.

    Tensors have shape (tokens,) or (batch, length), float32 or finer. Returns one value per
    position. Positions without a negative token hold finite numbers, and their values are
    discarded. With `is_per_sample`, the tensors are 0 at those positions, and the function
    returns one value per row.
    """
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """Keyword arguments of `value`."""
    needs_base: bool = False
    """Whether log-probabilities under the base model are needed."""
    is_per_sample: bool = False
    """Whether the negative set is counted in samples instead of tokens."""
    needs_best_other: bool = False
    """Whether the log-probability of the most likely other token is needed. It has a gradient."""
    needs_count: bool = False
    """Whether the number of negative tokens of each sample is needed, shape (samples,), at least 1.
    For terms that are per sample."""


def _ga(log_p: Tensor) -> Tensor:
    return log_p


def _wga(log_p: Tensor, alpha: float) -> Tensor:
    return (alpha * log_p).detach().exp() * log_p


def _satimp(log_p: Tensor, beta1: float, beta2: float) -> Tensor:
    rest = -torch.expm1(log_p.detach().clamp(max=LARGEST_LOG_PROB))
    return (beta1 * log_p).detach().exp() * rest**beta2 * log_p


def _npo(log_p: Tensor, base_log_p: Tensor, beta: float) -> Tensor:
    return 2 / beta * log1p_exp(beta * (log_p - base_log_p).sum(-1))


def _tnpo(log_p: Tensor, base_log_p: Tensor, beta: float) -> Tensor:
    return 2 / beta * log1p_exp(beta * (log_p - base_log_p))


def _wtnpo(log_p: Tensor, base_log_p: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * log_p).detach().exp() * _tnpo(log_p, base_log_p, beta)


def _unlikelihood(log_p: Tensor) -> Tensor:
    # The gradient of a certain token is that of the largest value, not zero.
    log_p = log_p - (log_p - log_p.clamp(max=LARGEST_LOG_PROB)).detach()
    return -torch.log(-torch.expm1(log_p))


def _inverted_hinge(log_p: Tensor, other_log_p: Tensor) -> Tensor:
    return 1 + log_p.exp() - other_log_p.exp()


def _simnpo(log_p: Tensor, count: Tensor, simnpo_beta: float, simnpo_delta: float) -> Tensor:
    return 2 / simnpo_beta * log1p_exp(simnpo_beta * (log_p.sum(-1) / count + simnpo_delta))


def log1p_exp(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, exact on both sides; torch's softplus is linear above 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


_ALPHA = Parameter(1.0, "Exponent of the weight p^alpha.", at_least=0)
_BETA = Parameter(0.1, "Exponent of p / r, the ratio to the base model.", above=0)
_BETA1 = Parameter(5.0, "Exponent of the weight p^beta1.", at_least=0)
_BETA2 = Parameter(1.0, "Exponent of the weight (1 - p)^beta2.", at_least=0)

DEFAULT_TERM = "ga"
"""The paper's."""
TERMS: Registry[Term] = Registry(
    "term",
    "forgetting.terms",
    [
        # Gradient ascent on the cross-entropy, arXiv 2508.04329.
        Term(DEFAULT_TERM, "log p", _ga),
        # arXiv 2502.19301
        Term("wga", "p^alpha · log p", _wga, {"alpha": _ALPHA}),
        # Saturation and importance, as in OpenUnlearning.
        Term(
            "satimp",
            "p^beta1 · (1 − p)^beta2 · log p",
            _satimp,
            {"beta1": _BETA1, "beta2": _BETA2},
        ),
        # arXiv 2404.05868; P and R are products over the negative tokens of a sample.
        Term(
            "npo",
            "(2 / beta) · log(1 + (P / R)^beta), one value per sample",
            _npo,
            {"beta": _BETA},
            needs_base=True,
            is_per_sample=True,
        ),
        # arXiv 2502.19301
        Term(
            "tnpo",
            "(2 / beta) · log(1 + (p / r)^beta)",
            _tnpo,
            {"beta": _BETA},
            needs_base=True,
        ),
        # arXiv 2502.19301
        Term(
            "wtnpo",
            "p^alpha · (2 / beta) · log(1 + (p / r)^beta)",
            _wtnpo,
            {"alpha": _ALPHA, "beta": _BETA},
            needs_base=True,
        ),
        # arXiv 1908.04319
        Term("unlikelihood", "−log(1 − p)", _unlikelihood),
        # arXiv 2408.06621. Its margin is 1, so the hinge never cuts.
        Term("inverted_hinge", "1 + p − q", _inverted_hinge, needs_best_other=True),
        # arXiv 2410.07163; P is a product over the n negative tokens of a sample. The defaults
        # are its settings for forgetting a tenth of TOFU, and those of OpenUnlearning.
        Term(
            "simnpo",
            "(2 / simnpo_beta) · log(1 + exp(simnpo_beta · ((log P) / n + simnpo_delta))), "
            "one value per sample",
            _simnpo,
            {
                "simnpo_beta": Parameter(4.5, "Slope of the value over the mean log p.", above=0),
                "simnpo_delta": Parameter(
                    0.0, "Mean loss in nats above which unlearning a sample weakens.", at_least=0
                ),
            },
            is_per_sample=True,
            needs_count=True,
        ),
    ],
)
"""What is minimized on a negative token. Factors p^alpha, p^beta1 and (1 − p)^beta2 are weights
without gradient."""


BUILT_IN_PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {name: declared for term in TERMS.built_in for name, declared in term.parameters.items()}
)
"""The parameters of the built-in terms by name."""


def declared_parameters() -> dict[str, Parameter]:
    """The parameters of all terms by name. Two terms that share a name share its declaration."""
    return {name: p for term in TERMS.values() for name, p in term.parameters.items()}


def described(parameter: str) -> str:
    """Help on a parameter, with the terms that have it."""
    names = [term.name for term in TERMS.values() if parameter in term.parameters]
    return f"{declared_parameters()[parameter].help} For {', '.join(names)}.".strip()


def parameter_fields() -> list[tuple[str, type, Any]]:
    """A dataclass field for each parameter of the built-in terms, for `make_dataclass`."""
    return [
        (name, float, field(default=parameter.default, metadata={"help": parameter.help}))
        for name, parameter in BUILT_IN_PARAMETERS.items()
    ]


def register_term(
    name: str,
    value: Callable[..., Tensor],
    *,
    formula: str = "",
    parameters: Mapping[str, float | Parameter] = MappingProxyType({}),
    needs_base: bool = False,
) -> None:
    """Add a way to unlearn, which recipes and `ForgettingConfig` then accept as `term`.

    Args:
        name: lowercase letters, digits and underscores.
        value: `value(log_p, **parameters)` returns what is minimized on each negative token, a
            tensor of the shape of `log_p`. `log_p` holds natural log-probabilities, at most 0, and
            positions whose values are discarded. With `needs_base`, `value` also receives
            `base_log_p`, the log-probabilities under the base model, as second argument.
        formula: for people; p is the probability of the token, r that under the base model.
        parameters: defaults of the keyword arguments of `value`; a `Parameter` also has a range
            and a description. Recipes set them next to `term`.
        needs_base: whether `value` takes `base_log_p`.

    Raises:
        ValueError: the name is malformed or taken, or another term declares a parameter of the
            same name differently.

    Example:
        >>> def value(log_p, power):
        ...     return log_p.exp() ** power
        >>> register_term("power", value, formula="p^power", parameters={"power": 3})
    """
    # Not those of packages that are not imported yet: one of them may be importing right now.
    owners = {key: term for term in reversed(TERMS.loaded) for key in term.parameters}
    declared: dict[str, Parameter] = {}
    for parameter, given in parameters.items():
        one = given if isinstance(given, Parameter) else Parameter(float(given))
        if not parameter.isidentifier() or parameter in RESERVED:
            raise ValueError(f"the term {name} cannot have a parameter named {parameter!r}")
        owner = owners.get(parameter)
        if owner is not None and owner.parameters[parameter].default != one.default:
            raise ValueError(
                f"the term {name} declares {parameter} with default {one.default:g}, but "
                f"{owner.name} declares it with {owner.parameters[parameter].default:g}. Use "
                "another name for the parameter"
            )
        declared[parameter] = one if owner is None else owner.parameters[parameter]
    TERMS.register(Term(name, formula or name, value, declared, needs_base))


RESERVED = frozenset(
    {"schedule", "t_min", "t_max", "term", "floor", "kind", "normalization", "divergence_ratio"}
)
"""Names that recipes use for other settings of unlearning."""


@dataclass(frozen=True, init=False)
class ForgettingTerm:
    """What is minimized on negative tokens: a term of `TERMS` with its parameters.

    The weights `p^alpha`, `p^beta1` and `(1 - p)^beta2` of the built-in terms have no gradient.

    Args:
        kind: name of the term; default `ga`, the paper's gradient ascent.
        floor: probability below which a token is no longer unlearned, in (0, 1). Its log p is
            replaced by `log floor + softplus(log p - log floor)`, which is never less than
            log floor and whose gradient vanishes smoothly below it. Default: none.
        **parameters: parameters of the term; default: as its entry declares them. Parameters that
            only other terms have are checked and otherwise not used.

    Raises:
        ValueError: the term or a parameter is unknown, or a number is outside its range.
    """

    kind: str
    floor: float | None
    parameters: Mapping[str, float] = field(hash=False)
    """All parameters of the term."""

    def __init__(
        self, kind: str = DEFAULT_TERM, *, floor: float | None = None, **parameters: float
    ) -> None:
        if kind not in TERMS:
            raise ValueError(TERMS.unknown(kind))
        if floor is not None and not 0 < floor < 1:
            raise ValueError(f"floor must be a probability in (0, 1), got {floor}")
        own = {name: parameter.default for name, parameter in TERMS[kind].parameters.items()}
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "floor", floor)
        object.__setattr__(self, "parameters", {**own, **checked_parameters(kind, parameters)})

    @property
    def needs_base(self) -> bool:
        """Whether the base model's log-probabilities are needed."""
        return TERMS[self.kind].needs_base

    @property
    def is_per_sample(self) -> bool:
        """Whether the negative set is counted in samples instead of tokens."""
        return TERMS[self.kind].is_per_sample

    @property
    def needs_best_other(self) -> bool:
        """Whether the log-probability of the most likely other token is needed."""
        return TERMS[self.kind].needs_best_other

    def __call__(
        self,
        log_probs: Tensor,
        is_negative: Tensor,
        base_log_probs: Tensor | None = None,
        weights: Tensor | None = None,
        best_other_log_probs: Tensor | None = None,
    ) -> Tensor:
        """Sum of the term over the negative tokens, or over the samples that have some.

        Args:
            log_probs: in nats, shape (tokens,) or (batch, length). A term per sample takes one
                row per sample.
            is_negative: same shape.
            base_log_probs: same shape, under the base model.
            weights: same shape, weight of each token's value in the sum; default: all 1. The one
                value of a sample has the mean weight of its negative tokens.
            best_other_log_probs: same shape, of the most likely token other than each.

        Returns:
            A scalar, float32 or finer. Other tokens receive no gradient, even if they are infinite.

        Raises:
            ValueError: base_log_probs or best_other_log_probs are missing, or the function of a
                registered term returns another shape.
        """
        term = TERMS[self.kind]
        if term.needs_base and base_log_probs is None:
            raise ValueError(f"the term {self.kind} needs base_log_probs")
        if term.needs_best_other and best_other_log_probs is None:
            raise ValueError(f"the term {self.kind} needs best_other_log_probs")
        dtype = torch.promote_types(log_probs.dtype, torch.float32)
        # A token that is not negative may be infinite, and zero times infinity is NaN.
        log_p = torch.where(is_negative, log_probs.to(dtype), -1.0)
        if self.floor is not None:
            lowest = math.log(self.floor)
            log_p = lowest + log1p_exp(log_p - lowest)
        filler = -1.0
        if term.is_per_sample:
            filler, log_p = 0.0, torch.where(is_negative, log_p, 0.0)
        inputs = [log_p]
        if base_log_probs is not None and term.needs_base:
            inputs.append(torch.where(is_negative, base_log_probs.to(dtype), filler))
        if best_other_log_probs is not None and term.needs_best_other:
            inputs.append(torch.where(is_negative, best_other_log_probs.to(dtype), filler))
        if term.needs_count:
            inputs.append(is_negative.sum(-1).clamp(min=1))
        values = term.value(*inputs, **self.parameters)
        if term.is_per_sample:
            if weights is not None:
                num_negative = is_negative.sum(-1).clamp(min=1)
                weights = torch.where(is_negative, weights.to(dtype), 0.0).sum(-1) / num_negative
            is_negative = is_negative.any(-1)
        if not isinstance(values, Tensor) or values.shape != is_negative.shape:
            raise ValueError(
                f"the function of the term {self.kind} must return a tensor of shape "
                f"{tuple(is_negative.shape)}, one value per token"
            )
        if weights is not None:
            values = weights.to(dtype) * values
        return torch.where(is_negative, values, 0.0).sum()


def checked_parameters(kind: str, given: Mapping[str, Any]) -> dict[str, float]:
    """Those of some parameters that belong to a term, as numbers.

    Raises:
        ValueError: a parameter is unknown to all terms or outside its range; the message names it.
    """
    own = TERMS[kind].parameters
    # Listed once for all of them: a trainer does this in every step.
    known = {**declared_parameters(), **own}
    checked: dict[str, float] = {}
    for name, value in given.items():
        parameter = known.get(name)
        if parameter is None:
            raise ValueError(f"no term has a parameter {name!r}")
        try:
            number = parameter.check(value)
        except ValueError as error:
            raise ValueError(f"parameter {name} of the term {kind} {error}, got {value}") from error
        if name in own:
            checked[name] = number
    return checked


GRADIENT_ASCENT = ForgettingTerm()
