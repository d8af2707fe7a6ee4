"""A chat template as a program: conversations in, text out.

In: Jinja source, and the turns and tools of a conversation. Out: the rendered text, or `Unusable`
with what the template raised. The clock that a template reads does not move. Knows nothing about
what is labeled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import Template, TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

from forgetting.data.calls import Tools, Turn
from forgetting.formats import Unusable


class JinjaTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source.
        today: the date that `strftime_now` formats.
        variables: what the template can read next to the conversation, such as `eos_token`.

    Raises:
        TemplateError: the source is not valid Jinja.
    """

    def __init__(self, source: str, today: date, variables: Mapping[str, Any]) -> None:
        self._template = _compiled(source, today)
        self._variables = variables

    def render(
        self, turns: Sequence[Turn], tools: Tools = (), *, generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Args:
            generation_prompt: whether the text ends where the next response begins.

        Raises:
            Unusable: the template fails.
        """
        try:
            return self._template.render(
                messages=turns,
                tools=list(tools) or None,
                add_generation_prompt=generation_prompt,
                **self._variables,
            )
        # A template is a program: it may divide by zero, or index what is not there.
        except (TemplateError, ArithmeticError, LookupError, ValueError, TypeError) as error:
            detail = " ".join(str(error).split())[:200]
            raise Unusable("the chat template fails", detail) from error


def reads_clock(source: str) -> bool:
    """Whether the tokens of a template depend on the date."""
    return "strftime_now" in source


def _compiled(source: str, today: date) -> Template:
    """The template as transformers compiles it, with `strftime_now` fixed."""
    environment = _compile_jinja_template(source).environment.overlay()
    environment.globals = {**environment.globals, "strftime_now": today.strftime}
    return environment.from_string(source)
