"""Every term against its formula in float64, and terms that users register."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forgetting.method.loss import forgetting_loss
from forgetting.method.parameters import Parameter
from forgetting.method.terms import (
    BUILT_IN_PARAMETERS,
    TERMS,
    ForgettingTerm,
    register_term,
)


def log1p_exp(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# Value and derivative to x = log p of each term per token, with b = log r under the base model.
# Weights have no derivative.
ALPHA, BETA, BETA1, BETA2 = 0.7, 0.5, 2.0, 1.5
FORMULAS = {
    "ga": lambda x, b: (x, 1.0),
    "wga": lambda x, b: (math.exp(x) ** ALPHA * x, math.exp(x) ** ALPHA),
    "satimp": lambda x, b: (
        math.exp(x) ** BETA1 * (-math.expm1(x)) ** BETA2 * x,
        math.exp(x) ** BETA1 * (-math.expm1(x)) ** BETA2,
    ),
    "tnpo": lambda x, b: (
        2 / BETA * log1p_exp(BETA * (x - b)),
        2 * sigmoid(BETA * (x - b)),
    ),
    "wtnpo": lambda x, b: (
        math.exp(x) ** ALPHA * 2 / BETA * log1p_exp(BETA * (x - b)),
        math.exp(x) ** ALPHA * 2 * sigmoid(BETA * (x - b)),
    ),
    "unlikelihood": lambda x, b: (
        -math.log(-math.expm1(x)),
        math.exp(x) / -math.expm1(x),
    ),
}


def make_term(kind, floor=None):
    parameters = {"alpha": ALPHA, "beta": BETA, "beta1": BETA1, "beta2": BETA2}
    return ForgettingTerm(kind, floor=floor, **parameters)


scored = st.lists(
    st.tuples(st.floats(-100, -1e-6), st.floats(-100, -1e-6), st.sampled_from([-1, 0, 1])),
    min_size=1,
    max_size=20,
)


@pytest.mark.parametrize("kind", FORMULAS)
@given(scored, st.floats(0.01, 2))
def test_terms_and_their_gradients_are_their_formulas(kind, triples, lam):
    x, base = (torch.tensor([t[i] for t in triples], dtype=torch.float64) for i in (0, 1))
    polarity = torch.tensor([t[2] for t in triples])
    x.requires_grad_()
    loss = forgetting_loss(x, polarity, lam, term=make_term(kind), base_log_probs=base)
    loss.backward()
    num_positive = max(sum(t[2] > 0 for t in triples), 1)
    num_negative = max(sum(t[2] < 0 for t in triples), 1)
    expected, gradient = 0.0, []
    for log_p, log_r, sign in triples:
        value, slope = FORMULAS[kind](log_p, log_r)
        expected += -log_p / num_positive if sign > 0 else 0
        expected += lam * value / num_negative if sign < 0 else 0
        gradient.append(
            -1 / num_positive if sign > 0 else lam * slope / num_negative if sign < 0 else 0.0
        )
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert x.grad.tolist() == pytest.approx(gradient, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", FORMULAS)
@given(scored, st.lists(st.floats(0, 5), min_size=20, max_size=20), st.floats(0.01, 2))
def test_weights_scale_each_token_in_value_and_gradient(kind, triples, numbers, lam):
    x, base = (torch.tensor([t[i] for t in triples], dtype=torch.float64) for i in (0, 1))
    polarity = torch.tensor([t[2] for t in triples])
    weights = torch.tensor(numbers[: len(triples)], dtype=torch.float64)
    x.requires_grad_()
    loss = forgetting_loss(
        x, polarity, lam, term=make_term(kind), base_log_probs=base, weights=weights
    )
    loss.backward()
    # Counts are of tokens, whatever their weights.
    num_positive = max(sum(t[2] > 0 for t in triples), 1)
    num_negative = max(sum(t[2] < 0 for t in triples), 1)
    expected, gradient = 0.0, []
    for (log_p, log_r, sign), weight in zip(triples, weights.tolist(), strict=True):
        value, slope = FORMULAS[kind](log_p, log_r)
        share = 1 / num_positive if sign > 0 else lam / num_negative if sign < 0 else 0.0
        expected += weight * share * (-log_p if sign > 0 else value)
        gradient.append(weight * share * (-1 if sign > 0 else slope))
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert x.grad.tolist() == pytest.approx(gradient, rel=1e-9, abs=1e-12)


def test_npo_is_one_value_a_sample_over_its_negative_tokens():
    x = torch.tensor(
        [[-1.0, -2.0, -0.5], [-3.0, -1.0, -4.0], [-2.0, -2.0, -2.0]],
        dtype=torch.float64,
        requires_grad=True,
    )
    base = torch.tensor(
        [[-2.0, -1.0, -9.0], [-1.0, -1.5, -2.0], [-1.0, -1.0, -1.0]], dtype=torch.float64
    )
    polarity = torch.tensor([[-1, -1, 1], [0, -1, 1], [1, 1, 0]])
    loss = forgetting_loss(x, polarity, 0.3, term=make_term("npo"), base_log_probs=base)
    loss.backward()
    # log P - log R of the first two samples: (-1 - 2) - (-2 - 1) = 0 and -1 + 1.5 = 0.5.
    value = sum(2 / BETA * log1p_exp(BETA * ratio) for ratio in (0.0, 0.5)) / 2
    assert loss.item() == pytest.approx((0.5 + 4 + 2 + 2) / 4 + 0.3 * value, rel=1e-12)
    first, second = (0.3 * 2 * sigmoid(BETA * ratio) / 2 for ratio in (0.0, 0.5))
    expected = [[first, first, -0.25], [0, second, -0.25], [-0.25, -0.25, 0]]
    for row, of_row in zip(x.grad.tolist(), expected, strict=True):
        assert row == pytest.approx(of_row, rel=1e-12)


def test_the_value_of_a_sample_has_the_mean_weight_of_its_negative_tokens():
    x = torch.tensor(
        [[-1.0, -2.0, -0.5], [-3.0, -1.0, -4.0]], dtype=torch.float64, requires_grad=True
    )
    base = torch.tensor([[-2.0, -1.0, -9.0], [-1.0, -1.5, -2.0]], dtype=torch.float64)
    polarity = torch.tensor([[-1, -1, 1], [0, -1, 1]])
    weights = torch.tensor([[0.5, 1.0, 3.0], [9.0, 2.0, 0.25]], dtype=torch.float64)
    loss = forgetting_loss(
        x, polarity, 0.3, term=make_term("npo"), base_log_probs=base, weights=weights
    )
    loss.backward()
    # As above, with 0.75 and 2 times the values of the two samples.
    values = [2 / BETA * log1p_exp(BETA * ratio) for ratio in (0.0, 0.5)]
    value = (0.75 * values[0] + 2 * values[1]) / 2
    assert loss.item() == pytest.approx((3 * 0.5 + 0.25 * 4) / 2 + 0.3 * value, rel=1e-12)
    first = 0.75 * 0.3 * 2 * sigmoid(0.0) / 2
    second = 2 * 0.3 * 2 * sigmoid(BETA * 0.5) / 2
    expected = [[first, first, -1.5], [0, second, -0.125]]
    for row, of_row in zip(x.grad.tolist(), expected, strict=True):
        assert row == pytest.approx(of_row, rel=1e-12)


def simnpo(x, negative, beta, delta):
    """SimNPO of one sample, written with log sigma as in the paper, and its derivative with respect
    to the mean log p."""
    mean = sum(value for value, is_one in zip(x, negative, strict=True) if is_one) / sum(negative)
    return -2 / beta * math.log(sigmoid(beta * (-mean - delta))), 2 * sigmoid(beta * (mean + delta))


@pytest.mark.parametrize(("beta", "delta"), [(0.7, 0.0), (2.5, 0.4)])
def test_simnpo_is_one_value_a_sample_by_the_mean_of_its_negative_tokens(beta, delta):
    rows = [[-1.0, -2.0, -0.5], [-3.0, 0.0, -4.0], [-2.0, -2.0, -2.0]]
    x = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    polarity = torch.tensor([[-1, -1, 1], [0, -1, -1], [1, 1, 0]])
    term = ForgettingTerm("simnpo", simnpo_beta=beta, simnpo_delta=delta)
    loss = forgetting_loss(x, polarity, 0.3, term=term)
    loss.backward()
    found = [
        simnpo(row, [sign < 0 for sign in signs], beta, delta)
        for row, signs in zip(rows[:2], polarity.tolist(), strict=False)
    ]
    value = sum(value for value, _ in found) / 2
    assert loss.item() == pytest.approx((0.5 + 2 + 2) / 3 + 0.3 * value, rel=1e-12)
    # Two of the tokens of each sample are negative, and two samples have negative tokens.
    first, second = (0.3 * slope / 2 / 2 for _, slope in found)
    expected = [[first, first, -1 / 3], [0, second, second], [-1 / 3, -1 / 3, 0]]
    for row, of_row in zip(x.grad.tolist(), expected, strict=True):
        assert row == pytest.approx(of_row, rel=1e-12)


def test_the_defaults_of_simnpo_are_those_of_its_authors():
    assert ForgettingTerm("simnpo").parameters == {"simnpo_beta": 4.5, "simnpo_delta": 0}
    x = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    found = ForgettingTerm("simnpo")(x, torch.ones(1, 2, dtype=torch.bool)).item()
    assert found == pytest.approx(simnpo([-1.0, -2.0], [1, 1], 4.5, 0)[0], rel=1e-12)


def test_the_inverted_hinge_and_its_gradient_to_logits_in_float64():
    """Through a softmax: the token loses, and its strongest rival wins."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 9, dtype=torch.float64, generator=random).requires_grad_()
    targets = torch.tensor([0, 3, 8, 1, 2, 5])
    log_probs = logits.log_softmax(1)
    rows = torch.arange(6)
    hidden = log_probs.detach().clone()
    hidden[rows, targets] = -math.inf
    best = hidden.argmax(1)
    term = ForgettingTerm("inverted_hinge")
    polarity = torch.tensor([-1, -1, 1, -1, 0, -1])
    loss = forgetting_loss(
        log_probs[rows, targets],
        polarity,
        0.5,
        term=term,
        best_other_log_probs=log_probs[rows, best],
    )
    loss.backward()
    # By hand: dp_y/dz_v = p_y ([v = y] - p_v).
    p = logits.detach().softmax(1)
    expected = torch.zeros_like(p)
    value = -torch.log(p[2, targets[2]])
    expected[2] = p[2]
    expected[2, targets[2]] -= 1
    for row in (0, 1, 3, 5):
        own, other = p[row, targets[row]], p[row, best[row]]
        value = value + 0.5 / 4 * (1 + own - other)
        slope = -p[row] * (own - other)
        slope[targets[row]] += own
        slope[best[row]] -= other
        expected[row] = 0.5 / 4 * slope
    assert loss.item() == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-12)


