"""Refuses values in a model's configuration that no model can be made from.

Input: a configuration. Output: nothing, or an error with the field. Libraries would fail without a
word about the field, or try for hours to make a model that fits in no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from forgetting.errors import InputError

MAX_LAYERS = 2000
"""More than any published model has."""
MAX_WIDTH = 10**8
"""More than any published model has tokens or dimensions."""
_WIDTHS = ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")
_END_AND_PADDING = ("eos_token_id", "pad_token_id")


def check_values(where: str, config: PretrainedConfig) -> None:
    """Refuse impossible sizes, and token ids outside the embedding.

    Args:
        where: the configuration is from, for messages.

    Raises:
        InputError: the message names the field.
    """
    text = config.get_text_config()
    limits = {"num_hidden_layers": MAX_LAYERS, **dict.fromkeys(_WIDTHS, MAX_WIDTH)}
    for field, limit in limits.items():
        size = getattr(text, field, None)
        if isinstance(size, int) and not 1 <= size <= limit:
            raise InputError(
                f"{where}: {field} {size} is impossible: a model has 1 to {limit:,}. Use the "
                "configuration that belongs to the weights"
            )
    check_token_ids(where, config, text.vocab_size)


def check_token_ids(where: str, values: Any, vocab_size: int) -> None:
    """Refuse end and padding tokens that the model has no embedding of.

    Args:
        where: the ids are from, for messages.
        values: a configuration.
        vocab_size: number of token ids of the model.

    Raises:
        InputError: the message names the field.
    """
    for field, index in _ids(values):
        if index >= vocab_size:
            raise InputError(
                f"{where}: {field} {index} is outside of the embedding, which has the ids 0 to "
                f"{vocab_size - 1}. Set it to a token of the model's tokenizer"
            )


def _ids(values: Any) -> Iterator[tuple[str, int]]:
    for field in _END_AND_PADDING:
        given = getattr(values, field, None)
        for index in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(index, int):
                yield field, index
