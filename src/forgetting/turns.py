"""One turn of a conversation, from the fields of a raw record.

In: a turn or a record as a dictionary. Out: its `Message`, or `Unusable` with the reason. Knows
nothing about whole formats, files, recipes or tokens.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""What data sets call the four roles, in lower case."""
# Roles of responses whose text is a call.
_CALLS = ("function_call", "tool_call")
WEIGHTS = ("weight", "train", "loss")
"""Keys of a turn that say how much it is learned."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that hold the reasoning before its content."""
_TOOL_TURN_KEYS = ("name", "tool_call_id")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        content: its text.
        weight: weight of a response's tokens in training, at least 0. A response of weight 0 is
            context: it is read and has no labels.
        extra: what else the chat template gets, as JSON: `tool_calls` (a list of objects) and
            `reasoning_content` (text) of a response, `name` and `tool_call_id` of a tool turn.
        is_negative: whether a response is one to forget.
    """

    role: str
    content: str
    weight: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    is_negative: bool = False

    @property
    def is_context(self) -> bool:
        """Whether a response is not learned, only read."""
        return self.weight == 0

    def dump(self) -> dict[str, Any]:
        """As a JSON object, from which `load` makes an equal message."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.weight != 1:
            turn["weight"] = self.weight
        if self.is_negative:
            turn["is_negative"] = True
        return {**turn, "extra": dict(self.extra)} if self.extra else turn

    @classmethod
    def load(cls, turn: Mapping[str, Any]) -> Message:
        """The inverse of `dump`."""
        weight, extra = turn.get("weight", 1.0), turn.get("extra", {})
        return cls(turn["role"], turn["content"], weight, extra, turn.get("is_negative", False))


class Unusable(Exception):
    """A record cannot be used.

    Args:
        reason: what is wrong, in the same words for all records with this fault.
        detail: what this record has, at most 40 ASCII characters.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}{detail and ': '}{detail}")
        self.reason = reason
        self.detail = detail


def text_field(fields: Fields, *names: str, optional: bool = False) -> str:
    """The text of the first of the named fields that is present.

    Content parts of type text are joined.

    Raises:
        Unusable: it is not text, or no field is present and it is not optional.
    """
    for name in names:
        value = fields.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return _joined_parts(value, name)
        if value is not None:
            raise Unusable(f"field `{name}` is not text")
    if optional:
        return ""
    empty = next((name for name in names if name in fields), None)
    raise Unusable(f"no field `{names[0]}`" if empty is None else f"field `{empty}` is null")


def _joined_parts(parts: list[Any], name: str) -> str:
    texts = []
    for part in parts:
        # A list of texts may hold alternatives, which nobody wants joined.
        if not isinstance(part, Mapping):
            raise Unusable(f"field `{name}` is not text")
        if part.get("type") != "text":
            kind = f"{part.get('type')!a:.40}"
            raise Unusable(f"field `{name}` has a part that is not of type text", kind)
        texts.append(text_field(part, "text"))
    return "".join(texts)


def is_turns(value: Any) -> bool:
    """Whether a field holds turns, and not text or its parts."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "from" in value[0])
    )


def read_turns(fields: Fields, name: str) -> list[Message]:
    """The turns in a field.

    Raises:
        Unusable: the field holds something else, or a turn cannot be used.
    """
    turns = fields.get(name)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable(f"field `{name}` is not a list of turns")
    return [_read_turn(turn) for turn in turns]


def _read_turn(turn: Fields) -> Message:
    role = role_of(turn, "role", "from")
    extra: dict[str, Any] = {}
    is_call = role == "assistant" and _given_role(turn, "role", "from") in _CALLS
    if role == "assistant":
        calls = _called(turn) if is_call else _tool_calls(turn)
        if calls:
            extra["tool_calls"] = [_with_arguments(call) for call in calls]
        reasoning = text_field(turn, *REASONING, optional=True)
        if reasoning.strip():
            extra["reasoning_content"] = reasoning
    elif role == "tool":
        extra = {key: turn[key] for key in _TOOL_TURN_KEYS if isinstance(turn.get(key), str)}
    content = (
        "" if is_call else text_field(turn, "content", "value", optional="tool_calls" in extra)
    )
    # The weight of a turn that is never learned says nothing.
    weight = _weight(turn) if role == "assistant" else 1.0
    return Message(role, content, weight, extra)


