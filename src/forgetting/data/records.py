"""One conversation, whatever the form it came in.

Goes in: a raw record (a dictionary from a file or a hub). Comes out: a `Record`, or a
`Rejected` with the reason. Nothing is dropped in silence. Knows nothing of files or tokens.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from forgetting.errors import InputError
from forgetting.recipe import SourceSettings

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """A conversation that ends with a response."""

    messages: tuple[Message, ...]
    source: str
    origin: str
    """File or data set, and the number of the record in it, from 1."""
    noise_spans: tuple[tuple[int, int], ...] | None = None
    """Character ranges [start, end) of the last response that are known to be noise;
    empty: known to be clean; None: nothing is known."""
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
        """Equal for conversations that differ in Unicode form and white space only."""
        normal = (
            f"{m.role}\x1f{' '.join(unicodedata.normalize('NFC', m.content).split())}"
            for m in self.messages
        )
        return hashlib.sha256("\x1e".join(normal).encode()).digest()


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be used."""

    source: str
    origin: str
    reason: str


class Unusable(Exception):
    """Why a record cannot be used; becomes a `Rejected`."""


def parse_record(raw: Any, form: str, source: SourceSettings, origin: str) -> Record | Rejected:
    """Read one raw record in a format that `recognise` named."""
    try:
        if not isinstance(raw, Mapping):
            raise Unusable("not an object with fields")
        fields = _renamed(raw, source.fields)
        messages = tuple(READERS[form](fields))
        _check(messages)
        spans, kind, clean = _known_noise(fields, messages[-1].content)
    except Unusable as why:
        return Rejected(source.label, origin, str(why))
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
    fields = set(_renamed(raw, source.fields)) if isinstance(raw, Mapping) else set()
    for form, needed in NEEDED_FIELDS.items():
        if all(any(name in fields for name in names) for names in needed):
            return form
    found = f"the fields {', '.join(sorted(map(str, fields)))}" if fields else "no fields"
    forms = ", ".join(f for f in get_args(SourceSettings.model_fields["format"].annotation))
    raise InputError(
        f"{where}: the format is not recognised. Its first record has {found}. Set the source's "
        f"`format` (one of {forms}) or map its fields, such as "
        "`fields: {prompt: question, completion: answer}`"
    )


def _renamed(raw: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    return {**raw, **{name: raw.get(given) for name, given in mapping.items()}}


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


def _prompt_and_input(prompt: str, context: str) -> str:
    return f"{prompt}\n\n{context}" if context.strip() else prompt


def _read_alpaca(fields: Mapping[str, Any]) -> list[Message]:
    prompt = _prompt_and_input(_text(fields, "instruction"), _text(fields, "input", optional=True))
    return [Message("user", prompt), Message("assistant", _text(fields, "output"))]


def _read_dolly(fields: Mapping[str, Any]) -> list[Message]:
    context = _text(fields, "context", optional=True)
    prompt = _prompt_and_input(_text(fields, "instruction"), context)
    return [Message("user", prompt), Message("assistant", _text(fields, "response"))]


def _read_prompt_completion(fields: Mapping[str, Any]) -> list[Message]:
    completion = _text(fields, "completion", "response")
    return [Message("user", _text(fields, "prompt")), Message("assistant", completion)]


def _read_messages(fields: Mapping[str, Any]) -> list[Message]:
    return _read_turns(fields, "messages", "role", "content", {role: role for role in ROLES})


def _read_sharegpt(fields: Mapping[str, Any]) -> list[Message]:
    return _read_turns(fields, "conversations", "from", "value", SHAREGPT_ROLES)


def _read_turns(
    fields: Mapping[str, Any], name: str, role_key: str, text_key: str, roles: Mapping[str, str]
) -> list[Message]:
    turns = fields.get(name)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable(f"field `{name}` is not a list of turns")
    messages = []
    for turn in turns:
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in roles:
            raise Unusable(f"unknown role {role!r:.40}")
        messages.append(Message(roles[role], _text(turn, text_key)))
    return messages


def _check(messages: tuple[Message, ...]) -> None:
    """Alternating turns that end with a response which says something."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    expected = ("user", "assistant")
    if not turns or len(turns) % 2 or any(m.role != expected[i % 2] for i, m in enumerate(turns)):
        raise Unusable("turns do not alternate from user to assistant")
    if not all(m.content.strip() for m in turns if m.role == "assistant"):
        raise Unusable("empty response")
    if not all(m.content.strip() for m in turns if m.role == "user"):
        raise Unusable("empty prompt")
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
    except (TypeError, ValueError) as error:
        raise Unusable("`noise_spans` is not a list of [start, end]") from error
    if any(not 0 <= start < end <= len(response) for start, end in spans):
        raise Unusable("`noise_spans` reach outside the response")
    kind, clean = fields.get("noise_kind"), fields.get("clean_completion")
    return spans, kind if spans else None, clean if spans else None


READERS: Mapping[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "prompt_completion": _read_prompt_completion,
    "alpaca": _read_alpaca,
    "dolly": _read_dolly,
}
NEEDED_FIELDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "prompt_completion": (("prompt",), ("completion", "response")),
    "alpaca": (("instruction",), ("output",)),
    "dolly": (("instruction",), ("response",)),
}
