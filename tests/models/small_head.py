"""A small head, plain or as under an adapter."""

import torch
from torch import nn

from forgetting.models.lm_head import Head

VOCABULARY, HIDDEN = 37, 8


class Wrapped(nn.Module):
    """A head that is not a plain linear layer, as under an adapter."""

    def __init__(self, linear):
        super().__init__()
        self.inner = linear

    def forward(self, hidden):
        return self.inner(hidden)


def make(
    bias=False,
    scale=1.0,
    softcap=None,
    wrapped=False,
    trains=True,
    dtype=torch.float32,
    vocabulary=VOCABULARY,
):
    """The head, and the linear layer in it."""
    torch.manual_seed(1)
    linear = nn.Linear(HIDDEN, vocabulary, bias=bias, dtype=dtype).requires_grad_(trains)
    return Head(nn.Identity(), Wrapped(linear) if wrapped else linear, scale, softcap), linear
