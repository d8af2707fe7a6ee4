"""A raw record of any format as one conversation.

Goes in: a raw record, a dictionary from a file or the Hub. Comes out: a `Record`, or a `Rejected`
with the reason, so that every dropped record is counted. Knows nothing of files or tokens.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forgetting.config import SourceSettings
from forgetting.data.sources import Origin
from forgetting.errors import InputError
from forgetting.formats import FORMATS, Message, Unusable, text_field


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


def parse_record(raw: Any, form: str, source: SourceSettings, origin: Origin) -> Record | Rejected:
    """Read one raw record in a format that `recognise` named."""
    try:
        if not isinstance(raw, Mapping):
            raise Unusable("not an object with fields")
        fields = _renamed(raw, source.fields)
        messages = tuple(FORMATS[form].read(fields))
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
    for name, form in FORMATS.items():
        if form.fits(fields):
            return name
    names = ", ".join(sorted(str(name)[:40] for name in fields)[:20])
    found = f"the fields {names}" if fields else "no fields"
    raise InputError(
        f"{where}: the format is not recognized. The first record has {found}. Set the source's "
        f"`format` (one of {', '.join(FORMATS)}) or rename its fields, for example "
        "`fields: {prompt: question, completion: answer}`"
    )


def _renamed(raw: Mapping[str, Any], mapping: Mapping[str, str]) -> Mapping[str, Any]:
    return {**raw, **{name: raw.get(given) for name, given in mapping.items()}} if mapping else raw


def _check(messages: tuple[Message, ...], form: str) -> None:
    """Alternating turns that end with a response which says something."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if FORMATS[form].has_prompt:
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
    kind = text_field(fields, "noise_kind", optional=True)
    clean = text_field(fields, "clean_completion", optional=True)
    try:
        f"{kind}{clean}".encode()
    except UnicodeEncodeError as error:
        raise Unusable("text is not valid Unicode") from error
    return spans, kind or None, clean or None
