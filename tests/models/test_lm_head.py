"""The head in tiles: values and gradients of a float64 softmax written out here."""

import math

import pytest
import torch
from torch import nn

from forgetting.models import lm_head as head_module
from forgetting.models.lm_head import predict
from tests.models.small_head import HIDDEN, VOCABULARY, make


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(head_module, "ROWS_PER_TILE", 4)


def draw(positions, dtype=torch.float32, size=3.0):
    generator = torch.Generator().manual_seed(2)
    hidden = size * torch.randn(positions, HIDDEN, generator=generator)
    targets = torch.randint(0, VOCABULARY, (positions,), generator=generator)
    weights = torch.randn(positions, generator=generator)
    return hidden.to(dtype).requires_grad_(), targets, weights


def expected(linear, hidden, targets, weights, scale, softcap):
    """Log-probabilities, entropy, and gradients of their weighted sum, in float64 by autograd."""
    parameters = {n: p.detach().double().requires_grad_() for n, p in linear.named_parameters()}
    hidden = hidden.detach().double().requires_grad_()
    logits = scale * (hidden @ parameters["weight"].T + parameters.get("bias", 0.0))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    probs = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    log_probs = torch.log(probs[torch.arange(len(targets)), targets])
    (weights.double() * log_probs).sum().backward()
    entropy = -(probs * torch.log(probs)).sum(1)
    gradients = {name: p.grad for name, p in parameters.items()}
    return log_probs.detach(), entropy.detach(), hidden.grad, gradients


every_head = pytest.mark.parametrize(
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


@pytest.mark.parametrize("positions", [1, 4, 11])
@every_head
@pytest.mark.parametrize("trains", [True, False])
def test_values_and_gradients_are_those_of_the_softmax(positions, options, trains):
    head, linear = make(**options, trains=trains)
    hidden, targets, weights = draw(positions)
    log_probs, entropy, grad_hidden, gradients = expected(
        linear, hidden, targets, weights, head.scale, head.softcap
    )
    found = predict(head, hidden, targets)
    (weights * found.log_probs).sum().backward()
    torch.testing.assert_close(found.log_probs.detach().double(), log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), grad_hidden, rtol=1e-5, atol=1e-5)
    for name, parameter in linear.named_parameters():
        if trains:
            torch.testing.assert_close(
                parameter.grad.double(), gradients[name], rtol=1e-5, atol=1e-5
            )
        else:
            assert parameter.grad is None


def test_only_the_weights_may_train():
    head, linear = make()
    hidden, targets, weights = draw(9)
    *_, gradients = expected(linear, hidden, targets, weights, 1.0, None)
    (weights * predict(head, hidden.detach(), targets).log_probs).sum().backward()
    assert hidden.grad is None
    torch.testing.assert_close(
        linear.weight.grad.double(), gradients["weight"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_weights_have_a_float32_softmax(trains, autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    head, linear = make(trains=trains, dtype=dtype)
    hidden, targets, weights = draw(9, dtype)
    rounded = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    rounded.weight.data = linear.weight.data.bfloat16().float()
    # The products come out of the matrix multiplication as bfloat16; the rest is float32.
    log_probs, _, grad_hidden, gradients = expected(
        rounded, hidden.bfloat16().float(), targets, weights, 1.0, None
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = predict(head, hidden, targets)
    (weights * found.log_probs).sum().backward()
    assert found.log_probs.dtype == torch.float32
    tolerance = {"rtol": 0.02, "atol": 0.03}
    torch.testing.assert_close(found.log_probs.detach().double(), log_probs, **tolerance)
    assert hidden.grad.dtype == dtype
    torch.testing.assert_close(hidden.grad.double(), grad_hidden, **tolerance)
    if trains:
        assert linear.weight.grad.dtype == dtype
        torch.testing.assert_close(
            linear.weight.grad.double(), gradients["weight"], rtol=0.02, atol=0.1
        )


@pytest.mark.parametrize("wrapped", [True, False])
def test_what_is_greedy_is_the_largest_logit(wrapped):
    head, linear = make(wrapped=wrapped, trains=False)
    hidden, targets, _ = draw(40)
    best = linear(hidden).argmax(1)
    targets[::2] = best[::2]
    found = predict(head, hidden.detach(), targets)
    assert found.is_greedy.tolist() == (targets == best).tolist()


def test_extreme_logits_stay_finite():
    head, linear = make(trains=False)
    hidden, targets, _ = draw(12, size=1e4)
    found = predict(head, hidden, targets)
    found.log_probs.sum().backward()
    assert found.log_probs.isfinite().all()
    assert found.log_probs.min() < -1e3
    assert found.entropy.isfinite().all()
    assert hidden.grad.isfinite().all()
    # A target that is certain has log-probability 0, not a rounding error above it.
    sure = predict(head, hidden, linear(hidden).argmax(1)).log_probs
    assert sure.max() <= 0


@pytest.mark.parametrize("wrapped", [True, False])
def test_no_targets_give_no_predictions_and_a_gradient_of_zero(wrapped):
    head, linear = make(wrapped=wrapped)
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    found = predict(head, hidden, torch.zeros(0, dtype=torch.long))
    assert found.log_probs.shape == found.entropy.shape == found.is_greedy.shape == (0,)
    found.log_probs.sum().backward()
    assert hidden.grad.shape == (0, HIDDEN)
    # None would leave another process waiting for it.
    assert all((parameter.grad == 0).all() for parameter in linear.parameters())


def test_a_hook_on_the_head_is_called():
    head, linear = make(trains=False)
    hidden, targets, _ = draw(6)
    linear.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    found = predict(head, hidden.detach(), targets)
    torch.testing.assert_close(found.log_probs, torch.full((6,), -math.log(VOCABULARY)))


def test_entropy_is_left_out_where_it_is_not_wanted():
    head, _ = make(trains=False)
    hidden, targets, _ = draw(6)
    with_it = predict(head, hidden.detach(), targets)
    without = predict(head, hidden.detach(), targets, with_entropy=False)
    assert without.entropy.tolist() == [0.0] * 6
    assert with_it.log_probs.tolist() == without.log_probs.tolist()
