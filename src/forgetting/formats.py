"""Data formats: from a raw record to a conversation, an entry of `FORMATS` each.

Goes in: a record as a dictionary, as a file or the Hub has it. Comes out: its messages, or
`Unusable` with the reason. Knows nothing of files, recipes or tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from forgetting.registry import Registry

Fields = Mapping[str, Any]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
"""What data sets call the three roles."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Args:
        role: `system`, `user` or `assistant`.
        content: its text.
    """

    role: str
    content: str


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


@dataclass(frozen=True)
class DataFormat:
    """A format of records."""

    name: str
    formula: str
    """The fields, for people."""
    needs: tuple[tuple[str, ...], ...]
    """Fields that the format is recognized by; of each inner tuple, a record has at least one."""
    read: Callable[[Fields], list[Message]]
    """Function from a record's fields to its messages; raises `Unusable`."""
    has_prompt: bool = True
    """Whether turns alternate from user to assistant. If not, a record is one text to learn."""

    def fits(self, fields: Fields) -> bool:
        """Whether a record has the fields that the format is recognized by."""
        return all(any(name in fields for name in names) for names in self.needs)


def text_field(fields: Fields, *names: str, optional: bool = False) -> str:
    """The text of the first of the named fields that is present.

    Raises:
        Unusable: it is not text, or no field is present and it is not optional.
    """
    for name in names:
        value = fields.get(name)
        if isinstance(value, str):
            return value
        if value is not None:
            raise Unusable(f"field `{name}` is not text")
    if optional:
        return ""
    raise Unusable(f"no field `{names[0]}`")


def _exchange(prompt: str, context: str, response: str) -> list[Message]:
    prompt = f"{prompt}\n\n{context}" if context.strip() else prompt
    return [Message("user", prompt), Message("assistant", response)]


def _read_alpaca(fields: Fields) -> list[Message]:
    context = text_field(fields, "input", optional=True)
    return _exchange(text_field(fields, "instruction"), context, text_field(fields, "output"))


def _read_dolly(fields: Fields) -> list[Message]:
    context = text_field(fields, "context", optional=True)
    return _exchange(text_field(fields, "instruction"), context, text_field(fields, "response"))


def _read_prompt_completion(fields: Fields) -> list[Message]:
    if isinstance(fields.get("prompt"), list):
        # Turns on both sides, as in TRL.
        return [*_read_turns(fields, "prompt"), *_read_turns(fields, "completion")]
    response = text_field(fields, "completion", "response")
    return _exchange(text_field(fields, "prompt"), "", response)


def _read_question_answer(fields: Fields) -> list[Message]:
    answers = fields.get("answers", fields.get("answer"))
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    if isinstance(answers, list):
        answers = answers[0] if answers else None
    answer = text_field({"answer": answers}, "answer")
    rationale = text_field(fields, "rationale", optional=True)
    response = f"{rationale}\n{answer}" if rationale.strip() else answer
    context = text_field(fields, "context", optional=True)
    return _exchange(text_field(fields, "question"), context, response)


def _read_text(fields: Fields) -> list[Message]:
    return [Message("assistant", text_field(fields, "text"))]


def _read_turns(fields: Fields, name: str) -> list[Message]:
    turns = fields.get(name)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable(f"field `{name}` is not a list of turns")
    return [
        Message(_role(turn, "role", "from"), text_field(turn, "content", "value")) for turn in turns
    ]


def _role(turn: Fields, *names: str) -> str:
    given = next((turn[name] for name in names if turn.get(name) is not None), None)
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise Unusable("unknown role", f"{given!a:.40}")
    return role


def _read_oasst(fields: Fields) -> list[Message]:
    """The path from the root of a tree that follows the best-ranked reply at every turn."""
    node = fields.get("prompt")
    if not isinstance(node, Mapping):
        raise Unusable("field `prompt` is not a tree of messages")
    messages: list[Message] = []
    while node is not None:
        messages.append(Message(_role(node, "role"), text_field(node, "text")))
        node = min(_replies(node), key=lambda reply: reply[0], default=(0.0, None))[1]
    # A user's last words that nobody answered have no response to learn.
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise Unusable("no reply in the tree")
    return messages


