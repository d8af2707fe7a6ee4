"""Greedy answers of a model, several prompts at a time.

Input: prompts as token ids. Output: the tokens that the model continues them with. The same model,
prompts and batch size give the same tokens. Knows nothing of texts or templates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from forgetting.models.loading import max_positions


def own_end_tokens(model: Any) -> list[int]:
    """The tokens at which a model stops by its own configuration."""
    found = model.generation_config.eos_token_id
    return [] if found is None else found if isinstance(found, list) else [found]


def generate_greedily(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_token_ids: Collection[int],
    max_new_tokens: int,
    max_length: int | None = None,
    batch_size: int = 8,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> list[list[int]]:
    """Continue prompts with the most likely token, one after the other.

    Args:
        prompts: token ids, none of them empty.
        end_token_ids: tokens that end an answer, besides those of the model. An answer contains
            the one that ended it.
        max_new_tokens: largest number of tokens of an answer.
        max_length: largest number of tokens of prompt and answer together. Default: as many as the
            model has positions for.
        batch_size: number of prompts at a time. Models with a recurrent state, which padding would
            change, take one prompt at a time.

    Returns:
        The answers as token ids, in the order of the prompts; empty where the prompt leaves no
        room.
    """
    ends = sorted({*own_end_tokens(model), *end_token_ids})
    limits = [limit for limit in (max_length, max_positions(model.config)) if limit is not None]
    longest = min(limits, default=None)
    if getattr(model, "_is_stateful", False):
        batch_size = 1
    answers: list[list[int]] = [[] for _ in prompts]
    for batch in _batches(list(map(len, prompts)), batch_size, max_new_tokens, longest):
        found = _continue(model, [prompts[i] for i in batch], ends, max_new_tokens, longest)
        for index, answer in zip(batch, found, strict=True):
            answers[index] = answer
        advance(len(batch), "")
    return answers


def _batches(
    lengths: Sequence[int], batch_size: int, max_new_tokens: int, longest: int | None
) -> Iterator[list[int]]:
    """Indices of the prompts that are continued together.

    A prompt that leaves less room than an answer may need is alone: the others of its batch would
    be cut where it is, or have no answer at all.
    """
    # Prompts of similar length need little padding.
    order = np.argsort(lengths, kind="stable").tolist()
    limit = math.inf if longest is None else longest - max_new_tokens
    roomy = [index for index in order if lengths[index] <= limit]
    for begin in range(0, len(roomy), batch_size):
        yield roomy[begin : begin + batch_size]
    for index in order[len(roomy) :]:
        yield [index]


@torch.inference_mode()
def _continue(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    max_new_tokens: int,
    longest: int | None,
) -> list[list[int]]:
    width = max(map(len, prompts))
    room = max_new_tokens if longest is None else min(max_new_tokens, longest - width)
    if room < 1:
        return [[] for _ in prompts]
    padding = ends[0] if ends else 0
    # Padded on the left, so that every answer begins in the same column.
    input_ids = torch.full((len(prompts), width), padding)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.as_tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=room,
        eos_token_id=list(ends) or None,
        pad_token_id=padding,
    )
    with _generation_settings(model, settings):
        output = model.generate(
            input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)
        )
    return [_up_to_end(row, ends) for row in output[:, width:].tolist()]


def _up_to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens until the first that ends an answer, which is among them."""
    place = next((i for i, token in enumerate(tokens) if token in ends), None)
    return tokens if place is None else tokens[: place + 1]


@contextmanager
def _generation_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace a model's own settings, which may hold penalties and sampling."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept, inner.generation_config = inner.generation_config, settings
    try:
        yield
    finally:
        inner.generation_config = kept
