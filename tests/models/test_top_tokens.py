"""The most likely other tokens, against a softmax in float64 that is sorted whole."""

import math

import pytest
import torch
from torch import nn

from forgetting.models import top_tokens
from forgetting.models.lm_head import Head
from forgetting.models.top_tokens import best_others, top_entropy

VOCABULARY, HIDDEN = 41, 8


@pytest.fixture
def drawn(monkeypatch):
    """A head, hidden states, targets and the logits in float64; tiles of four rows."""
    monkeypatch.setattr(top_tokens, "ROWS_PER_TILE", 4)
    torch.manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCABULARY)
    hidden, targets = 3 * torch.randn(11, HIDDEN), torch.randint(0, VOCABULARY, (11,))
    head = Head(nn.Identity(), linear, 0.5, 6.0)
    logits = 0.5 * (hidden.double() @ linear.weight.double().T + linear.bias.double())
    return head, hidden, targets, 6 * torch.tanh(logits / 6)


@pytest.mark.parametrize("num_tokens", [1, 5, 40, 100])
def test_they_are_the_best_of_the_distribution_without_the_target(drawn, num_tokens):
    head, hidden, targets, logits = drawn
    found = best_others(head, hidden, targets, num_tokens)
    for row, target in enumerate(targets.tolist()):
        probs = logits[row].softmax(0)
        probs[target] = 0
        probs /= probs.sum()
        order = probs.argsort(descending=True)[: min(num_tokens, VOCABULARY - 1)]
        assert found.ids[row].tolist() == order.tolist()
        torch.testing.assert_close(
            found.log_probs[row].double(), probs[order].log(), rtol=1e-5, atol=1e-5
        )
        rest = 1 - probs[order].sum().item()
        if num_tokens < VOCABULARY - 1:
            assert found.log_rest[row].item() == pytest.approx(math.log(rest), abs=1e-5)
        else:
            assert found.log_rest[row].item() == top_tokens.LEAST_LOG_PROB


def test_the_entropy_is_that_of_the_renormalized_best(drawn):
    head, hidden, _, logits = drawn
    best = logits.sort(1, descending=True).values[:, :20].softmax(1)
    expected = -(best * best.log()).sum(1)
    found = top_entropy(head, hidden)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    # Among all tokens it is the entropy of the prediction, which is larger.
    whole = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
    assert (whole > expected).all()
    torch.testing.assert_close(top_entropy(head, hidden, 100).double(), whole, rtol=1e-5, atol=1e-5)


def test_no_positions_give_nothing(drawn):
    head, hidden, targets, _ = drawn
    found = best_others(head, hidden[:0], targets[:0], 3)
    assert found.ids.shape == found.log_probs.shape == (0, 3)
    assert found.log_rest.shape == top_entropy(head, hidden[:0]).shape == (0,)
