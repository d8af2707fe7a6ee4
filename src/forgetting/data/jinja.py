"""A chat template as a program: conversations in, text out.

In: Jinja source, and the turns and tools of a conversation. Out: the rendered text, or `Unusable`
with what the template raised. The clock that a template reads does not move. Knows nothing about
what is labeled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

from forgetting.data.bounded_jinja import BoundedEnvironment, LimitError
from forgetting.data.calls import Tools, Turn
from forgetting.errors import InputError
from forgetting.formats import Unusable


class JinjaTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source.
        today: the date that `strftime_now` formats.
        variables: what the template can read next to the conversation, such as `eos_token`.

    Raises:
        TemplateError: the source is not valid Jinja, or nested too deeply.
    """

    def __init__(self, source: str, today: date, variables: Mapping[str, Any]) -> None:
        self._environment = BoundedEnvironment(_compile_jinja_template("").environment)
        # `strftime_now` is fixed.
        self._environment.globals["strftime_now"] = today.strftime
        try:
            self._template = self._environment.from_string(source)
        except RecursionError as error:
            raise TemplateError("it is nested too deeply") from error
        self._variables = variables

    def render(
        self, turns: Sequence[Turn], tools: Tools = (), *, generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Args:
            generation_prompt: whether the text ends where the next response begins.

        Raises:
            Unusable: the template fails.
            InputError: the template does not come to an end.
        """
        self._environment.begin(len(turns))
        try:
            return self._template.render(
                messages=turns,
                tools=list(tools) or None,
                add_generation_prompt=generation_prompt,
                **self._variables,
            )
        except LimitError as error:
            raise InputError(
                f"the chat template is not one for conversations: {error}. Set another one in "
                "model.chat_template"
            ) from error
        # A template is a program: it may divide by zero, or call itself without an end.
        except Exception as error:
            detail = " ".join(str(error).split())[:200]
            raise Unusable("the chat template fails", detail) from error


def reads_clock(source: str) -> bool:
    """Whether the tokens of a template depend on the date."""
    return "strftime_now" in source
