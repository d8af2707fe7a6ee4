"""How a recipe turns records into tokens: the model's tokenizer with the recipe's template."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from forgetting.config import PLAIN_TEMPLATE, Recipe
from forgetting.data.alignment import Tokenization
from forgetting.data.encoding import tokenizer_fingerprint
from forgetting.errors import InputError
from forgetting.models.foreign import reading
from forgetting.models.loading import load_tokenizer
from forgetting.rundir import layout
from forgetting.rundir.stats import DataSummary


def load_tokenization(recipe: Recipe, now: str | None = None) -> Tokenization:
    """The tokenization of a recipe.

    Args:
        now: date for templates that read the clock, ISO 8601, as in `DataSummary.date`, unless
            the recipe sets one. Default: today.

    Raises:
        InputError: the tokenizer or the chat template cannot be used, or the recipe sets a date
            that the template does not read.
    """
    tokenizer = load_tokenizer(recipe.model)
    template = recipe.model.chat_template
    if template == PLAIN_TEMPLATE:
        tokenizer.chat_template = template = None
    source = None
    if template:
        with reading(f"model.chat_template: {template} cannot be read"):
            source = Path(template).read_text(encoding="utf-8")
    given = recipe.model.template_date
    tokenization = Tokenization(
        tokenizer,
        source,
        template_name=recipe.model.template_name,
        special_tokens_in_text=recipe.data.special_tokens_in_text,
        system_role=recipe.model.system_role,
        now=given or (date.fromisoformat(now) if now else None),
    )
    if given is not None and not tokenization.reads_clock:
        raise InputError(
            "model.template_date: the chat template does not print a date. Remove the setting"
        )
    return tokenization


def check_tokenizer(recipe: Recipe, run: Path) -> None:
    """Refuse to read a run's tokens with another tokenizer than that which made them.

    Args:
        run: the run directory. If it does not name a tokenizer, nothing is checked.

    Raises:
        InputError: the texts of the tokens would be others.
    """
    data = layout.data_dir(run)
    if not layout.summary_file(data).is_file():
        return
    known = DataSummary.load(data).tokenizer
    if known is not None and known != tokenizer_fingerprint(load_tokenizer(recipe.model)):
        raise InputError(
            f"the tokens in {run} were made with another tokenizer than that of "
            f"{recipe.model.name_or_path}. Restore the model, or run the recipe again with "
            f"`forgetting run {layout.recipe_file(run)} --run-dir {run}`"
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
