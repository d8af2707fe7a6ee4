"""Data formats: from a raw record to a conversation, an entry of `FORMATS` each.

Input: a record as a dictionary, as a file or the Hub has it. Output: its messages, or
`Unusable` with the reason. Knows nothing of files, recipes or tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from forgetting.registry import Registry
from forgetting.turns import (
    ROLES,
    Fields,
    is_true,
    is_turns,
    read_turns,
    role_of,
    text_field,
)
from forgetting.turns import Message as Message
from forgetting.turns import Unusable as Unusable


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
    read_rejected: Callable[[Fields], list[Message]] | None = None
    """As `read`, for the response that a record prefers another one to; None if it has none."""

    def fits(self, fields: Fields) -> bool:
        """Whether a record has the fields that the format is recognized by."""
        return all(any(name in fields for name in names) for names in self.needs)


def as_negative(messages: Sequence[Message]) -> list[Message]:
    """The messages with the responses after the last user turn negative, and earlier ones context.

    Feedback judges how a conversation goes on, not what came before.
    """
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    begin = users[-1] if users else -1
    return [
        message
        if message.role != "assistant"
        else replace(message, is_negative=True)
        if index > begin
        else replace(message, weight=0.0)
        for index, message in enumerate(messages)
    ]


def _judged(fields: Fields, messages: list[Message], *, is_flag: bool = False) -> list[Message]:
    """The messages, negative if the record is labeled false, as in KTO.

    Args:
        is_flag: whether a `label` of another kind than true and false is one of those two, too.
            If not, it may be the class of a text.
    """
    label = fields.get("label") if is_flag or _is_boolean(fields) else None
    return messages if is_true(label, "label") else as_negative(messages)


def _is_boolean(fields: Fields) -> bool:
    # A look that does not read it, so that other labels are listed as unused.
    label = dict.get(fields, "label") if isinstance(fields, dict) else fields.get("label")
    return str(label).strip().lower() in ("true", "false")


def _with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """The messages after the record's own system text, if it has one."""
    system = text_field(fields, "system", optional=True)
    if not system.strip():
        return messages
    if messages and messages[0].role == "system":
        if messages[0].content.strip() == system.strip():
            return messages
        raise Unusable("both the field `system` and a system turn")
    return [Message("system", system), *messages]


def _exchange(fields: Fields, prompt: str, context: str, response: str) -> list[Message]:
    prompt = f"{prompt}\n\n{context}" if context.strip() else prompt
    return _with_system(fields, [Message("user", prompt), Message("assistant", response)])


def _read_alpaca(fields: Fields) -> list[Message]:
    context = text_field(fields, "input", optional=True)
    messages = _exchange(
        fields, text_field(fields, "instruction"), context, text_field(fields, "output")
    )
    messages = [*messages[:-2], *_read_history(fields), *messages[-2:]]
    return _judged(fields, messages)


def _read_history(fields: Fields) -> list[Message]:
    """Earlier turns: a list of pairs of question and answer."""
    history = fields.get("history") or []
    if not isinstance(history, list):
        raise Unusable("field `history` is not a list of pairs")
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unusable("field `history` is not a list of pairs")
        if not all(isinstance(text, str) for text in pair):
            raise Unusable("field `history` is not a list of pairs of texts")
    roles = ("user", "assistant")
    return [Message(role, text) for pair in history for role, text in zip(roles, pair, strict=True)]


def _read_dolly(fields: Fields) -> list[Message]:
    context = text_field(fields, "context", optional=True)
    return _exchange(
        fields, text_field(fields, "instruction"), context, text_field(fields, "response")
    )


def _read_prompt_completion(fields: Fields) -> list[Message]:
    response = "completion" if fields.get("completion") is not None else "response"
    if is_turns(fields.get("prompt")):
        if is_turns(fields.get(response)):
            # Turns on both sides, as in TRL.
            answer = read_turns(fields, response)
        else:
            answer = [Message("assistant", text_field(fields, response))]
        turns = _with_system(fields, [*read_turns(fields, "prompt"), *answer])
        return _judged(fields, turns, is_flag=True)
    messages = _exchange(
        fields, text_field(fields, "prompt"), "", text_field(fields, "completion", "response")
    )
    return _judged(fields, messages, is_flag=True)


def _read_preference(fields: Fields, name: str = "chosen") -> list[Message]:
    """One of the two responses. It may hold the prompt, or follow it."""
    prompt = fields.get("prompt")
    if not is_turns(fields.get(name)):
        if is_turns(prompt):
            last = Message("assistant", text_field(fields, name))
            return _with_system(fields, [*read_turns(fields, "prompt"), last])
        return _exchange(fields, text_field(fields, "prompt"), "", text_field(fields, name))
    turns = read_turns(fields, name)
    if turns[0].role == "assistant":
        before = [Message("user", prompt)] if isinstance(prompt, str) else None
        turns = [*(before or read_turns(fields, "prompt")), *turns]
    return _with_system(fields, turns)


def _read_rejected(fields: Fields) -> list[Message]:
    return as_negative(_read_preference(fields, "rejected"))


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
    return _exchange(fields, text_field(fields, "question"), context, response)


def _read_text(fields: Fields) -> list[Message]:
    return [Message("assistant", text_field(fields, "text"))]


def _read_conversation(fields: Fields, name: str) -> list[Message]:
    return _judged(fields, _with_system(fields, read_turns(fields, name)))


def _read_oasst(fields: Fields) -> list[Message]:
    """The path from the root of a tree that follows the best-ranked reply at every turn."""
    node = fields.get("prompt")
    if not isinstance(node, Mapping):
        raise Unusable("field `prompt` is not a tree of messages")
    messages: list[Message] = []
    while node is not None:
        messages.append(Message(role_of(node, "role"), text_field(node, "text")))
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
            functools.partial(_read_conversation, name="messages"),
        ),
        DataFormat(
            "sharegpt",
            "conversations: turns with from and value",
            (("conversations",),),
            functools.partial(_read_conversation, name="conversations"),
        ),
        DataFormat(
            "prompt_completion",
            "prompt, completion (or response): texts, or turns",
            (("prompt",), ("completion", "response")),
            _read_prompt_completion,
        ),
        DataFormat(
            "preference",
            "chosen, rejected; prompt",
            (("chosen",), ("rejected",)),
            _read_preference,
            read_rejected=_read_rejected,
        ),
        DataFormat(
            "alpaca",
            "instruction, output; input, history",
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
            Responses of weight 0 are context; if one is negative, so are all others with a weight.
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
        if message.role not in ROLES.values():
            raise Unusable("unknown role", f"{message.role!a:.40}")
        if not isinstance(message.weight, int | float):
            raise Unusable(f"the format {name} returns a weight that is not a number")
    return messages
