"""Tools, tool calls and reasoning in rendered text.

In: the messages of a record, and the text that a chat template made of them. Out: the turns that
a template is given, and the reason why a text lacks something that a model must read or generate.
Knows nothing about how templates work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from forgetting.formats import Message, Unusable
from forgetting.turns import REASONING

Turn = dict[str, Any]
"""A message as a chat template gets it."""
Tools = Sequence[Mapping[str, Any]]
"""Tools as a chat template gets them."""


def turn_of(message: Message) -> Turn:
    """A message for a template. Reasoning has every name that templates read it by."""
    extra = dict(message.extra)
    if "reasoning_content" in extra:
        extra |= dict.fromkeys(REASONING, extra["reasoning_content"])
    return {"role": message.role, "content": message.content, **extra}


def plain_turn(role: str, content: str) -> Turn:
    """A turn of text alone."""
    return {"role": role, "content": content}


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every text in it changed, apart from keys and the roles of turns."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {k: v if k == "role" else map_texts(v, change) for k, v in value.items()}
    return [map_texts(item, change) for item in value] if isinstance(value, list | tuple) else value


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)


def check_rendered(messages: Sequence[Message], tools: Tools, text: str, start: int) -> None:
    """Refuse a text that lacks tools, calls, their results, or the reasoning of the last response.

    Args:
        start: where the last response begins in the text.

    Raises:
        Unusable: the template does not render them.
    """
    for tool in tools:
        # A tool of the provider has a type alone.
        name = _inner(tool).get("name") or tool.get("type")
        if not name or not _holds(text[:start], name):
            raise Unusable("the chat template does not render tools")
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1
        where = text[start:] if is_last else text[:start]
        for call in message.extra.get("tool_calls", ()):
            inner = _inner(call)
            if not all(_holds(where, value) for value in _leaves(inner)):
                raise Unusable("the chat template does not render tool calls")
        if message.role == "tool" and not _holds(where, message.content.strip()):
            raise Unusable("the chat template does not render the results of tools")
        reasoning = message.extra.get("reasoning_content", "")
        if is_last and not _holds(where, reasoning.strip()):
            raise Unusable("the chat template does not render the reasoning of a response")


def _inner(item: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = item.get("function", item)
    return inner if isinstance(inner, Mapping) else item


def _leaves(call: Mapping[str, Any]) -> Iterator[Any]:
    """The name and the values of the arguments of a call."""
    pending = [call.get("name"), call.get("arguments", call.get("parameters"))]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
        elif value is not None:
            yield value


def _holds(text: str, value: Any) -> bool:
    """Whether a text holds a value in one of the ways that templates write it."""
    if not isinstance(value, str):
        return str(value) in text or json.dumps(value) in text
    forms = (value, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1])
    squeezed = "".join(text.split())
    return any(form in text or "".join(form.split()) in squeezed for form in forms)