def _replies(node: Fields) -> Iterator[tuple[float, Fields]]:
    """(rank, reply) of each reply that was not deleted; replies without a rank come last."""
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise Unusable("field `replies` is not a list of messages")
    for reply in replies:
        rank = reply.get("rank")
        if not reply.get("deleted"):
            yield (rank if isinstance(rank, int | float) else float("inf")), reply


FORMATS: Registry[DataFormat] = Registry(
    "format",
    "forgetting.formats",
    [
        DataFormat(
            "messages",
            "messages: turns with role and content",
            (("messages",),),
            functools.partial(_read_turns, name="messages"),
        ),
        DataFormat(
            "sharegpt",
            "conversations: turns with from and value",
            (("conversations",),),
            functools.partial(_read_turns, name="conversations"),
        ),
        DataFormat(
            "prompt_completion",
            "prompt, completion (or response): texts, or turns",
            (("prompt",), ("completion", "response")),
            _read_prompt_completion,
        ),
        DataFormat(
            "alpaca",
            "instruction, output; input",
            (("instruction",), ("output",)),
            _read_alpaca,
        ),
        DataFormat(
            "dolly",
            "instruction, response; context",
            (("instruction",), ("response",)),
            _read_dolly,
        ),
        DataFormat(
            "question_answer",
            "question, answer (or answers); context, rationale",
            (("question",), ("answer", "answers")),
            _read_question_answer,
        ),
        DataFormat(
            "oasst",
            "message_tree_id, prompt: a tree of replies",
            (("message_tree_id",), ("prompt",)),
            _read_oasst,
        ),
        DataFormat("text", "text", (("text",),), _read_text, has_prompt=False),
    ],
)
"""Formats of records, in the order in which `format: auto` tries them."""


def register_format(
    name: str,
    read: Callable[[Fields], list[Message]],
    *,
    needs: tuple[str | tuple[str, ...], ...],
) -> None:
    """Add a data format, which recipes then accept as `format` of a source.

    Args:
        name: lowercase letters, digits and underscores.
        read: function from a record, a dictionary, to its list of `Message`: an optional system
            turn, then turns that alternate from user to assistant. An exception rejects the record.
        needs: fields that `format: auto` recognizes the format by, all of them; a tuple among them
            lists alternatives. Built-in formats are tried first.

    Raises:
        ValueError: the name is malformed or taken, or `needs` is empty.

    Example:
        >>> def read(record):
        ...     return [Message("user", record["ask"]), Message("assistant", record["reply"])]
        >>> register_format("ask_reply", read, needs=("ask", "reply"))
    """
    needs = (needs,) if isinstance(needs, str) else needs
    if not needs:
        raise ValueError(f"the format {name} needs at least one field to be recognized by")
    names = tuple((need,) if isinstance(need, str) else tuple(need) for need in needs)
    fields = ", ".join(" or ".join(alternatives) for alternatives in names)
    FORMATS.register(DataFormat(name, fields, names, functools.partial(_guarded, name, read)))


def _guarded(name: str, read: Callable[[Fields], list[Message]], fields: Fields) -> list[Message]:
    """What a user's function returns. Its exceptions become `Unusable`: one odd record must not
    end a run, and rejected records are counted."""
    try:
        messages = list(read(fields))
    except Unusable:
        raise
    except Exception as error:
        reason = f"the format {name} raises {type(error).__name__}"
        raise Unusable(reason, f"{str(error)!a:.40}") from error
    for message in messages:
        if not isinstance(message, Message) or not isinstance(message.content, str):
            raise Unusable(f"the format {name} returns something other than messages with text")
        if message.role not in ("system", "user", "assistant"):
            raise Unusable("unknown role", f"{message.role!a:.40}")
    return messages
