"""The cross-entropy to alternatives: values and gradients of a float64 computation by autograd."""

import math

import pytest
import torch
from torch import nn

from forgetting.models import redistribution
from forgetting.models.lm_head import Head
from forgetting.models.redistribution import Alternatives, cross_entropy
from tests.models.small_head import HIDDEN, VOCABULARY, Wrapped, make


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(redistribution, "ROWS_PER_TILE", 4)


def draw(positions, num_kept=5, size=3.0, vocabulary=VOCABULARY):
    """Hidden states, targets, alternatives without the target, and weights."""
    generator = torch.Generator().manual_seed(2)
    hidden = size * torch.randn(positions, HIDDEN, generator=generator)
    orders = torch.stack(
        [torch.randperm(vocabulary, generator=generator) for _ in range(positions)]
    )
    log_probs = torch.randn(positions, num_kept + 1, generator=generator).log_softmax(1)
    weights = torch.randn(positions, generator=generator)
    alternatives = Alternatives(orders[:, 1 : num_kept + 1].contiguous(), log_probs)
    return hidden.requires_grad_(), orders[:, 0].contiguous(), alternatives, weights


def expected(linear, hidden, targets, alternatives, weights, scale=1.0, softcap=None):
    """Values, and gradients of their weighted sum. The rest is 1 minus the other probabilities."""
    parameters = {n: p.detach().double().requires_grad_() for n, p in linear.named_parameters()}
    hidden = hidden.detach().double().requires_grad_()
    logits = scale * (hidden @ parameters["weight"].T + parameters.get("bias", 0.0))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    probs = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    values = []
    for row in range(len(targets)):
        kept = probs[row, alternatives.ids[row]]
        rest = 1 - kept.sum() - probs[row, targets[row]]
        q = alternatives.log_probs[row].double().exp()
        values.append(-(q[:-1] * torch.log(kept)).sum() - q[-1] * torch.log(rest))
    values = torch.stack(values)
    (weights.double() * values).sum().backward()
    return values.detach(), hidden.grad, {name: p.grad for name, p in parameters.items()}


@pytest.mark.parametrize("positions", [1, 4, 11])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"scale": 0.3},
        {"scale": 2.0, "softcap": 5.0},
        {"bias": True, "softcap": 3.0},
        {"wrapped": True, "bias": True, "scale": 0.5, "softcap": 4.0},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_float64(positions, options, trains):
    head, linear = make(**options, trains=trains)
    hidden, targets, alternatives, weights = draw(positions)
    values, grad_hidden, gradients = expected(
        linear, hidden, targets, alternatives, weights, head.scale, head.softcap
    )
    found = cross_entropy(head, hidden, targets, alternatives)
    (weights * found).sum().backward()
    torch.testing.assert_close(found.detach().double(), values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), grad_hidden, rtol=1e-5, atol=1e-5)
    for name, parameter in linear.named_parameters():
        if trains:
            torch.testing.assert_close(
                parameter.grad.double(), gradients[name], rtol=1e-5, atol=1e-5
            )
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_minimum_is_where_the_buckets_of_p_are_those_of_q(wrapped):
    """Logits are the hidden states themselves; q is that of some logits without the target."""
    linear = nn.Linear(HIDDEN, HIDDEN, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.eye(HIDDEN))
    head = Head(nn.Identity(), Wrapped(linear) if wrapped else linear, 1.0, None)
    logits = torch.tensor([[-60.0, 2.0, 1.0, 0.5, -1.0, 0.0, 0.3, -2.0]], requires_grad=True)
    target, ids = torch.tensor([0]), torch.tensor([[1, 2, 4]])
    p = logits.detach().double().softmax(1)[0]
    q = torch.cat([p[ids[0]], 1 - p[ids[0]].sum(0, keepdim=True)])
    alternatives = Alternatives(ids, q.log()[None].float())
    least = cross_entropy(head, logits, target, alternatives)
    least.sum().backward()
    assert least.item() == pytest.approx(-(q * q.log()).sum().item(), abs=1e-6)
    assert logits.grad.abs().max() < 1e-6
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = logits.detach() + 3 * torch.randn(1, HIDDEN, generator=random)
        assert cross_entropy(head, other, target, alternatives) > least
    # Within the rest, probability may move freely.
    moved = torch.tensor([[-60.0, 2.0, 1.0, 0.0, -1.0, 0.5, 0.3, -2.0]])
    assert cross_entropy(head, moved, target, alternatives).item() == pytest.approx(least.item())


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_extreme_logits_stay_finite(wrapped, size):
    head, _ = make(trains=False, wrapped=wrapped)
    hidden, targets, alternatives, _ = draw(12, size=size)
    found = cross_entropy(head, hidden, targets, alternatives)
    found.sum().backward()
    assert found.isfinite().all()
    assert hidden.grad.isfinite().all()
    q = alternatives.log_probs
    assert (found >= -(q.exp() * q).sum(1) - 1e-5).all()


@pytest.mark.parametrize("wrapped", [True, False])
def test_without_a_rest_only_the_named_tokens_count(wrapped):
    head, linear = make(vocabulary=6, wrapped=wrapped, trains=False)
    hidden, targets, alternatives, weights = draw(7, num_kept=5, vocabulary=6)
    whole = alternatives.log_probs.clone()
    whole[:, -1] = -math.inf
    alternatives = Alternatives(alternatives.ids, whole.log_softmax(1))
    found = cross_entropy(head, hidden, targets, alternatives)
    (weights * found).sum().backward()
    exact = hidden.detach().double().requires_grad_()
    log_probs = (exact @ linear.weight.double().T).log_softmax(1)
    q = alternatives.log_probs[:, :-1].double().exp()
    values = -(q * log_probs.gather(1, alternatives.ids)).sum(1)
    (weights.double() * values).sum().backward()
    torch.testing.assert_close(found.detach().double(), values.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_q_is_normalized():
    head, _ = make(trains=False)
    hidden, targets, alternatives, _ = draw(5)
    scaled = Alternatives(alternatives.ids, alternatives.log_probs + 0.25)
    first, second = (cross_entropy(head, hidden, targets, a) for a in (alternatives, scaled))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("wrapped", [True, False])
def test_no_positions_give_no_values_and_a_gradient_of_zero(wrapped):
    head, linear = make(wrapped=wrapped)
    hidden, targets, alternatives, _ = draw(3)
    none = Alternatives(alternatives.ids[:0], alternatives.log_probs[:0])
    found = cross_entropy(head, hidden[:0], targets[:0], none)
    assert found.shape == (0,)
    found.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in linear.parameters())


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_weights_have_a_float32_softmax(trains, autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    head, linear = make(trains=trains)
    linear.to(dtype)
    hidden, targets, alternatives, weights = draw(9)
    hidden = hidden.detach().to(dtype).requires_grad_()
    rounded = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    rounded.weight.data = linear.weight.data.bfloat16().float()
    values, grad_hidden, _ = expected(
        rounded, hidden.bfloat16().float(), targets, alternatives, weights
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = cross_entropy(head, hidden, targets, alternatives)
    (weights * found).sum().backward()
    assert found.dtype == torch.float32
    assert hidden.grad.dtype == dtype
    torch.testing.assert_close(found.detach().double(), values, rtol=0.02, atol=0.05)
    torch.testing.assert_close(hidden.grad.double(), grad_hidden, rtol=0.02, atol=0.05)
