"""From conversations to token ids and labels.

Goes in: messages and a tokenizer. Comes out: `input_ids`, `labels` (-100 outside the responses)
and, where noise is known, one flag per response token. Only responses and the token that ends
each are labelled. Text of the data never becomes a special token. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from forgetting.data.records import Message, Record
from forgetting.data.samples import IGNORE_INDEX
from forgetting.errors import InputError


@dataclass(frozen=True)
class Tokens:
    """A tokenised conversation."""

    input_ids: list[int]
    labels: list[int]
    """Same length: the token where it is to be predicted, -100 elsewhere and at position 0."""
    noise: list[int] | None
    """One flag per labelled token, in order; None where nothing is known."""


@dataclass(frozen=True)
class _Piece:
    """A stretch of rendered text."""

    text: str
    from_data: bool
    """Content of a message: special tokens in it are mere text."""
    is_response: bool
    noise_spans: tuple[tuple[int, int], ...] = ()


class Tokenization:
    """Turns records into tokens with one tokenizer and one template.

    The template is `chat_template`, else the tokenizer's own, else the plain one:
    `<|role|>`, a line break, the content and a line break for each message, with the
    end-of-sequence token after each response.

    Args:
        tokenizer: a fast tokenizer with an end-of-sequence token.
        chat_template: Jinja source.

    Raises:
        InputError: the template cannot be used for training.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template or tokenizer.chat_template
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
        self._skeletons: dict[tuple[str, ...], list[str]] = {}
        # What the tokenizer puts before any text: nothing, or its BOS.
        self._prefix = list(tokenizer("").input_ids)
        if self._prefix and self._prefix[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
            self._prefix.pop()

    def encode(self, record: Record) -> Tokens:
        """Tokenise one record, uncut.

        Raises:
            InputError: the template fails on it, or does not keep its text.
        """
        ids: list[int] = []
        labels: list[int] = []
        noise: list[int] = []
        if not self.chat_template:
            ids += self._prefix
            labels += [IGNORE_INDEX] * len(ids)
        for run in self._runs(self._pieces(record)):
            for token, is_response, noisy in self._encode_run(run):
                labelled = is_response and bool(ids)
                ids.append(token)
                labels.append(token if labelled else IGNORE_INDEX)
                if labelled:
                    noise.append(int(noisy))
        return Tokens(ids, labels, None if record.noise_spans is None else noise)

    def _pieces(self, record: Record) -> list[_Piece]:
        if not self.chat_template:
            return self._plain_pieces(record)
        contents = [message.content for message in record.messages]
        skeleton = self._skeleton(tuple(message.role for message in record.messages))
        rendered = self._render(record.messages, record.origin)
        shift = 0
        if _fill(skeleton, contents) != rendered:
            # Some templates strip the content; then so do we, and noise moves along.
            shift = len(contents[-1]) - len(contents[-1].lstrip())
            contents = [content.strip() for content in contents]
            if _fill(skeleton, contents) != rendered:
                raise InputError(
                    f"{record.origin}: the chat template changes the text of the messages, so its "
                    "responses cannot be found in it. Give another one in model.chat_template"
                )
        pieces = [_Piece(skeleton[0], False, False)]
        last = len(contents) - 1
        for index, (message, content) in enumerate(zip(record.messages, contents, strict=True)):
            response = message.role == "assistant"
            spans = record.noise_spans or () if index == last else ()
            moved = tuple(
                (max(start - shift, 0), min(end - shift, len(content))) for start, end in spans
            )
            pieces.append(_Piece(content, True, response, moved))
            after = skeleton[index + 1]
            if response:
                # A turn ends with the first special token after it; what follows is template.
                end = self._special_pattern.search(after)
                if end is None:
                    raise InputError(
                        "the chat template ends responses without a special token, so a model "
                        "would not learn to stop. Give another one in model.chat_template"
                    )
                pieces.append(_Piece(after[: end.end()], False, True))
                after = after[end.end() :]
            pieces.append(_Piece(after, False, False))
        return pieces

    def _plain_pieces(self, record: Record) -> list[_Piece]:
        pieces = []
        last = len(record.messages) - 1
        for index, message in enumerate(record.messages):
            response = message.role == "assistant"
            pieces.append(_Piece(f"<|{message.role}|>\n", False, False))
            spans = record.noise_spans or () if index == last else ()
            pieces.append(_Piece(message.content, True, response, spans))
            if response:
                pieces.append(_Piece(str(self.tokenizer.eos_token), False, True))
            if index < last:
                pieces.append(_Piece("\n", False, False))
        return pieces

    def _skeleton(self, roles: tuple[str, ...]) -> list[str]:
        """The template's own text around the contents, which depends on the roles alone."""
        if roles not in self._skeletons:
            marks = [f"\ue000{index}\ue001" for index in range(len(roles))]
            marked = [Message(role, mark) for role, mark in zip(roles, marks, strict=True)]
            text = self._render(marked, "a conversation of " + ", ".join(roles))
            parts = re.split("\ue000[0-9]+\ue001", text)
            if len(parts) != len(roles) + 1:
                raise InputError(
                    "the chat template leaves out or repeats messages. Give another one in "
                    "model.chat_template"
                )
            self._skeletons[roles] = parts
        return self._skeletons[roles]

    def _render(self, messages: Sequence[Message], origin: str) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, chat_template=self.chat_template, tokenize=False
                )
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise InputError(f"{origin}: the chat template fails: {error}") from error

    def _runs(self, pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
        """Stretches that are tokenised in one go: a special token, or the text between two."""
        run: list[_Piece] = []
        for piece in pieces:
            if piece.from_data:
                if piece.text:
                    run.append(piece)
                continue
            for part in self._special_pattern.split(piece.text):
                if part in self._special:
                    if run:
                        yield run
                    yield [_Piece(part, False, piece.is_response)]
                    run = []
                elif part:
                    run.append(_Piece(part, False, piece.is_response))
        if run:
            yield run

    def _encode_run(self, run: list[_Piece]) -> list[tuple[int, bool, bool]]:
        """(token, is it of a response, is it known noise) for each token of a run."""
        first = run[0]
        if len(run) == 1 and not first.from_data and first.text in self._special:
            return [(self._special[first.text], first.is_response, False)]
        boundaries = []
        end = 0
        for piece in run:
            boundaries.append((end, end + len(piece.text), piece))
            end += len(piece.text)
        ids, offsets = self._encode_text("".join(piece.text for piece in run))
        tokens = []
        for token, (start, stop) in zip(ids, offsets, strict=True):
            piece_start, piece_end, piece = next(
                (b for b in boundaries if b[0] <= start < b[1]), boundaries[-1]
            )
            if stop > piece_end and any(
                p.is_response != piece.is_response for s, _, p in boundaries if start < s < stop
            ):
                # A token that spans prompt and response: neither could label it rightly.
                return self._encode_apart(run)
            noisy = any(
                start - piece_start < noise_end and stop - piece_start > noise_start
                for noise_start, noise_end in piece.noise_spans
            )
            tokens.append((token, piece.is_response, noisy))
        return tokens

    def _encode_apart(self, run: list[_Piece]) -> list[tuple[int, bool, bool]]:
        """Tokenise prompt and response each by itself, as generation after a prompt does."""
        tokens: list[tuple[int, bool, bool]] = []
        groups: list[list[_Piece]] = []
        for piece in run:
            if groups and groups[-1][-1].is_response == piece.is_response:
                groups[-1].append(piece)
            else:
                groups.append([piece])
        for number, group in enumerate(groups):
            text = "".join(piece.text for piece in group)
            ids, offsets = self._encode_text(text)
            if number:
                # Tokenizers that put a space before any text must not do so within one.
                lead, _ = self._encode_text("\n")
                continued, shifted = self._encode_text("\n" + text)
                if continued[: len(lead)] == lead:
                    ids = continued[len(lead) :]
                    offsets = [(max(s - 1, 0), e - 1) for s, e in shifted[len(lead) :]]
            position = 0
            spans = []
            for piece in group:
                spans += [(position + s, position + e) for s, e in piece.noise_spans]
                position += len(piece.text)
            for token, (start, stop) in zip(ids, offsets, strict=True):
                noisy = any(start < e and stop > s for s, e in spans)
                tokens.append((token, group[0].is_response, noisy))
        return tokens

    def _encode_text(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return encoded["input_ids"], encoded["offset_mapping"]


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
    num_labelled = sum(label != IGNORE_INDEX for label in labels)
    noise = None if tokens.noise is None else tokens.noise[:num_labelled]
    return Tokens(tokens.input_ids[:max_length], labels, noise)
