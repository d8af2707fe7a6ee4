"""One conversation, whatever the form it came in.

Goes in: a raw record (a dictionary from a file or a hub). Comes out: a `Record`, or a
`Rejected` with the reason. Nothing is dropped in silence. Knows nothing of files or tokens.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from forgetting.config.schema import SourceSettings
from forgetting.data.sources import Origin
from forgetting.errors import InputError

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
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation that ends with a response; or, a lone response, a plain text."""

    messages: tuple[Message, ...]
    source: str
    origin: Origin
    noise_spans: tuple[tuple[int, int], ...] | None = None
    """Character ranges [start, end) of the last response that are known to be noise, where the
    character after the last one stands for the end of the response; empty: known to be clean;
    None: nothing is known."""
    noise_kind: str | None = None
    clean_response: str | None = None
    """The right response, where the last one is known to be noisy."""

    def with_clean_response(self) -> Record:
        """The same conversation with the right response in place of a noisy one."""
        if self.clean_response is None:
            return self
        last = Message("assistant", self.clean_response)
        return Record((*self.messages[:-1], last), self.source, self.origin, ())

    def key(self) -> bytes:
        """Equal for conversations that differ in Unicode form and white space only; 16 bytes."""
        normal = (f"{m.role}\x1f{normalised(m.content)}" for m in self.messages)
        return hashlib.blake2b("\x1e".join(normal).encode(), digest_size=16).digest()

    def keys(self) -> set[bytes]:
        """Its key, and that with the right response where one is known."""
        return {self.key(), self.with_clean_response().key()}

    def dump(self) -> bytes:
        """As one line, from which `load` makes an equal record."""
        turns = [(message.role, message.content) for message in self.messages]
        noise = (self.noise_spans, self.noise_kind, self.clean_response)
        return json.dumps((turns, self.source, self.origin, *noise), ensure_ascii=False).encode()

    @classmethod
    def load(cls, line: bytes) -> Record:
        """The inverse of `dump`."""
        turns, source, origin, spans, kind, clean = json.loads(line)
        messages = tuple(Message(role, content) for role, content in turns)
        known = None if spans is None else tuple((start, end) for start, end in spans)
        return cls(messages, source, Origin(*origin), known, kind, clean)


def normalised(text: str) -> str:
    """Text in Unicode form NFC, each stretch of white space one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be used."""

    source: str
    origin: Origin
    reason: str
    """What is wrong, in words that are the same for all records with this fault."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}{self.detail and ': '}{self.detail}"


class Unusable(Exception):
    """Why a record cannot be used; becomes a `Rejected`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}{detail and ': '}{detail}")
        self.reason = reason
        self.detail = detail


def parse_record(raw: Any, form: str, source: SourceSettings, origin: Origin) -> Record | Rejected:
    """Read one raw record in a format that `recognise` named."""
    try:
        if not isinstance(raw, Mapping):
            raise Unusable("not an object with fields")
        fields = _renamed(raw, source.fields)
        messages = tuple(READERS[form](fields))
        _check(messages, form)
        spans, kind, clean = _known_noise(fields, messages[-1].content)
    except Unusable as why:
        return Rejected(source.label, origin, why.reason, why.detail)
    # A data set that mixes kinds of records may name them itself.
    named = fields.get("source")
    label = named if source.world is not None and isinstance(named, str) else source.label
    return Record(messages, label, origin, spans, kind, clean)


def recognise(raw: Any, source: SourceSettings, where: str) -> str:
    """The format of a source, from the recipe or from the fields of its first record.

    Raises:
        InputError: the fields fit no format.
    """
    if source.format != "auto":
        return source.format
    fields = _renamed(raw, source.fields) if isinstance(raw, Mapping) else {}
    for form, needed in NEEDED_FIELDS.items():
        if all(any(name in fields for name in names) for names in needed):
            return form
    names = ", ".join(sorted(str(name)[:40] for name in fields)[:20])
    found = f"the fields {names}" if fields else "no fields"
    forms = ", ".join(f for f in get_args(SourceSettings.model_fields["format"].annotation))
    raise InputError(
        f"{where}: the format is not recognised. Its first record has {found}. Set the source's "
        f"`format` (one of {forms}) or map its fields, such as "
        "`fields: {prompt: question, completion: answer}`"
    )


def _renamed(raw: Mapping[str, Any], mapping: Mapping[str, str]) -> Mapping[str, Any]:
    return {**raw, **{name: raw.get(given) for name, given in mapping.items()}} if mapping else raw


def _text(fields: Mapping[str, Any], *names: str, optional: bool = False) -> str:
    """The first of the named fields that is there, as text."""
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


def _read_alpaca(fields: Mapping[str, Any]) -> list[Message]:
    context = _text(fields, "input", optional=True)
    return _exchange(_text(fields, "instruction"), context, _text(fields, "output"))


