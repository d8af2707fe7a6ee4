"""How a trained model is prompted: the chat template on its tokenizer, and the tokens that end it.

Input: a recipe. Output: the tokenizer that belongs to every model of the run, so that
`apply_chat_template` gives the prompts that were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from forgetting.config import Recipe
from forgetting.data.templates import PLAIN
from forgetting.models.loading import load_tokenizer
from forgetting.models.tokenization import load_tokenization

TEXT_FORMAT = "text"


def uses_template(recipe: Recipe) -> bool:
    """Whether samples are conversations; plain texts take no template."""
    sources = [*recipe.data.sources, *(recipe.reference.sources or ())]
    return any(source.format != TEXT_FORMAT for source in sources)


def prompting_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base model's tokenizer with the chat template of the run.

    Raises:
        InputError: see `load_tokenization`.
    """
    if not uses_template(recipe):
        return load_tokenizer(recipe.model)
    tokenization = load_tokenization(recipe)
    tokenizer = tokenization.tokenizer
    tokenizer.chat_template = tokenization.chat_template or _plain_template(tokenizer)
    return tokenizer


def _plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The plain format, with what the tokenizer writes before any text.

    `apply_chat_template` adds nothing of its own, unlike the tokenizer.
    """
    prefix = list(tokenizer("").input_ids)
    if prefix and prefix[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
        prefix.pop()
    if not prefix:
        return PLAIN
    text = "".join(tokenizer.convert_ids_to_tokens(prefix))
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} -}}}}{PLAIN}"


def set_end_tokens(model: Any, token_ids: Iterable[int]) -> None:
    """Make generation stop at these tokens, too.

    Args:
        model: with a `generation_config`, which keeps the end tokens that it has.
        token_ids: every token that ends a labeled response.
    """
    found = model.generation_config.eos_token_id
    own = [] if found is None else found if isinstance(found, list) else [found]
    ids = list(dict.fromkeys([*own, *sorted(token_ids)]))
    # A single number is what older programs read.
    model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids
