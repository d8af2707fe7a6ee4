"""From conversations to token ids and labels.

Goes in: messages and a tokenizer. Comes out: `input_ids`, `labels` (-100 outside the responses)
and, where noise is known, one flag per response token. Only responses and the token that ends
each are labelled. Text of the data becomes no special token unless asked. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from forgetting.data.records import Message, Record, Unusable
from forgetting.data.sources import Origin
from forgetting.errors import InputError
from forgetting.rundir.samples import IGNORE_INDEX

_MARK = re.compile("\ue000[0-9]+\ue001")
# Text to put before another, one of which surely does not merge with it.
_LEADS = ("\n", "a", ".")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenised conversation."""

    input_ids: list[int]
    labels: list[int]
    """Same length: the token where it is to be predicted, -100 elsewhere and at position 0."""
    noise: list[int] | None
    """One flag per labelled token, in order; None where nothing is known."""


class _Piece(NamedTuple):
    """A stretch of rendered text."""

    text: str
    from_data: bool
    """Content of a message: special tokens in it are mere text."""
    is_response: bool
    noise_spans: tuple[tuple[int, int], ...] = ()
    """Character ranges of the text that are known to be noise."""


class _Run(NamedTuple):
    """A stretch that is tokenised in one go: a special token, or the text between two."""

    pieces: list[_Piece]
    special_id: int | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class _Encoded(NamedTuple):
    """The tokens of a run: ids, whether each is of a response, whether each is known noise."""

    ids: list[int]
    is_response: list[bool]
    noise: list[bool]


