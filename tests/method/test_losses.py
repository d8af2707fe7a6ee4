"""Every loss against its formula in float64; rankings, corrections, and losses of users."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forgetting.method.loss import forgetting_loss
from forgetting.method.losses import (
    LOSSES,
    STATISTICS,
    PositiveLoss,
    kept_of_step,
    register_loss,
)
from forgetting.method.parameters import Parameter

# Value and derivative to x = log p of each loss per token, with its statistic s. Weights have no
# derivative.
MIN_WEIGHT, ALPHA = 0.1, 1.7
FORMULAS = {
    "cross_entropy": lambda x, s: (-x, -1.0),
    "dft": lambda x, s: (-max(math.exp(x), MIN_WEIGHT) * x, -max(math.exp(x), MIN_WEIGHT)),
    "deft": lambda x, s: ((1 - math.exp(x) ** s) / s, -(math.exp(x) ** s)),
    "eaft": lambda x, s: (-((s / math.log(20)) ** ALPHA) * x, -((s / math.log(20)) ** ALPHA)),
    "truncation": lambda x, s: (-x, -1.0),
    "rho1": lambda x, s: (-x, -1.0),
}
PARAMETERS = {"dft": {"min_weight": MIN_WEIGHT}, "eaft": {"alpha": ALPHA}}


def make_loss(kind):
    return PositiveLoss(kind, **PARAMETERS.get(kind, {}))


def statistics_of(kind, values):
    return dict.fromkeys(LOSSES[kind].statistics, values)


scored = st.lists(
    st.tuples(
        st.floats(-30, -1e-6), st.floats(0.01, 1), st.sampled_from([-1, 0, 1]), st.floats(0, 3)
    ),
    min_size=1,
    max_size=20,
)


def test_every_built_in_loss_is_tested():
    assert {loss.name for loss in LOSSES.built_in} == set(FORMULAS)


@pytest.mark.parametrize("kind", FORMULAS)
@given(scored, st.floats(0.01, 2))
def test_losses_and_their_gradients_are_their_formulas(kind, tokens, lam):
    x, s, weights = (torch.tensor([t[i] for t in tokens], dtype=torch.float64) for i in (0, 1, 3))
    polarity = torch.tensor([t[2] for t in tokens])
    x.requires_grad_()
    loss = forgetting_loss(
        x, polarity, lam, loss=make_loss(kind), weights=weights, statistics=statistics_of(kind, s)
    )
    loss.backward()
    num_positive = max(sum(t[2] > 0 for t in tokens), 1)
    num_negative = max(sum(t[2] < 0 for t in tokens), 1)
    expected, gradient = 0.0, []
    for log_p, statistic, sign, weight in tokens:
        value, slope = FORMULAS[kind](log_p, statistic)
        if sign < 0:
            value, slope = lam * log_p, lam
        share = 1 / num_positive if sign > 0 else 1 / num_negative if sign < 0 else 0.0
        expected += share * weight * value
        gradient.append(share * weight * slope)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert x.grad.tolist() == pytest.approx(gradient, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", FORMULAS)
def test_losses_are_finite_at_the_ends_and_raise_the_probability(kind, dtype):
    x = torch.tensor([-100.0, -1e-7, 0.0, -3.0], dtype=dtype, requires_grad=True)
    s = torch.tensor([1e-6, 1.0, 1e-3, 0.5], dtype=dtype)
    loss = PositiveLoss(kind)
    total = forgetting_loss(x, torch.ones(4), 0, loss=loss, statistics=statistics_of(kind, s))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(x.grad).all()
    assert (x.grad <= 0).all()


@pytest.mark.parametrize("kind", FORMULAS)
def test_losses_leave_other_tokens_alone_even_infinite_ones(kind):
    x = torch.tensor([-1.0, -math.inf, -2.0], requires_grad=True)
    s = torch.tensor([0.5, math.nan, 0.0])
    loss = forgetting_loss(
        x, torch.tensor([1, 0, -1]), 0.5, loss=make_loss(kind), statistics=statistics_of(kind, s)
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert x.grad[1] == 0
    assert x.grad[2] == 0.5
    assert torch.isfinite(x.grad).all()


def test_deft_approaches_cross_entropy_as_the_prediction_spreads():
    x = torch.tensor([-4.0, -0.1])
    spread = PositiveLoss("deft")(x, x < 0, {"sum_squares": torch.tensor([1e-6, 1e-6])})
    torch.testing.assert_close(spread, -x, rtol=1e-5, atol=1e-5)
    sure = PositiveLoss("deft")(x, x < 0, {"sum_squares": torch.ones(2)})
    torch.testing.assert_close(sure, 1 - x.exp())


def test_defaults_are_those_of_the_sources():
    random = np.random.default_rng(2)
    logits = random.normal(0, 3, (40, 60))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    token = random.integers(60, size=40)
    p = probs[np.arange(40), token]
    best = np.sort(probs)[:, -20:]
    best /= best.sum(1, keepdims=True)
    entropy = -(best * np.log(best)).sum(1)
    squares = (probs**2).sum(1)
    expected = {
        "eaft": -(entropy / np.log(20)) * np.log(p),
        "deft": (1 - p**squares) / squares,
        "dft": -p * np.log(p),
    }
    statistics = {"top_entropy": torch.tensor(entropy), "sum_squares": torch.tensor(squares)}
    every = torch.ones(40, dtype=torch.bool)
    for kind, values in expected.items():
        found = PositiveLoss(kind)(torch.tensor(np.log(p)), every, statistics)
        np.testing.assert_allclose(found.numpy(), values, rtol=1e-12)
    # As code of the authors of eaft has it.
    own = PositiveLoss("eaft")(torch.tensor(np.log(p)), every, statistics).numpy()
    np.testing.assert_allclose(own, -(entropy / 3) * np.log(p), rtol=2e-3)
    assert PositiveLoss("truncation").keep == 1 - 0.4
    assert PositiveLoss("rho1").keep == 0.6


def test_a_missing_statistic_is_named():
    with pytest.raises(ValueError, match="deft needs sum_squares"):
        forgetting_loss(torch.zeros(2), torch.ones(2), 0, loss=PositiveLoss("deft"))


@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=30),
    st.floats(0.01, 1),
)
def test_the_highest_share_is_kept_and_of_equal_values_the_earlier(values, keep):
    kept = kept_of_step(torch.tensor(values), keep).tolist()
    number = min(len(values), max(1, round(keep * len(values))))
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))[:number]
    assert [place for place, is_kept in enumerate(kept) if is_kept] == sorted(order)


def test_of_nothing_nothing_is_kept():
    assert kept_of_step(torch.zeros(0), 0.5).tolist() == []


def test_rankings_prefer_what_they_say():
    log_p, reference = torch.tensor([-1.0, -4.0, -4.0]), torch.tensor([-1.0, -4.5, -0.5])
    excess = LOSSES["rho1"].ranking.value(log_p, reference)
    # Loss minus reference loss: 0, -0.5, 3.5.
    assert excess.tolist() == [0.0, -0.5, 3.5]
    assert LOSSES["truncation"].ranking.value(log_p).argmax() == 0


@given(scored, st.floats(0, 1))
def test_corrections_are_added_to_positive_tokens_with_their_weights(tokens, c):
    x, extra, own = (torch.tensor([t[i] for t in tokens], dtype=torch.float64) for i in (0, 1, 3))
    polarity = torch.tensor([t[2] for t in tokens])
    extra.requires_grad_()
    loss = forgetting_loss(
        x, polarity, 0.0, corrections=extra, correction_weights=c * own, weights=1 - c * own / 3
    )
    loss.backward()
    count = max(int((polarity > 0).sum()), 1)
    expected = sum(
        ((1 - c * weight / 3) * -log_p + c * weight * value) / count
        for log_p, value, sign, weight in tokens
        if sign > 0
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    slopes = [c * weight / count if sign > 0 else 0.0 for _, _, sign, weight in tokens]
    assert extra.grad.tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-12)


def test_a_correction_of_weight_zero_has_no_effect_even_if_it_is_not_a_number():
    x = torch.tensor([-1.0, -2.0])
    plain = forgetting_loss(x, torch.ones(2), 0.0)
    corrected = forgetting_loss(
        x,
        torch.ones(2),
        0.0,
        corrections=torch.tensor([math.nan, math.inf]),
        correction_weights=torch.zeros(2),
    )
    assert torch.equal(plain, corrected)


def test_corrections_and_their_weights_need_each_other():
    with pytest.raises(ValueError, match="need each other"):
        forgetting_loss(torch.zeros(2), torch.ones(2), 0.0, corrections=torch.zeros(2))


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("focal", {}, "unknown loss 'focal'"),
        ("dft", {"alpha": 1.0}, "the loss dft has no parameter 'alpha'. Its parameters: min_w"),
        ("deft", {"alpha": 1.0}, "Its parameters: none"),
        ("dft", {"min_weight": 2}, "parameter min_weight of the loss dft must be at most 1, got 2"),
        ("rho1", {"keep": 0}, "must be above 0"),
    ],
)
def test_bad_losses_are_refused(kind, parameters, message):
    with pytest.raises(ValueError, match=message):
        PositiveLoss(kind, **parameters)


def test_a_registered_loss_has_its_statistics_and_parameters(registries):
    register_loss(
        "gated",
        lambda log_p, entropy, squares, power: -(entropy + squares) * power * log_p,
        parameters={"power": Parameter(2.0, "Factor.", above=0)},
        statistics=("entropy", "sum_squares"),
    )
    x = torch.tensor([-1.0, -2.0], requires_grad=True)
    found = {"entropy": torch.tensor([1.0, 3.0]), "sum_squares": torch.tensor([0.5, 0.25])}
    loss = forgetting_loss(
        x, torch.ones(2), 0.0, loss=PositiveLoss("gated", power=3.0), statistics=found
    )
    assert loss.item() == pytest.approx((1.5 * 3 * 1 + 3.25 * 3 * 2) / 2)
    assert PositiveLoss("gated").keep == 1.0
    assert set(STATISTICS) >= set(PositiveLoss("gated").statistics)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"statistics": ("rank",)}, "asks for 'rank'"),
        ({"parameters": {"keep": 1.0}}, "cannot have a parameter named 'keep'"),
        ({"parameters": {"a b": 1.0}}, "cannot have a parameter"),
    ],
)
def test_what_a_loss_cannot_have_is_refused(registries, given_, message):
    with pytest.raises(ValueError, match=message):
        register_loss("mine", lambda log_p, *others, **more: -log_p, **given_)
    assert "mine" not in LOSSES


def test_a_loss_returns_one_value_per_token(registries):
    register_loss("total", lambda log_p: -log_p.sum())
    with pytest.raises(ValueError, match=r"loss total must return .* shape \(2,\)"):
        PositiveLoss("total")(torch.zeros(2), torch.ones(2, dtype=torch.bool))