def _called(turn: Fields) -> list[dict[str, Any]]:
    """The calls that are the text of a turn, as in ShareGPT: an object or a list of objects."""
    value = from_text(text_field(turn, "content", "value"), "value")
    calls = tool_objects({"value": value if isinstance(value, list) else [value]}, "value")
    if not calls:
        raise Unusable("field `value` is not a list of objects")
    return [_wrapped(call) for call in calls]


def _tool_calls(turn: Fields) -> list[dict[str, Any]]:
    """The calls of a response: `tool_calls`, or the one `function_call` that came before it."""
    calls = tool_objects(turn, "tool_calls")
    value = turn.get("function_call")
    if not value:
        return calls
    if calls:
        raise Unusable("both `tool_calls` and `function_call`")
    if isinstance(value, str):
        value = from_text(value, "function_call")
    (call,) = tool_objects({"function_call": [value]}, "function_call")
    return [_wrapped(call)]


def _wrapped(call: dict[str, Any]) -> dict[str, Any]:
    """A call as `tool_calls` holds it."""
    return call if "function" in call else {"type": "function", "function": call}


def _weight(turn: Fields) -> float:
    """The weight of a turn: the product of what its keys say.

    Raises:
        Unusable: one of them is neither a number nor true or false.
    """
    weight = 1.0
    for key in WEIGHTS:
        value: Any = turn.get(key)
        try:
            weight *= is_true(value, key) if _is_flag(value) else float(value)
        except OverflowError:
            weight = float("inf")
        except (TypeError, ValueError) as error:
            raise Unusable(f"`{key}` is not a number", f"{value!a:.40}") from error
    return weight


def _is_flag(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false")
    return value is None or isinstance(value, bool)


def is_true(value: Any, name: str) -> bool:
    """A flag: true or 1, false or 0, or their text; a missing one is true.

    Raises:
        Unusable: it is something else.
    """
    text = "true" if value is None else str(value).strip().lower()
    if text in ("true", "1", "1.0"):
        return True
    if text in ("false", "0", "0.0"):
        return False
    raise Unusable(f"`{name}` is neither 0 nor 1", f"{value!a:.40}")


def tool_objects(fields: Fields, name: str) -> list[dict[str, Any]]:
    """A list of objects, such as tools or tool calls, without the keys that hold null.

    In tables it is text.

    Raises:
        Unusable: the field is something else.
    """
    value = fields.get(name)
    if isinstance(value, str) and value.strip():
        value = from_text(value, name)
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise Unusable(f"field `{name}` is not a list of objects")
    return [_without_nulls(item) for item in value]


def from_text(text: str, name: str) -> Any:
    """The value that a text holds as JSON or as a Python literal.

    Raises:
        Unusable: it holds none.
    """
    try:
        return decoded(text)
    except ValueError as error:
        raise Unusable(f"field `{name}` is not JSON") from error


def decoded(text: str) -> Any:
    """The value of JSON text, or of a Python literal, as pandas writes lists and objects.

    Raises:
        ValueError: the text is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        # Python warns of a backslash that escapes nothing, which is a fault of no code here.
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(text.strip())
    # Text that is nested too deeply ends in one of the last two.
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("neither JSON nor a Python literal") from error


def _without_nulls(value: Any) -> Any:
    # Tables fill the keys that a record lacks with null.
    if isinstance(value, Mapping):
        return {str(k): _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    # Tables hold dates and the like, which JSON does not.
    return value if isinstance(value, str | int | float) else str(value)


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object, as chat templates expect them."""
    inner = call.get("function", call)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise Unusable("a tool call has no `name`")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return call
        if not isinstance(arguments, dict):
            return call
        inner = {**inner, "arguments": arguments}
    return {**call, "function": inner} if "function" in call else inner


def role_of(turn: Fields, *names: str) -> str:
    """The role that the first of the named keys gives.

    Raises:
        Unusable: nobody has this role.
    """
    given = _given_role(turn, *names)
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise Unusable("unknown role", f"{given!a:.40}")
    return role


def _given_role(turn: Fields, *names: str) -> Any:
    given = next((turn[name] for name in names if turn.get(name) is not None), None)
    return given.strip().lower() if isinstance(given, str) else given