class Tokenization:
    """Turns records into tokens with one tokenizer and one template.

    The template is `chat_template`, else the tokenizer's own, else the plain one:
    `<|role|>`, a line break, the content and a line break for each message, with the
    end-of-sequence token after each response. A plain text (a lone response) takes no template.

    Args:
        tokenizer: a fast tokenizer with an end-of-sequence token.
        chat_template: Jinja source.
        special_tokens_in_text: special tokens written out in the data become tokens.

    Raises:
        InputError: the template cannot be used for training.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        *,
        special_tokens_in_text: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template or tokenizer.chat_template
        self._split_special = not special_tokens_in_text
        special = {
            str(token): index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        self._special = special | dict(
            zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        )
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        # Some tokens take the white space of the template beside them along.
        added = tokenizer.added_tokens_decoder.values()
        self._strips_after = {str(token) for token in added if token.rstrip}
        self._strips_before = {str(token) for token in added if token.lstrip}
        self._skeletons: dict[tuple[str, ...], list[str]] = {}
        self.end_token_ids: set[int] = {tokenizer.eos_token_id}
        """Tokens that end a response or a turn, as far as conversations have been seen."""
        # What the tokenizer puts before any text: nothing, or its BOS.
        self._prefix = list(tokenizer("").input_ids)
        if self._prefix and self._prefix[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
            self._prefix.pop()
        self._lead_ids = {
            lead: encoding.ids
            for lead, encoding in zip(_LEADS, self._encode_texts(_LEADS), strict=True)
        }
        self._marks_beginning = self._find_marks_beginning()
        if self.chat_template:
            self._probe()

    def _find_marks_beginning(self) -> bool:
        """Whether a text begins with a token of its own, but not after a special token."""
        eos, text = str(self.tokenizer.eos_token), "a b"
        (alone,) = self._encode_texts([text])
        after = self.tokenizer(
            eos + text, add_special_tokens=False, split_special_tokens=False, verbose=False
        ).input_ids
        return after[0] == self.tokenizer.eos_token_id and after[1:] != alone.ids

    def _probe(self) -> None:
        """Refuse a template that fails on any conversation."""
        messages = (Message("user", "Is it so?"), Message("assistant", "It is."))
        record = Record(messages, "", Origin("", 1))
        try:
            self._pieces(record, *self._render([messages]))
        except Unusable as why:
            raise InputError(f"{why}. Give another template in model.chat_template") from why

    def encode(self, record: Record) -> Tokens:
        """Tokenise one record, uncut.

        Raises:
            Unusable: the template fails on it, or does not keep its text.
        """
        (result,) = self.encode_batch([record])
        if isinstance(result, Unusable):
            raise result
        return result

    def encode_batch(self, records: Sequence[Record]) -> list[Tokens | Unusable]:
        """Tokenise records, uncut; in place of one that cannot be, the reason."""
        results: list[Tokens | Unusable] = []
        per_record = [
            pieces if isinstance(pieces, Unusable) else list(self._runs(pieces))
            for pieces in self._pieces_of_all(records)
        ]
        # All texts in one call: the tokenizer works on them in parallel.
        texts, leads = [], []
        for runs in per_record:
            for index, run in enumerate(() if isinstance(runs, Unusable) else runs):
                if run.special_id is None:
                    lead = _LEADS[0] if self._marks_beginning and index else ""
                    leads.append(lead)
                    texts.append(lead + run.text)
        encodings = iter(zip(leads, self._encode_texts(texts), strict=True))
        for record, runs in zip(records, per_record, strict=True):
            if isinstance(runs, Unusable):
                results.append(runs)
                continue
            has_prefix = not self.chat_template or _is_text(record)
            ids = list(self._prefix) if has_prefix else []
            is_response, noise = [False] * len(ids), [False] * len(ids)
            for run in runs:
                if run.special_id is not None:
                    (piece,) = run.pieces
                    is_noise = bool(piece.noise_spans)
                    part = _Encoded([run.special_id], [piece.is_response], [is_noise])
                else:
                    lead, encoding = next(encodings)
                    part = self._attribute(run, lead, encoding)
                ids += part.ids
                is_response += part.is_response
                noise += part.noise
            # Nothing comes before the first token that it could be predicted from.
            is_response[0] = False
            labels = [
                token if labelled else IGNORE_INDEX
                for token, labelled in zip(ids, is_response, strict=True)
            ]
            flags = None
            if record.noise_spans is not None:
                flags = [int(n) for n, r in zip(noise, is_response, strict=True) if r]
            results.append(Tokens(ids, labels, flags))
        return results

    def _pieces_of_all(self, records: Sequence[Record]) -> Iterator[list[_Piece] | Unusable]:
        templated = [r for r in records if self.chat_template and not _is_text(r)]
        rendered = iter(self._render_each(templated))
        for record in records:
            if _is_text(record):
                text, spans = record.messages[-1].content, record.noise_spans or ()
                yield [
                    _Piece(text, True, True, spans),
                    _end_piece(str(self.tokenizer.eos_token), len(text), spans),
                ]
            elif not self.chat_template:
                yield self._plain_pieces(record)
            else:
                rendering = next(rendered)
                try:
                    if isinstance(rendering, Unusable):
                        yield rendering
                    else:
                        yield self._pieces(record, rendering)
                except Unusable as why:
                    yield why

    def _pieces(self, record: Record, rendered: str) -> list[_Piece]:
        contents = [message.content for message in record.messages]
        skeleton = self._skeleton(tuple(message.role for message in record.messages))
        shift = 0
        if _fill(skeleton, contents) != rendered:
            # Some templates strip the content; then so do we, and noise moves along.
            shift = len(contents[-1]) - len(contents[-1].lstrip())
            contents = [content.strip() for content in contents]
            if _fill(skeleton, contents) != rendered:
                raise Unusable(
                    "the chat template changes the text of the messages, so its responses cannot "
                    "be found in it"
                )
        pieces = [_Piece(skeleton[0], False, False)]
        last = len(contents) - 1
        for index, (message, content) in enumerate(zip(record.messages, contents, strict=True)):
            response = message.role == "assistant"
            spans = given_spans = record.noise_spans or () if index == last else ()
            if shift:
                spans = tuple(
                    (max(start - shift, 0), min(end - shift, len(content))) for start, end in spans
                )
            pieces.append(_Piece(content, True, response, spans))
            after = skeleton[index + 1]
            if response:
                # A turn ends with the first special token after it; what follows is template.
                end = self._turn_end(after)
                pieces.append(_end_piece(after[:end], len(message.content), given_spans))
                after = after[end:]
            pieces.append(_Piece(after, False, False))
        return pieces

    def _turn_end(self, after: str) -> int:
        """Where the first special token of the text after a response ends."""
        found = self._special_pattern.search(after)
        if found is None:
            raise Unusable(
                "the chat template ends responses without a special token, so a model would not "
                "learn to stop"
            )
        self.end_token_ids.add(self._special[found[0]])
        return found.end()

    def _plain_pieces(self, record: Record) -> list[_Piece]:
        pieces = []
        last = len(record.messages) - 1
        for index, message in enumerate(record.messages):
            response = message.role == "assistant"
            pieces.append(_Piece(f"<|{message.role}|>\n", False, False))
            spans = record.noise_spans or () if index == last else ()
            pieces.append(_Piece(message.content, True, response, spans))
            if response:
                eos_token = str(self.tokenizer.eos_token)
                pieces.append(_end_piece(eos_token, len(message.content), spans))
            if index < last:
                pieces.append(_Piece("\n", False, False))
        return pieces

    def _skeleton(self, roles: tuple[str, ...]) -> list[str]:
        """The template's own text around the contents, which depends on the roles alone."""
        if roles not in self._skeletons:
            marked = [Message(role, f"\ue000{index}\ue001") for index, role in enumerate(roles)]
            (text,) = self._render([marked])
            parts = _MARK.split(text)
            if len(parts) != len(roles) + 1:
                raise Unusable("the chat template leaves out or repeats messages")
            for role, after in zip(roles, parts[1:], strict=True):
                if role == "assistant":
                    self._turn_end(after)
            self._skeletons[roles] = parts
        return self._skeletons[roles]

    def _render_each(self, records: Sequence[Record]) -> list[str | Unusable]:
        if not records:
            return []
        try:
            return list(self._render([record.messages for record in records]))
        except Unusable:
            results: list[str | Unusable] = []
            for record in records:
                try:
                    results += self._render([record.messages])
                except Unusable as why:
                    results.append(why)
            return results

    def _render(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        turns = [[{"role": m.role, "content": m.content} for m in c] for c in conversations]
        try:
            return self.tokenizer.apply_chat_template(
                turns, chat_template=self.chat_template, tokenize=False
            )
        # A template is a program: it may divide by zero, or index what is not there.
        except (TemplateError, ArithmeticError, LookupError, ValueError, TypeError) as error:
            detail = " ".join(str(error).split())[:200]
            raise Unusable("the chat template fails", detail) from error

    def _runs(self, pieces: Sequence[_Piece]) -> Iterator[_Run]:
        run: list[_Piece] = []
        strips = False
        for piece in pieces:
            if piece.from_data:
                if piece.text:
                    run.append(piece)
                    strips = False
                continue
            for part in self._special_pattern.split(piece.text):
                if part in self._special:
                    if part in self._strips_before and run and not run[-1].from_data:
                        run[-1] = run[-1]._replace(text=run[-1].text.rstrip())
                    if any(p.text for p in run):
                        yield _Run(run)
                    yield _Run([piece._replace(text=part)], self._special[part])
                    run, strips = [], part in self._strips_after
                    continue
                text = part.lstrip() if strips else part
                if text:
                    run.append(piece._replace(text=text))
                    strips = False
        if run:
            yield _Run(run)

    def _encode_texts(self, texts: Sequence[str]) -> list[Any]:
        """One `tokenizers.Encoding` for each text."""
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=self._split_special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return batch.encodings

    def _attribute(self, run: _Run, lead: str, encoding: Any) -> _Encoded:
        """Which tokens of a run are of a response, and which of these are known noise."""
        if lead:
            ids, offsets = self._continued(run.text, lead, encoding)
        else:
            ids, offsets = encoding.ids, None
        boundary = _single_boundary(run)
        if boundary is not None and offsets is None:
            start = _token_at(encoding, boundary, len(run.text))
            if start is not None:
                flags = [False] * start + [True] * (len(ids) - start)
                return _Encoded(ids, flags, [False] * len(ids))
        if offsets is None:
            offsets = encoding.offsets
        return self._attribute_each(run, ids, offsets)

    def _attribute_each(
        self, run: _Run, ids: list[int], offsets: Sequence[tuple[int, int]]
    ) -> _Encoded:
        boundaries = []
        end = 0
        for piece in run.pieces:
            boundaries.append((end, end + len(piece.text), piece))
            end += len(piece.text)
        is_response, noise = [], []
        at = 0
        for start, stop in offsets:
            while at + 1 < len(boundaries) and start >= boundaries[at][1]:
                at += 1
            piece_start, piece_end, piece = boundaries[at]
            if stop > piece_end and any(
                p.is_response != piece.is_response for s, _, p in boundaries if start < s < stop
            ):
                # A token that spans prompt and response: neither could label it rightly.
                return self._encode_apart(run)
            is_response.append(piece.is_response)
            noise.append(
                any(
                    start - piece_start < noise_end and stop - piece_start > noise_start
                    for noise_start, noise_end in piece.noise_spans
                )
            )
        return _Encoded(ids, is_response, noise)

    def _encode_apart(self, run: _Run) -> _Encoded:
        """Tokenise prompt and response each by itself, as generation after a prompt does."""
        whole = _Encoded([], [], [])
        groups: list[list[_Piece]] = []
        for piece in run.pieces:
            if groups and groups[-1][-1].is_response == piece.is_response:
                groups[-1].append(piece)
            else:
                groups.append([piece])
        for number, group in enumerate(groups):
            text = "".join(piece.text for piece in group)
            if number:
                ids, offsets = self._continued(text)
            else:
                (encoding,) = self._encode_texts([text])
                ids, offsets = encoding.ids, encoding.offsets
            part = self._attribute_each(_Run(group), ids, offsets)
            whole.ids.extend(part.ids)
            whole.is_response.extend(part.is_response)
            whole.noise.extend(part.noise)
        return whole

    def _continued(
        self, text: str, lead: str = "", encoding: Any = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens and offsets of a text that goes on from another.

        Tokenizers that mark the beginning of any text must not do so within one, so it is encoded
        after a lead that is taken off again.
        """
        for attempt in (lead, *_LEADS) if lead else _LEADS:
            if attempt != lead:
                (encoding,) = self._encode_texts([attempt + text])
            alone = self._lead_ids[attempt]
            size = len(alone)
            offsets = encoding.offsets
            if encoding.ids[:size] == alone and offsets[size - 1][1] <= len(attempt):
                shift = len(attempt)
                shifted = [(max(s - shift, 0), max(e - shift, 0)) for s, e in offsets[size:]]
                return encoding.ids[size:], shifted
        (encoding,) = self._encode_texts([text])
        return encoding.ids, encoding.offsets


def _is_text(record: Record) -> bool:
    return len(record.messages) == 1


def _end_piece(text: str, length: int, spans: Sequence[tuple[int, int]]) -> _Piece:
    """What the template ends a response of `length` characters with: noise as a whole where a span
    reaches beyond the last character, for the response then ends in the wrong place."""
    is_noise = any(end > length for _, end in spans)
    return _Piece(text, False, True, ((0, len(text)),) if is_noise else ())


def _token_at(encoding: Any, position: int, length: int) -> int | None:
    """The token that begins at a character; None where one spans it, or none covers it."""
    if position in (0, length):
        return len(encoding) if position else 0
    token = encoding.char_to_token(position)
    if not token or encoding.token_to_chars(token)[0] != position:
        return None
    return token if encoding.token_to_chars(token - 1)[1] <= position else None


def _single_boundary(run: _Run) -> int | None:
    """Where the only response of a run begins, if all after it is response and none is noise.

    The length of the run where it holds none; None where it is not so simple.
    """
    position = 0
    begin = None
    for piece in run.pieces:
        if piece.noise_spans or (begin is not None and not piece.is_response):
            return None
        if piece.is_response and begin is None:
            begin = position
        position += len(piece.text)
    return position if begin is None else begin


def _fill(skeleton: Sequence[str], contents: Sequence[str]) -> str:
    parts = [skeleton[0]]
    for content, after in zip(contents, skeleton[1:], strict=True):
        parts += [content, after]
    return "".join(parts)


def cut(tokens: Tokens, max_length: int) -> Tokens:
    """The first `max_length` tokens, with the labels and flags that belong to them."""
    if len(tokens.input_ids) <= max_length:
        return tokens
    labels = tokens.labels[:max_length]
    num_labelled = len(labels) - labels.count(IGNORE_INDEX)
    noise = None if tokens.noise is None else tokens.noise[:num_labelled]
    return Tokens(tokens.input_ids[:max_length], labels, noise)
