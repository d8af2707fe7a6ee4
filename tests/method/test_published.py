"""The published methods that this one is compared with, each from its formula in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forgetting.method.loss import forgetting_loss
from forgetting.method.selection import select_tokens
from forgetting.method.terms import ForgettingTerm

# Few distinct values: ties decide.
losses = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def authors_partition(influence, rho):
    """Of the paper's authors: sorted (score, sample, position), the first int(n rho) to learn and
    the next int(n (1 - rho)) to forget. A sample has three tokens here."""
    n = len(influence)
    places = sorted((-score, i // 3, i % 3) for i, score in enumerate(influence))
    order = [3 * sample + position for _, sample, position in places]
    num_positive, num_negative = int(n * rho), int(n * (1 - rho))
    polarity = np.zeros(n, dtype=int)
    polarity[order[:num_positive]] = 1
    polarity[order[num_positive : num_positive + num_negative]] = -1
    return polarity, order


@given(losses, st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.85]))
def test_the_partition_is_the_authors_up_to_the_token_at_the_threshold(pairs, rho):
    """Ties are divided as there; there the counts are cut, and up to two tokens are in no set."""
    influence = np.array([base - reference for base, reference in pairs], dtype=np.float64)
    theirs, order = authors_partition(influence, rho)
    ours = select_tokens(influence, rho)
    n = len(pairs)
    left = theirs == 0
    assert left.sum() <= 2
    assert (ours[~left] == theirs[~left]).sum() >= (~left).sum() - 1
    num_positive = math.floor(rho * n + 0.5)
    assert (ours[order[:num_positive]] == 1).all()
    assert (ours[order[num_positive:]] == -1).all()
    if int(n * rho) == num_positive:
        assert (ours[~left] == theirs[~left]).all()


@given(losses, st.sampled_from([0.5, 0.6, 0.7]))
def test_ignoring_is_token_cleaning_with_a_fixed_reference(pairs, keep):
    """TokenCleaning (arXiv 2502.01968): cross-entropy of the share of all tokens with the highest
    influence, averaged over those; the others have no label."""
    random = np.random.default_rng(len(pairs))
    logits = torch.tensor(random.normal(size=(len(pairs), 5)), requires_grad=True)
    labels = torch.tensor(random.integers(0, 5, len(pairs)))
    influence = [base - reference for base, reference in pairs]
    num_kept = math.floor(keep * len(pairs) + 0.5)
    kept = sorted(range(len(pairs)), key=lambda i: (-influence[i], i))[:num_kept]
    expected = sum(
        math.log(sum(math.exp(x) for x in row)) - row[label]
        for row, label in zip(logits[kept].tolist(), labels[kept].tolist(), strict=True)
    ) / max(num_kept, 1)
    polarity = torch.from_numpy(select_tokens(influence, keep))
    log_probs = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    loss = forgetting_loss(log_probs, polarity, 0.0)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    loss.backward()
    wanted = (logits.softmax(-1) - torch.nn.functional.one_hot(labels, 5)).detach() / max(
        num_kept, 1
    )
    wanted[[i for i in range(len(pairs)) if i not in kept]] = 0
    assert torch.allclose(logits.grad, wanted, rtol=0, atol=1e-14)


BETA1, BETA2 = 5.0, 1.0
OPEN_UNLEARNING = {
    # Minus the mean cross-entropy, of the tokens of a batch.
    "ga": lambda ce, reference: -torch.cat(ce).mean(),
    "wga": lambda ce, reference: -((-torch.cat(ce)).exp().detach() * torch.cat(ce)).mean(),
    "satimp": lambda ce, reference: (
        -(
            (-torch.cat(ce)).exp().detach() ** BETA1
            * (1 - (-torch.cat(ce)).exp().detach()) ** BETA2
            * torch.cat(ce)
        ).mean()
    ),
    # The mean over samples of a sigmoid of the log-ratio to the reference.
    "npo": lambda ce, reference: torch.stack(
        [
            -2 / 0.1 * torch.log(torch.sigmoid(0.1 * (own.sum() - other.sum())))
            for own, other in zip(ce, reference, strict=True)
        ]
    ).mean(),
}


@pytest.mark.parametrize("kind", OPEN_UNLEARNING)
def test_terms_at_their_defaults_are_the_losses_of_open_unlearning(kind):
    """Value and gradient to the logits, for a batch of samples of other lengths."""
    random = torch.Generator().manual_seed(3)
    lengths, width, vocab = [4, 1, 6], 6, 7
    logits = torch.randn(3, width, vocab, generator=random, dtype=torch.float64) * 2
    base = torch.randn(3, width, vocab, generator=random, dtype=torch.float64).log_softmax(-1)
    labels = torch.randint(vocab, (3, width), generator=random)
    found = []
    for is_ours in (True, False):
        own = logits.clone().requires_grad_()
        log_probs = own.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        base_log_probs = base.gather(-1, labels[..., None])[..., 0]
        if is_ours:
            polarity = -(torch.arange(width) < torch.tensor(lengths)[:, None]).long()
            term = ForgettingTerm(kind)
            loss = forgetting_loss(
                log_probs, polarity, 1.0, term=term, base_log_probs=base_log_probs
            )
        else:
            ce, reference = (
                [-row[:n] for row, n in zip(values, lengths, strict=True)]
                for values in (log_probs, base_log_probs)
            )
            loss = OPEN_UNLEARNING[kind](ce, reference)
        (gradient,) = torch.autograd.grad(loss, own)
        found.append((loss.detach(), gradient))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    assert found[0][1].abs().max() > 1e-3
