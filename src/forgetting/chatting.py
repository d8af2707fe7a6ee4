"""Answers of a run's models to prompts that a user writes.

Input: a run directory, a variant, and conversations. Output: greedy answers, prompted as in the
training. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from forgetting.config import Recipe
from forgetting.errors import InputError, did_you_mean
from forgetting.models import loading
from forgetting.models.adapters import load_variant
from forgetting.models.generation import generate_greedily
from forgetting.models.gguf import with_folders
from forgetting.models.prompting import prompting_tokenizer
from forgetting.report.verdict import run_verdict
from forgetting.rundir import layout
from forgetting.rundir.reader import RunReader
from forgetting.rundir.stats import DataSummary

Turns = Sequence[Mapping[str, str]]
"""A conversation: turns with `role` and `content`, the last one the user's."""


class Chat:
    """A model that answers, see `open_chat`."""

    def __init__(
        self,
        variant: str,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Collection[int],
        max_new_tokens: int,
    ) -> None:
        self.variant = variant
        self._model, self._tokenizer = model, tokenizer
        self._end_token_ids, self._max_new_tokens = end_token_ids, max_new_tokens

    def answer(self, turns: Turns) -> str:
        """The greedy answer, without special tokens.

        A model that was trained on plain texts continues the last turn.

        Raises:
            InputError: the conversation is longer than the model can read, is not UTF-8, or the
                chat template cannot render it.
        """
        ids = self._prompt(turns)
        (answer,) = generate_greedily(
            self._model,
            [ids],
            end_token_ids=self._end_token_ids,
            max_new_tokens=self._max_new_tokens,
        )
        if not answer:
            raise InputError(
                f"the conversation has {len(ids)} tokens, and the model can read "
                f"{loading.max_positions(self._model.config)}. Begin a new one"
            )
        return str(self._tokenizer.decode(answer, skip_special_tokens=True)).strip()

    def _prompt(self, turns: Turns) -> list[int]:
        try:
            # What is typed or piped in another encoding holds halves of surrogate pairs.
            turns[-1]["content"].encode()
        except UnicodeEncodeError as error:
            raise InputError("the prompt is not UTF-8. Convert it, and ask again") from error
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer(turns[-1]["content"]).input_ids)
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=True
            )
        # A template is a program, which may fail in many ways.
        except (TemplateError, ArithmeticError, LookupError, ValueError, TypeError) as error:
            raise InputError(
                f"the chat template cannot render this conversation: {error}"
            ) from error
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)


def open_chat(
    run_dir: Path, variant: str | None = None, *, max_new_tokens: int | None = None
) -> Chat:
    """Load the base model and a variant of a run.

    Args:
        variant: name of a variant, or `base`. Default: the variant that the report recommends, else
            the first of the recipe.
        max_new_tokens: largest number of tokens of an answer. Default: `evaluation.answer_tokens`.

    Raises:
        InputError: there is no run, no such variant, or it is not trained.
    """
    run = RunReader(run_dir)
    if run.recipe is None:
        raise InputError(f"{layout.recipe_file(run_dir)} is not a valid recipe")
    recipe = with_folders(run.recipe)
    name = variant or _recommended(run, recipe)
    names = [layout.BASE, *recipe.variants]
    if name not in names:
        hint = did_you_mean(name, names) or f"Its models are {', '.join(names)}"
        raise InputError(f"{run_dir} has no variant {name}. {hint}")
    folder = layout.model_dir(run_dir, name)
    if name != layout.BASE and not folder.is_dir():
        raise InputError(
            f"{name} is not trained in {run_dir}. Run "
            f"`forgetting run {layout.recipe_file(run_dir)} --run-dir {run_dir}`"
        )
    dtype = loading.pick_dtype(recipe.model)
    if name == layout.BASE:
        model: Any = loading.load_base_model(recipe.model, dtype)
    else:
        model = load_variant(recipe.model, dtype, folder)
    return Chat(
        name,
        model,
        prompting_tokenizer(recipe),
        DataSummary.load(layout.data_dir(run_dir)).end_token_ids,
        max_new_tokens or recipe.evaluation.answer_tokens,
    )


def _recommended(run: RunReader, recipe: Recipe) -> str:
    verdict = run_verdict(run)
    return next(iter(recipe.variants)) if verdict is None else verdict.model
