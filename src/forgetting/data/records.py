"""A raw record of any format as one conversation.

Input: a raw record, a dictionary from a file or the Hub. Output: a `Record`, or a `Rejected`
with the reason, so that every dropped record is counted. Knows nothing of files or tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from forgetting.config import SourceSettings
from forgetting.data.files import Unreadable
from forgetting.data.sources import Origin
from forgetting.data.usage import TrackedFields, renamed, tracked
from forgetting.errors import InputError, UnusableRecords
from forgetting.formats import FORMATS, Message, Unusable
from forgetting.turns import Fields, text_field, tool_objects

LARGEST_WEIGHT = 3e38
"""Weights are float32 in training."""
LONGEST_MARKS = 1000
"""Consecutive combining marks that are normalized; a letter of any language has less than 30."""


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation that ends with a response; or, a lone response, a plain text."""

    messages: tuple[Message, ...]
    source: str
    origin: Origin
    noise_spans: tuple[tuple[int, int], ...] | None = None
    """Character ranges [start, end) of the last response that are known to be noise, where the
    character after the last one is the end of the response; empty: known to be clean;
    None: nothing is known."""
    noise_kind: str | None = None
    clean_response: str | None = None
    """The right response, where the last one is known to be noisy."""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """Tools that the responses may call, as JSON objects."""

    @property
    def is_negative(self) -> bool:
        """Whether its labeled responses are ones to forget."""
        return self.messages[-1].is_negative

    @property
    def num_weightless_turns(self) -> int:
        """Responses that are read and not learned."""
        return sum(m.role == "assistant" and m.is_context for m in self.messages)

    def with_clean_response(self) -> Record:
        """The same conversation with the right response in place of a noisy one."""
        if self.clean_response is None:
            return self
        last = replace(self.messages[-1], content=self.clean_response)
        messages = (*self.messages[:-1], last)
        return replace(
            self, messages=messages, noise_spans=(), noise_kind=None, clean_response=None
        )

    def key(self) -> bytes:
        """Equal for conversations that differ in Unicode form and white space only; 16 bytes."""
        normal = [f"{m.role}\x1f{normalised(m.content)}" for m in self.messages]
        more = [(m.is_context, m.extra) for m in self.messages if m.is_context or m.extra]
        if more or self.tools or self.is_negative:
            known = (more, self.tools, self.is_negative)
            normal.append(json.dumps(known, sort_keys=True, default=str))
        return hashlib.blake2b("\x1e".join(normal).encode(), digest_size=16).digest()

    def keys(self) -> set[bytes]:
        """Its key, and that with the right response where one is known."""
        return {self.key(), self.with_clean_response().key()}

    def dump(self) -> bytes:
        """As one line, from which `load` makes an equal record."""
        turns = [message.dump() for message in self.messages]
        noise = (self.noise_spans, self.noise_kind, self.clean_response)
        values = (turns, self.source, self.origin, *noise, self.tools)
        return json.dumps(values, ensure_ascii=False).encode()

    @classmethod
    def load(cls, line: bytes) -> Record:
        """The inverse of `dump`."""
        turns, source, origin, spans, kind, clean, tools = json.loads(line)
        messages = tuple(map(Message.load, turns))
        known = None if spans is None else tuple((start, end) for start, end in spans)
        return cls(messages, source, Origin(*origin), known, kind, clean, tuple(tools))


def normalised(text: str) -> str:
    """Text in Unicode form NFC, each stretch of white space one space.

    A stretch of more than `LONGEST_MARKS` combining marks stays as it is: putting marks into order
    takes a time that grows with the square of their number.
    """
    if len(text) <= LONGEST_MARKS or text.isascii():
        return " ".join(unicodedata.normalize("NFC", text).split())
    parts = _many_marks().split(text)
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return " ".join("".join(parts).split())


@functools.cache
def _many_marks() -> re.Pattern[str]:
    """A stretch of too many combining marks, as a group."""
    characters = map(chr, range(0x80, sys.maxunicode + 1))
    # Some characters are no marks themselves, but are taken apart into marks.
    marks = [c for c in characters if unicodedata.combining(unicodedata.normalize("NFD", c)[0])]
    return re.compile(f"([{''.join(marks)}]{{{LONGEST_MARKS},}})")


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


def parse_records(
    raw: Any, form: str, source: SourceSettings, origin: Origin
) -> list[Record | Rejected]:
    """Read the samples of one raw record in a format that `recognise` named.

    There is one, or with `negatives: rejected` two: the preferred response, and the other one.

    Args:
        form: not used if the record is an `Unreadable`, which is rejected.

    Raises:
        InputError: as `parse_record`.
    """
    if isinstance(raw, Unreadable):
        return [Rejected(source.label, origin, raw.reason, raw.detail)]
    fields = raw
    if isinstance(raw, Mapping) and not isinstance(raw, TrackedFields):
        fields = tracked(raw, source.fields)
    first = parse_record(fields, form, source, origin)
    read_rejected = FORMATS[form].read_rejected
    if source.negatives is None or read_rejected is None:
        return [first]
    other = parse_record(fields, form, source, origin, read_rejected)
    if isinstance(first, Record) and isinstance(other, Record) and _same_text(first, other):
        other = Rejected(source.label, origin, "`rejected` is the same as `chosen`")
    return [first, other]


def _same_text(first: Record, other: Record) -> bool:
    texts = [[normalised(m.content) for m in record.messages] for record in (first, other)]
    extras = [[m.extra for m in record.messages] for record in (first, other)]
    return texts[0] == texts[1] and extras[0] == extras[1]


