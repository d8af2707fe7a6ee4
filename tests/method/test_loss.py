"""The loss against equation 8, written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forgetting.method.loss import forgetting_loss, polarity_sums


def equation_8(log_probs, polarity, lam):
    """Loss and gradient, token by token, in Python floats."""
    positive = [i for i, p in enumerate(polarity) if p > 0]
    negative = [i for i, p in enumerate(polarity) if p < 0]
    loss = 0.0
    gradient = [0.0] * len(log_probs)
    for i in positive:
        loss += -log_probs[i] / len(positive)
        gradient[i] = -1 / len(positive)
    for i in negative:
        loss -= lam * -log_probs[i] / len(negative)
        gradient[i] = lam / len(negative)
    return loss, gradient


tokens = st.lists(
    st.tuples(st.floats(-100, -1e-7), st.sampled_from([-1, 0, 1])), min_size=1, max_size=40
)


@given(tokens, st.floats(0, 10))
def test_loss_and_gradient_are_equation_8(pairs, lam):
    log_probs = torch.tensor([p for p, _ in pairs], dtype=torch.float64, requires_grad=True)
    polarity = torch.tensor([s for _, s in pairs], dtype=torch.int8)
    loss = forgetting_loss(log_probs, polarity, lam)
    loss.backward()
    expected, gradient = equation_8(log_probs.tolist(), polarity.tolist(), lam)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert log_probs.grad.tolist() == pytest.approx(gradient, rel=1e-12, abs=1e-15)


@given(tokens)
def test_all_positive_is_mean_cross_entropy(pairs):
    log_probs = torch.tensor([p for p, _ in pairs], dtype=torch.float64)
    loss = forgetting_loss(log_probs, torch.ones_like(log_probs), 0.3)
    assert loss.item() == pytest.approx(-sum(p for p, _ in pairs) / len(pairs))


@given(tokens)
def test_lambda_zero_ignores_the_negatives(pairs):
    log_probs = torch.tensor([p for p, _ in pairs], dtype=torch.float64)
    polarity = torch.tensor([s for _, s in pairs])
    ignored = torch.where(polarity < 0, 0, polarity)
    assert forgetting_loss(log_probs, polarity, 0.0) == forgetting_loss(log_probs, ignored, 0.7)


@given(tokens, st.floats(0, 1), st.randoms(use_true_random=False))
def test_order_of_tokens_changes_nothing(pairs, lam, random):
    shuffled = random.sample(pairs, len(pairs))
    first, second = (
        forgetting_loss(
            torch.tensor([p for p, _ in some], dtype=torch.float64),
            torch.tensor([s for _, s in some]),
            lam,
        ).item()
        for some in (pairs, shuffled)
    )
    assert first == pytest.approx(second, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("polarity", [[1, 1, 1], [-1, -1, -1], [0, 0, 0], [1, -1, 0]])
def test_finite_at_the_ends_and_for_empty_sets(dtype, polarity):
    log_probs = torch.tensor([-100.0, -1e-7, -3.0], dtype=dtype, requires_grad=True)
    loss = forgetting_loss(log_probs, torch.tensor(polarity), 0.25)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(log_probs.grad).all()


def test_a_set_that_is_empty_contributes_zero():
    log_probs = torch.tensor([-2.0, -4.0])
    assert forgetting_loss(log_probs, torch.tensor([1, 1]), 0.5).item() == 3.0
    assert forgetting_loss(log_probs, torch.tensor([-1, -1]), 0.5).item() == -1.5
    assert forgetting_loss(log_probs, torch.tensor([0, 0]), 0.5).item() == 0.0


def test_parts_of_a_step_add_up_with_the_counts_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(4, 6, generator=generator, dtype=torch.float64) * 5
    polarity = torch.randint(-1, 2, (4, 6), generator=generator)
    whole = forgetting_loss(log_probs, polarity, 0.25)
    counts = {"num_positive": (polarity > 0).sum(), "num_negative": (polarity < 0).sum()}
    parts = sum(
        forgetting_loss(log_probs[i : i + 1], polarity[i : i + 1], 0.25, **counts) for i in range(4)
    )
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)


def test_ignored_infinities_do_not_reach_loss_or_gradient():
    log_probs = torch.tensor([-1.0, -math.inf], requires_grad=True)
    loss = forgetting_loss(log_probs, torch.tensor([1, 0]), 0.5)
    loss.backward()
    assert loss.item() == 1.0
    assert log_probs.grad.tolist() == [-1.0, 0.0]


def test_sums_are_of_cross_entropy():
    positive, negative = polarity_sums(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([1, -1, -1]))
    assert (positive.item(), negative.item()) == (1.0, 6.0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        forgetting_loss(torch.zeros(3), torch.zeros(2), 0.1)


@pytest.mark.parametrize("lam", [-0.1, math.nan, math.inf])
def test_lambda_must_be_a_finite_weight(lam):
    with pytest.raises(ValueError, match="lam"):
        forgetting_loss(torch.zeros(1), torch.ones(1), lam)