def _read_dolly(fields: Mapping[str, Any]) -> list[Message]:
    context = _text(fields, "context", optional=True)
    return _exchange(_text(fields, "instruction"), context, _text(fields, "response"))


def _read_prompt_completion(fields: Mapping[str, Any]) -> list[Message]:
    if isinstance(fields.get("prompt"), list):
        # Turns on both sides, as TRL has them.
        return [*_read_turns(fields, "prompt"), *_read_turns(fields, "completion")]
    return _exchange(_text(fields, "prompt"), "", _text(fields, "completion", "response"))


def _read_question_answer(fields: Mapping[str, Any]) -> list[Message]:
    answers = fields.get("answers", fields.get("answer"))
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    if isinstance(answers, list):
        answers = answers[0] if answers else None
    answer = _text({"answer": answers}, "answer")
    rationale = _text(fields, "rationale", optional=True)
    response = f"{rationale}\n{answer}" if rationale.strip() else answer
    return _exchange(_text(fields, "question"), _text(fields, "context", optional=True), response)


def _read_text(fields: Mapping[str, Any]) -> list[Message]:
    return [Message("assistant", _text(fields, "text"))]


def _read_messages(fields: Mapping[str, Any]) -> list[Message]:
    return _read_turns(fields, "messages")


def _read_sharegpt(fields: Mapping[str, Any]) -> list[Message]:
    return _read_turns(fields, "conversations")


def _read_turns(fields: Mapping[str, Any], name: str) -> list[Message]:
    turns = fields.get(name)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable(f"field `{name}` is not a list of turns")
    return [Message(_role(turn, "role", "from"), _text(turn, "content", "value")) for turn in turns]


def _role(turn: Mapping[str, Any], *names: str) -> str:
    given = next((turn[name] for name in names if turn.get(name) is not None), None)
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise Unusable("unknown role", f"{given!a:.40}")
    return role


def _read_oasst(fields: Mapping[str, Any]) -> list[Message]:
    """The path from the root of a tree that takes the best-ranked reply at every turn."""
    node = fields.get("prompt")
    if not isinstance(node, Mapping):
        raise Unusable("field `prompt` is not a tree of messages")
    messages: list[Message] = []
    while node is not None:
        messages.append(Message(_role(node, "role"), _text(node, "text")))
        node = min(_replies(node), key=lambda reply: reply[0], default=(0.0, None))[1]
    # People's last words, which nobody has answered, teach nothing.
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise Unusable("no reply in the tree")
    return messages


def _replies(node: Mapping[str, Any]) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """(rank, reply) for each reply that was not deleted; those without a rank come last."""
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise Unusable("field `replies` is not a list of messages")
    for reply in replies:
        rank = reply.get("rank")
        if not reply.get("deleted"):
            yield (rank if isinstance(rank, int | float) else float("inf")), reply


def _check(messages: tuple[Message, ...], form: str) -> None:
    """Alternating turns that end with a response which says something."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if form != "text":
        expected = ("user", "assistant")
        if not turns or len(turns) % 2:
            raise Unusable("turns do not alternate from user to assistant")
        if any(m.role != expected[i % 2] for i, m in enumerate(turns)):
            raise Unusable("turns do not alternate from user to assistant")
    for message in turns:
        if not message.content.strip():
            raise Unusable("empty response" if message.role == "assistant" else "empty prompt")
    for message in messages:
        try:
            message.content.encode()
        except UnicodeEncodeError as error:
            raise Unusable("text is not valid Unicode") from error


def _known_noise(
    fields: Mapping[str, Any], response: str
) -> tuple[tuple[tuple[int, int], ...] | None, str | None, str | None]:
    """The optional fields of a corpus whose noise is known."""
    given = fields.get("noise_spans")
    if given is None:
        return None, None, None
    try:
        spans = tuple((int(start), int(end)) for start, end in given)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unusable("`noise_spans` is not a list of [start, end]") from error
    if any(not 0 <= start < end <= len(response) + 1 for start, end in spans):
        raise Unusable("`noise_spans` reach outside the response")
    if not spans:
        return spans, None, None
    kind = _text(fields, "noise_kind", optional=True)
    clean = _text(fields, "clean_completion", optional=True)
    try:
        f"{kind}{clean}".encode()
    except UnicodeEncodeError as error:
        raise Unusable("text is not valid Unicode") from error
    return spans, kind or None, clean or None


READERS: Mapping[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "prompt_completion": _read_prompt_completion,
    "alpaca": _read_alpaca,
    "dolly": _read_dolly,
    "question_answer": _read_question_answer,
    "oasst": _read_oasst,
    "text": _read_text,
}
NEEDED_FIELDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "prompt_completion": (("prompt",), ("completion", "response")),
    "alpaca": (("instruction",), ("output",)),
    "dolly": (("instruction",), ("response",)),
    "question_answer": (("question",), ("answer", "answers")),
    "oasst": (("message_tree_id",), ("prompt",)),
    "text": (("text",),),
}
"""What a format is recognised by, tried in this order."""