def test_the_inverted_hinge_needs_the_best_other_token():
    with pytest.raises(ValueError, match="inverted_hinge needs best_other_log_probs"):
        forgetting_loss(torch.zeros(2), -torch.ones(2), 0.1, term=ForgettingTerm("inverted_hinge"))


ALL_TERMS = [*FORMULAS, "npo", "simnpo", "inverted_hinge"]


def test_every_built_in_term_is_tested():
    assert {term.name for term in TERMS.built_in} == set(ALL_TERMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ALL_TERMS)
@pytest.mark.parametrize("floor", [None, 1e-4])
def test_terms_are_finite_at_the_ends(kind, dtype, floor):
    x = torch.tensor([[-100.0, -1e-7, 0.0, -3.0]], dtype=dtype, requires_grad=True)
    base = torch.tensor([[-1e-7, -100.0, 0.0, -3.0]], dtype=dtype)
    polarity = -torch.ones(1, 4)
    term = make_term(kind, floor)
    loss = forgetting_loss(
        x, polarity, 0.25, term=term, base_log_probs=base, best_other_log_probs=base
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    assert (x.grad >= 0).all()


@pytest.mark.parametrize("kind", ALL_TERMS)
def test_terms_leave_other_tokens_alone_even_infinite_ones(kind):
    x = torch.tensor([[-1.0, -math.inf, -2.0]], requires_grad=True)
    base = torch.tensor([[-1.5, math.nan, -math.inf]])
    term = make_term(kind)
    polarity = torch.tensor([[-1, 0, 1]])
    loss = forgetting_loss(
        x, polarity, 0.5, term=term, base_log_probs=base, best_other_log_probs=base
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert x.grad[0, 1] == 0
    assert x.grad[0, 2] == -1
    assert torch.isfinite(x.grad).all()


def test_below_the_floor_the_gradient_vanishes_smoothly_and_the_loss_is_bounded():
    floor = 1e-3
    lowest = math.log(floor)
    x = torch.linspace(-60, -0.01, 400, dtype=torch.float64, requires_grad=True)
    term = ForgettingTerm(floor=floor)
    guarded = torch.stack([term(v[None], torch.tensor([True])) for v in x])
    guarded.sum().backward()
    assert guarded.min() >= lowest
    expected = [sigmoid(v - lowest) for v in x.tolist()]
    assert x.grad.tolist() == pytest.approx(expected, rel=1e-9)
    assert (x.grad.diff() > 0).all()
    assert x.grad[0] < 1e-20
    assert x.grad[-1] > 0.99


@pytest.mark.parametrize("kind", ALL_TERMS)
def test_unlearning_lowers_the_probability(kind):
    x = torch.tensor([[-0.7, -2.0]], requires_grad=True)
    base = torch.tensor([[-1.0, -1.0]])
    term = make_term(kind)
    forgetting_loss(
        x, -torch.ones(1, 2), 1.0, term=term, base_log_probs=base, best_other_log_probs=base
    ).backward()
    assert (x.grad > 0).all()


@pytest.mark.parametrize("kind", ["npo", "tnpo", "wtnpo"])
def test_a_term_that_compares_with_the_base_needs_it(kind):
    with pytest.raises(ValueError, match="needs base_log_probs"):
        forgetting_loss(torch.zeros(2), -torch.ones(2), 0.1, term=make_term(kind))


@pytest.mark.parametrize(
    "bad",
    [{"kind": "x"}, {"alpha": -1.0}, {"beta": 0.0}, {"beta2": math.inf}, {"floor": 1.0}],
)
def test_bad_terms_are_refused(bad):
    with pytest.raises(ValueError, match=r"term|floor"):
        ForgettingTerm(**bad)


def test_parameters_are_those_of_the_entry():
    assert ForgettingTerm("wtnpo", beta=0.3).parameters == {"alpha": 1.0, "beta": 0.3}
    # Sections of a recipe may hold parameters of other terms: checked, and not used.
    assert ForgettingTerm("ga", beta=0.3).parameters == {}
    with pytest.raises(ValueError, match="no term has a parameter 'gama'"):
        ForgettingTerm("wga", gama=1.0)


def test_terms_that_share_a_parameter_share_its_declaration():
    for term in TERMS.built_in:
        for name, declared in term.parameters.items():
            assert declared is BUILT_IN_PARAMETERS[name]


@pytest.fixture
def squared(registries):
    """A registered term with a parameter: `scale * p^2`, and its derivative to log p."""
    register_term(
        "squared",
        lambda log_p, scale, beta: scale * (2 * log_p).exp(),
        formula="scale p^2",
        parameters={"scale": Parameter(1.0, "Factor.", above=0), "beta": 0.1},
    )
    return lambda x: (math.exp(2 * x), 2 * math.exp(2 * x))


def test_a_registered_term_is_one_part_of_the_loss(registries):
    register_term("gap", lambda log_p, base_log_p: log_p - base_log_p, needs_base=True)
    x = torch.tensor([-1.0, -2.0, -3.0, -math.inf], dtype=torch.float64)
    base = torch.tensor([-1.5, -1.0, -3.5, math.nan], dtype=torch.float64)
    polarity = torch.tensor([1, -1, -1, 0])
    loss = forgetting_loss(x, polarity, 0.5, term=ForgettingTerm("gap"), base_log_probs=base)
    assert loss.item() == pytest.approx(1.0 + 0.5 * ((-2.0 + 1.0) + (-3.0 + 3.5)) / 2)
    with pytest.raises(ValueError, match="gap needs base_log_probs"):
        forgetting_loss(x, polarity, 0.5, term=ForgettingTerm("gap"))


def test_a_registered_term_has_its_parameters(squared):
    x = torch.tensor([-0.5, -3.0], dtype=torch.float64, requires_grad=True)
    value = ForgettingTerm("squared", scale=3.0)(x, torch.tensor([True, False]))
    value.backward()
    expected, slope = squared(-0.5)
    assert value.item() == pytest.approx(3 * expected)
    assert x.grad.tolist() == pytest.approx([3 * slope, 0])
    with pytest.raises(ValueError, match=r"scale .* must be above 0"):
        ForgettingTerm("squared", scale=0)


def test_a_term_returns_one_value_per_token(registries):
    register_term("total", lambda log_p: log_p.sum())
    with pytest.raises(ValueError, match=r"term total must return .* shape \(2,\)"):
        ForgettingTerm("total")(torch.zeros(2), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"beta": 0.2}, "another name"),
        ({"t_max": 0.2}, "cannot have a parameter named 't_max'"),
        ({"a b": 0.2}, "cannot have a parameter"),
    ],
)
def test_parameters_that_would_be_ambiguous_are_refused(registries, parameters, reason):
    with pytest.raises(ValueError, match=reason):
        register_term("mine", lambda log_p, **given: log_p, parameters=parameters)
    assert "mine" not in TERMS


@pytest.mark.parametrize(
    ("value", "reason"),
    [("x", "finite"), (True, "finite"), (math.inf, "finite"), (0, "above 0"), (3, "at most 2")],
)
def test_a_parameter_knows_its_range(value, reason):
    parameter = Parameter(1.0, above=0, at_most=2)
    assert parameter.check("1e-1") == 0.1
    with pytest.raises(ValueError, match=reason):
        parameter.check(value)
