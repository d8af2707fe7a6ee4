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
MAX_PARAMETERS = 10**14
"""Entries of one weight matrix; more than any published model has in all of them."""
_WIDTHS = ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")
_END_AND_PADDING = ("eos_token_id", "pad_token_id")


def check_values(name: str, config: PretrainedConfig) -> None:
    """Refuse impossible sizes, and token ids outside the embedding.

    Args:
        name: of the model, for messages.

    Raises:
        InputError: the message names the field of config.json.
    """
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if isinstance(layers, int) and not 1 <= layers <= MAX_LAYERS:
        raise InputError(
            f"{name}: config.json says num_hidden_layers {layers}, but a model has 1 to "
            f"{MAX_LAYERS:,}. Use the config.json that belongs to the weights"
        )
    hidden = getattr(text, "hidden_size", None)
    for field in _WIDTHS:
        size = getattr(text, field, None)
        if not isinstance(size, int):
            continue
        if size < 1 or (isinstance(hidden, int) and size * hidden > MAX_PARAMETERS):
            raise InputError(
                f"{name}: config.json says {field} {size}, which no model has. Use the config.json "
                "that belongs to the weights"
            )
    check_token_ids(name, "config.json", config, text.vocab_size)


def check_token_ids(name: str, file: str, values: Any, vocab_size: int) -> None:
    """Refuse end and padding tokens that the model has no embedding of.

    Args:
        name: of the model, for messages.
        file: that the ids are from.
        values: a configuration.
        vocab_size: number of token ids of the model.

    Raises:
        InputError: the message names the field.
    """
    for field, index in _ids(values):
        if index >= vocab_size:
            raise InputError(
                f"{name}: {file} says {field} {index}, but the model has embeddings for the ids 0 "
                f"to {vocab_size - 1}. Set it to a token of the model's tokenizer"
            )


def _ids(values: Any) -> Iterator[tuple[str, int]]:
    for field in _END_AND_PADDING:
        given = getattr(values, field, None)
        for index in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(index, int):
                yield field, index
