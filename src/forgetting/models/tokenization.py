"""How a recipe turns records into tokens: the model's tokenizer with the recipe's template."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from forgetting.config import PLAIN_TEMPLATE, Recipe
from forgetting.data.alignment import Tokenization
from forgetting.models.loading import load_tokenizer


def load_tokenization(recipe: Recipe, now: str | None = None) -> Tokenization:
    """The tokenization of a recipe.

    Args:
        now: date for templates that read the clock, ISO 8601, as in `DataSummary.date`. Default:
            today.

    Raises:
        InputError: the tokenizer cannot be used, see `load_tokenizer`.
    """
    tokenizer = load_tokenizer(recipe.model)
    template = recipe.model.chat_template
    if template == PLAIN_TEMPLATE:
        tokenizer.chat_template = template = None
    return Tokenization(
        tokenizer,
        Path(template).read_text(encoding="utf-8") if template else None,
        special_tokens_in_text=recipe.data.special_tokens_in_text,
        now=date.fromisoformat(now) if now else None,
    )


@contextmanager
def tokenizer_threads() -> Iterator[None]:
    """Let the tokenizer use all cores for a batch.

    The command line turns this off elsewhere: processes forked from one with such threads may
    hang.
    """
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
