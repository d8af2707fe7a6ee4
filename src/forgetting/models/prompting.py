"""How a trained model is prompted: the chat template on its tokenizer, and the tokens that end it.

Input: a recipe. Output: the tokenizer that belongs to every model of the run, so that
`apply_chat_template` gives the prompts that were trained on. A system turn that the run folds into
the first user turn is folded by the template itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from string import ascii_letters
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from forgetting.config import Recipe
from forgetting.data.templates import PLAIN
from forgetting.errors import InputError
from forgetting.models.loading import load_tokenizer
from forgetting.models.tokenization import load_tokenization

TEXT_FORMAT = "text"
# Content may be text or a list of parts. After the last line, transformers drops the line break,
# and the template goes on as if it began there.
_FOLD = """\
{%- if messages | length > 1 and messages[0].role == 'system' -%}
{%- set folded_system = messages[0].content -%}
{%- if folded_system is not string -%}
{%- set folded_system = folded_system | map(attribute='text') | join -%}
{%- endif -%}
{%- set folded_content = messages[1].content -%}
{%- if folded_system | trim and folded_content is string -%}
{%- set folded_content = folded_system ~ '\\n\\n' ~ folded_content -%}
{%- elif folded_system | trim -%}
{%- set folded_content = [{'type': 'text', 'text': folded_system ~ '\\n\\n'}] + folded_content -%}
{%- endif -%}
{%- set messages = [{'role': messages[1].role, 'content': folded_content}] + messages[2:] -%}
{%- endif %}
"""


def uses_template(recipe: Recipe) -> bool:
    """Whether samples are conversations; plain texts take no template."""
    sources = [*recipe.data.sources, *(recipe.reference.sources or ())]
    return any(source.format != TEXT_FORMAT for source in sources)


def prompting_tokenizer(recipe: Recipe, day: str | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer with the chat template of the run.

    Args:
        day: `DataSummary.date`, which a template that reads the clock then prints. Default: it
            reads the clock, as users of the model expect.

    Raises:
        InputError: see `load_tokenization`.
    """
    if not uses_template(recipe):
        return load_tokenizer(recipe.model)
    tokenization = load_tokenization(recipe, day)
    tokenizer = tokenization.tokenizer
    template = tokenization.chat_template or _plain_template(tokenizer)
    if recipe.model.system_role == "fold":
        template = folding_template(template)
    if day is not None and tokenization.reads_clock:
        template = dated_template(template, tokenization.now)
    tokenizer.chat_template = template
    return tokenizer


def folding_template(source: str) -> str:
    """A chat template that puts a system turn's text before the first user turn, as training did.

    Args:
        source: Jinja source of a template, which then gets no system turn.
    """
    return _FOLD + source


def dated_template(source: str, day: date) -> str:
    """A chat template in which `strftime_now` formats a day that does not change.

    Args:
        source: Jinja source.
        day: the date, at midnight.
    """
    directives = [f"%{flag}{letter}" for flag in ("", "-") for letter in ascii_letters]
    values = {directive: day.strftime(directive) for directive in directives}
    # A percent sign is written twice. In between, no directive may begin with it.
    steps = [("%%", "\0"), *((k, v) for k, v in values.items() if k != v), ("\0", "%")]
    filters = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in steps)
    macro = f"{{%- macro strftime_now(format) -%}}{{{{- format{filters} -}}}}{{%- endmacro %}}"
    return f"{macro}\n{source}"


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


def check_task_prompts(recipe: Recipe) -> None:
    """Refuse evaluation settings with which tasks could not be prompted as the recipe says.

    A model on the Hub that cannot be reached is not checked.

    Raises:
        InputError: there is no chat template to apply, or it drops the system instruction.
    """
    settings = recipe.evaluation
    if not (settings.tasks and settings.apply_chat_template):
        return
    try:
        tokenizer = prompting_tokenizer(recipe)
    except InputError:
        if Path(recipe.model.name_or_path).is_dir():
            raise
        return
    if tokenizer.chat_template is None:
        raise InputError(
            "evaluation.apply_chat_template: the corpus holds plain texts and the tokenizer has no "
            "chat template. Set evaluation.apply_chat_template to false"
        )
    system = settings.system_instruction
    if system and not _renders_system(tokenizer, system):
        # lm-eval would leave it out, with a warning.
        raise InputError(
            "evaluation.system_instruction: the chat template has no system role. Set "
            "model.system_role: fold, or remove evaluation.system_instruction"
        )


def _renders_system(tokenizer: PreTrainedTokenizerBase, system: str) -> bool:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "Is it so?"}]
    try:
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    # A template is a program, which may fail in many ways.
    except (TemplateError, ArithmeticError, LookupError, ValueError, TypeError):
        return False
    return system.strip() in str(prompt)


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
