"""What a loss asks of the head, against the model's own logits in float64, on both paths."""

from __future__ import annotations

import math

import pytest
import torch
from trl.trainer import add_fused_lm_head

from forgetting.models import training_head
from forgetting.models.training_head import TokenRequest, add_training_head
from tests.conftest import small_model

VOCABULARY, KEPT = 50, 4
EXTRAS = ("corrections", "best_other_log_probs", "sum_squares", "top_entropy")


@pytest.fixture(params=["our head", "TRL's head"])
def ask(request, monkeypatch):
    """Asks a model with the training head; with TRL's head, as on accelerators."""
    if request.param == "TRL's head":
        monkeypatch.setattr(training_head, "_uses_lm_head", lambda labels, arguments: False)
    model = small_model("llama", VOCABULARY)
    exact = small_model("llama", VOCABULARY).double()
    exact.load_state_dict(model.state_dict())
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    add_training_head(model)

    def do(**given):
        return model(**given, fused_lm_head=True)

    do.model, do.exact = model, exact
    return do


@pytest.fixture
def batch():
    """Two samples, one of them padded; alternatives for some tokens of both."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCABULARY, (2, 9), generator=random)
    labels = ids.clone()
    labels[:, :2] = -100
    labels[1, 6:] = -100
    chosen = torch.rand(2, 9, generator=random) < 0.5
    chosen[:, 3] = True
    alternatives = torch.stack([(ids + step) % VOCABULARY for step in (1, 2, 5, 9)], 2)
    log_probs = torch.randn(2, 9, KEPT + 1, generator=random).log_softmax(2)
    return ids, labels, chosen, alternatives, log_probs


def expected(log_p, label, alternatives, log_q):
    """The figures of one prediction, from all its log-probabilities."""
    p, q = log_p.exp(), log_q.double().exp()
    rest = 1 - p[alternatives].sum() - p[label]
    best = log_p.sort(descending=True).values[:20].softmax(0)
    others = torch.cat([log_p[:label], log_p[label + 1 :]])
    return {
        "corrections": -(q[:-1] * log_p[alternatives]).sum() - q[-1] * rest.log(),
        "best_other_log_probs": others.max(),
        "sum_squares": (p**2).sum(),
        "top_entropy": -(best * best.log()).sum(),
    }


def test_values_and_gradients_are_those_of_the_logits(ask, batch):
    ids, labels, chosen, alternatives, log_probs = batch
    request = TokenRequest(chosen, alternatives, log_probs, chosen, ("sum_squares", "top_entropy"))
    found = ask(input_ids=ids, labels=labels, request=request)
    (found.corrections.sum() + 2 * found.best_other_log_probs.sum()).backward()
    logits = ask.exact(input_ids=ids).logits.log_softmax(-1)
    total = 0.0
    for row in range(2):
        for place in range(1, 9):
            label = int(labels[row, place])
            is_chosen = bool(chosen[row, place]) and label != -100
            given = alternatives[row, place], log_probs[row, place]
            for name, value in expected(
                logits[row, place - 1], int(ids[row, place]), *given
            ).items():
                is_there = label != -100 if name in EXTRAS[2:] else is_chosen
                got = found[name][row, place - 1].item()
                assert got == pytest.approx(value.item() if is_there else 0.0, abs=1e-4), name
                if is_chosen and name in EXTRAS[:2]:
                    total = total + (1 if name == "corrections" else 2) * value
    total.backward()
    assert not found.sum_squares.requires_grad
    assert not found.top_entropy.requires_grad
    exact = dict(ask.exact.named_parameters())
    for name, parameter in ask.model.named_parameters():
        if exact[name].grad is not None:
            torch.testing.assert_close(
                parameter.grad.double(), exact[name].grad, rtol=1e-3, atol=1e-4
            )


def test_without_a_request_the_values_are_trls(ask, batch):
    ids, labels, *_ = batch
    found = ask(input_ids=ids, labels=labels)
    assert all(found.get(name) is None for name in EXTRAS)
    log_p = ask.exact(input_ids=ids).logits[:, :-1].log_softmax(-1)
    mask = labels[:, 1:] != -100
    own = log_p.gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(
        found.log_probs.double(), torch.where(mask, own, 0.0), rtol=1e-4, atol=1e-4
    )
    entropy = torch.where(mask, -(log_p.exp() * log_p).sum(2), 0.0)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-4, atol=1e-4)


def test_a_request_without_a_chosen_token_gives_zeros(ask, batch):
    ids, labels, chosen, *_ = batch
    none = torch.zeros_like(chosen)
    request = TokenRequest(none, ids[..., None][..., :0], torch.zeros(2, 9, 0), none)
    found = ask(input_ids=ids, labels=labels, request=request)
    assert found.corrections.abs().sum() == found.best_other_log_probs.abs().sum() == 0
    (found.corrections.sum() + found.log_probs.sum()).backward()
    assert math.isfinite(found.log_probs.sum().item())


def test_a_plain_call_gives_logits(ask, batch):
    ids, *_ = batch
    assert ask.model(input_ids=ids).logits.shape == (2, 9, VOCABULARY)