def parse_record(
    raw: Any,
    form: str,
    source: SourceSettings,
    origin: Origin,
    read: Callable[[Fields], list[Message]] | None = None,
) -> Record | Rejected:
    """Read one raw record in a format that `recognise` named.

    Args:
        read: function from fields to messages; default: that of the format.

    Raises:
        InputError: the weight of a turn is negative or not finite.
    """
    try:
        if not isinstance(raw, Mapping):
            raise Unusable("not an object with fields")
        fields = raw if isinstance(raw, TrackedFields) else tracked(raw, source.fields)
        turns = tuple((read or FORMATS[form].read)(fields))
        tools = tuple(_tools(fields)) if FORMATS[form].has_prompt else ()
        _check_weights(turns, origin)
        _check(turns, form)
        _check_text(turns, tools)
        messages = _learned(turns)
        spans, kind, clean = _known_noise(fields, messages[-1].content)
        if spans is not None and (len(messages) < len(turns) or messages[-1].extra):
            raise Unusable("`noise_spans` of a record that ends with a tool call or context")
    except Unusable as why:
        return Rejected(source.label, origin, why.reason, why.detail)
    # The demo's world mixes kinds of records and names them itself.
    named = fields.get("source") if source.world is not None else None
    label = named if isinstance(named, str) else source.label
    return Record(messages, label, origin, spans, kind, clean, tools)


def _tools(fields: Fields) -> list[dict[str, Any]]:
    """The tools of a record: `tools`, or the `functions` that came before them."""
    tools, functions = tool_objects(fields, "tools"), tool_objects(fields, "functions")
    if tools and functions:
        raise Unusable("both `tools` and `functions`")
    return tools or [{"type": "function", "function": function} for function in functions]


def _check_weights(messages: tuple[Message, ...], origin: Origin) -> None:
    """Refuse weights that no loss can have: the run stops, because nobody means them."""
    for message in messages:
        if not 0 <= message.weight <= LARGEST_WEIGHT:
            raise InputError(
                f"{origin}: a turn has the weight {message.weight:g}. Set a finite number of at "
                "least 0"
            )


def recognise(raw: Any, source: SourceSettings, where: str) -> str:
    """The format of a source, from the recipe or from the fields of its first record.

    Raises:
        UnusableRecords: the fields fit no format.
    """
    if source.format != "auto":
        return source.format
    fields = renamed(raw, source.fields) if isinstance(raw, Mapping) else {}
    for name, form in FORMATS.items():
        if form.fits(fields):
            return name
    names = ", ".join(sorted(str(name)[:40] for name in fields)[:20])
    found = f"the fields {names}" if fields else "no fields"
    raise UnusableRecords(
        f"{where}: the format is not recognized. The first record has {found}. ",
        f"Set the source's `format` (one of {', '.join(FORMATS)}) or rename its fields, for "
        "example `fields: {prompt: question, completion: answer}`",
    )


def _check(messages: tuple[Message, ...], form: str) -> None:
    """Alternating turns that end with a response which says something.

    Between a call and the next response are the results of the tools.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if FORMATS[form].has_prompt:
        expected = {"user"}
        for turn in turns:
            if turn.role not in expected:
                raise Unusable("turns do not alternate from user to assistant")
            expected = {
                "user": {"assistant"},
                "assistant": {"tool"} if "tool_calls" in turn.extra else {"user"},
                "tool": {"tool", "assistant"},
            }[turn.role]
        if not turns or turns[-1].role != "assistant":
            raise Unusable("turns do not alternate from user to assistant")
    if len({turn.is_negative for turn in turns if turn.role == "assistant" and turn.weight}) > 1:
        raise Unusable("some responses are negative and others are learned")
    for turn in turns:
        if turn.content.strip() or "tool_calls" in turn.extra or turn.role == "tool":
            continue
        raise Unusable("empty response" if turn.role == "assistant" else "empty prompt")


def _check_text(messages: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...]) -> None:
    """Refuse lone surrogates, which no file can hold."""
    extras = [message.extra for message in messages if message.extra]
    texts = [message.content for message in messages]
    if extras or tools:
        texts.append(json.dumps((extras, tools), ensure_ascii=False, default=str))
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unusable("text is not valid Unicode") from error


def _learned(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages up to the last response that is learned: no loss depends on what follows."""
    for end in range(len(messages), 0, -1):
        if messages[end - 1].role == "assistant" and not messages[end - 1].is_context:
            return messages[:end]
    raise Unusable("every response is marked as context")


def _known_noise(
    fields: Mapping[str, Any], response: str
) -> tuple[tuple[tuple[int, int], ...] | None, str | None, str | None]:
    """The optional fields of a corpus whose noise is known."""
    given = fields.get("noise_spans")
    if given is None:
        return None, None, None
    if not isinstance(given, list | tuple) or not all(map(_is_range, given)):
        raise Unusable("`noise_spans` is not a list of [start, end]")
    spans = tuple((start, end) for start, end in given)
    if any(not 0 <= start < end <= len(response) + 1 for start, end in spans):
        raise Unusable("`noise_spans` reach outside the response")
    if not spans:
        return spans, None, None
    kind = text_field(fields, "noise_kind", optional=True)
    clean = text_field(fields, "clean_completion", optional=True)
    try:
        f"{kind}{clean}".encode()
    except UnicodeEncodeError as error:
        raise Unusable("text is not valid Unicode") from error
    return spans, kind or None, clean or None


def _is_range(given: Any) -> bool:
    """Whether a value is a pair of integers, which true and false are not."""
    return (
        isinstance(given, list | tuple)
        and len(given) == 2
        and all(isinstance(place, int) and not isinstance(place, bool) for place in given)
    )
