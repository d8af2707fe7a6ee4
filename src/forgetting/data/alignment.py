"""From conversations to token ids and labels.

In: records and a tokenizer. Out: `Tokens`, the ids with labels (-100 outside the responses), the
weights of turns and, if noise is known, a flag for each response token. A response is labeled from
the end of the generation prompt to its end mark. The ids are those of the rendered conversation,
except where the data holds written-out special tokens or a token would span prompt and response.
Knows nothing about files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from forgetting.data.encoding import (
    EncodedText,
    SpecialTokens,
    TextEncoder,
    first_from,
    is_boundary,
)
from forgetting.data.jinja import reads_clock
from forgetting.data.positions import content_ranges
from forgetting.data.records import Record
from forgetting.data.templates import (
    PLAIN,
    ChatTemplate,
    Rendering,
    SystemRole,
    TurnSpan,
    is_text,
)
from forgetting.errors import InputError
from forgetting.formats import Unusable
from forgetting.rundir.samples import IGNORE_INDEX

DEFAULT_TEMPLATE = "default"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized conversation."""

    input_ids: list[int]
    labels: list[int]
    """Same length: the token where it is to be predicted, -100 elsewhere and at position 0."""
    noise: list[int] | None
    """One flag per labeled token, in order; None if nothing is known."""
    weights: list[float] | None = None
    """Weight of each labeled token in training, in order; None if all are 1."""
    num_context_turns: int = 0
    """Earlier responses without labels, because the template drops or changes them in history."""
    num_split_tokens: int = 0
    """Tokens of the rendered conversation that span a prompt and its response. Both sides are
    tokenized apart there, as in generation."""
    has_other_prompt: bool = False
    """Whether the text before the last response differs from the generation prompt."""


class TokenPlace(NamedTuple):
    """The characters of a response that a labeled token covers."""

    message: int
    """Place of the response among the messages of the record."""
    start: int
    end: int
    """Not included. The character after the last one is the end of the response."""


class Tokenization:
    """Turns records into tokens, with one tokenizer and one chat template.

    The template is `chat_template`, or else the tokenizer's own. Without either, a conversation is
    rendered as `<|role|>`, a line break and the content for each message, with a line break
    between messages and the end-of-sequence token after each response. A plain text (a lone
    response) takes no template.

    Args:
        tokenizer: a fast tokenizer with an end-of-sequence token.
        chat_template: Jinja source. Default: the tokenizer's template.
        template_name: which of the tokenizer's named templates to use. Default: `default`.
        special_tokens_in_text: special tokens written out in the data become tokens. Default:
            they stay text.
        system_role: `keep` passes system turns to the template; `fold` puts their text before the
            first user turn, separated by a blank line.
        now: the date for templates that read the clock. Default: today.

    Raises:
        InputError: the template does not exist, or cannot be used for training.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        *,
        template_name: str | None = None,
        special_tokens_in_text: bool = False,
        system_role: SystemRole = "keep",
        now: date | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template or _named_template(tokenizer, template_name)
        """Jinja source; None for the plain format."""
        self.now = now or date.today()
        """The date that the template reads from the clock."""
        special = SpecialTokens(tokenizer)
        self._encoder = TextEncoder(tokenizer, special)
        self._template = ChatTemplate(
            tokenizer,
            special,
            self.chat_template or PLAIN,
            today=self.now,
            system_role=system_role,
            literal_special_tokens=not special_tokens_in_text,
        )
        # What the tokenizer puts before any text: nothing, or its BOS.
        self._prefix = list(tokenizer("").input_ids)
        if self._prefix and self._prefix[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
            self._prefix.pop()
        self._empty_prompt_ids: list[int] | None = None

    @property
    def end_token_ids(self) -> set[int]:
        """Tokens that end a response or a turn, in the records encoded so far."""
        return self._template.end_token_ids

    @property
    def reads_clock(self) -> bool:
        """Whether the tokens depend on `now`."""
        return reads_clock(self.chat_template or "")

    @property
    def empty_prompt_ids(self) -> list[int]:
        """The generation prompt for a conversation of one empty user turn.

        Raises:
            InputError: the template fails for it.
        """
        if self._empty_prompt_ids is None:
            prefix = [] if self.chat_template else self._prefix
            text = self._template.render_empty_prompt()
            self._empty_prompt_ids = [*prefix, *self._encoder.encode(text).ids]
        return list(self._empty_prompt_ids)

    def encode_after_prompt(self, tokens: Tokens, prompt: Sequence[int] | None = None) -> Tokens:
        """The last response of an encoded record after another prompt, with the same ids.

        A text without a prompt is returned as it is.

        Args:
            tokens: the record.
            prompt: ids up to the response. Default: `empty_prompt_ids`.

        Raises:
            InputError: as `empty_prompt_ids`.
        """
        end = len(tokens.labels)
        while end and tokens.labels[end - 1] == IGNORE_INDEX:
            end -= 1
        begin = end
        while begin and tokens.labels[begin - 1] != IGNORE_INDEX:
            begin -= 1
        if begin <= max(len(self._prefix), 1):
            return tokens
        response = tokens.labels[begin:end]
        prompt = self.empty_prompt_ids if prompt is None else prompt
        labels = [IGNORE_INDEX] * len(prompt) + response
        noise = None if tokens.noise is None else tokens.noise[-len(response) :]
        weights = None if tokens.weights is None else tokens.weights[-len(response) :]
        return Tokens([*prompt, *response], labels, noise, weights)

    def encode(self, record: Record) -> Tokens:
        """Tokenize one record, uncut.

        Raises:
            Unusable: the template fails for it, or drops text that the last response needs.
        """
        (result,) = self.encode_batch([record])
        if isinstance(result, Unusable):
            raise result
        return result

    def encode_batch(self, records: Sequence[Record]) -> list[Tokens | Unusable]:
        """Tokenize records, uncut; in place of one that cannot be, the reason."""
        renderings = [self._rendered(record) for record in records]
        # Texts without written-out special tokens in one call, which is parallel.
        plain = [r.text for r in renderings if isinstance(r, Rendering) and not r.literals]
        encodings = iter(self._encoder.encode_batch(plain))
        results: list[Tokens | Unusable] = []
        for record, rendering in zip(records, renderings, strict=True):
            if isinstance(rendering, Unusable):
                results.append(rendering)
                continue
            if rendering.literals:
                encoded = self._encoder.encode(rendering.text, rendering.literals)
            else:
                encoded = next(encodings)
            results.append(self._labeled(record, rendering, encoded))
        return results

    def token_places(self, record: Record) -> list[TokenPlace]:
        """Where the labeled tokens of a record are in its responses, in order, uncut.

        Raises:
            Unusable: as `encode`.
        """
        rendering = self._template.render(record)
        encoded = self._split(rendering, self._encoder.encode(rendering.text, rendering.literals))
        num_before = len(self._prefix_of(record))
        places: list[TokenPlace] = []
        for turn in rendering.turns:
            first, last = _labeled_range(encoded, turn, num_before)
            content = record.messages[turn.message].content
            ranges = content_ranges(
                encoded.offsets[first:last],
                content,
                rendering.text,
                turn.start,
                turn.body_end,
                turn.mark_start,
            )
            places += [TokenPlace(turn.message, start, end) for start, end in ranges]
        return places

    def _rendered(self, record: Record) -> Rendering | Unusable:
        try:
            return self._template.render(record)
        except Unusable as why:
            return why

    def _prefix_of(self, record: Record) -> list[int]:
        return self._prefix if not self.chat_template or is_text(record) else []

    def _split(self, rendering: Rendering, encoded: EncodedText) -> EncodedText:
        """The tokens of a rendering, none of which spans a prompt and its response."""
        spanned = _spanned(rendering, encoded)
        if not spanned:
            return encoded
        return self._encoder.encode(rendering.text, rendering.literals, spanned)

    def _labeled(self, record: Record, rendering: Rendering, encoded: EncodedText) -> Tokens:
        spanned = _spanned(rendering, encoded)
        encoded = self._split(rendering, encoded)
        prefix = self._prefix_of(record)
        ids = [*prefix, *encoded.ids]
        labels = [IGNORE_INDEX] * len(ids)
        noise: list[int] = []
        weights: list[float] = []
        for turn in rendering.turns:
            first, last = _labeled_range(encoded, turn, len(prefix))
            begin, end = first + len(prefix), last + len(prefix)
            labels[begin:end] = ids[begin:end]
            weights += [turn.weight] * (end - begin)
            if record.noise_spans is not None:
                noise += _flags(encoded, first, last, rendering.noise)
        return Tokens(
            ids,
            labels,
            None if record.noise_spans is None else noise,
            weights if any(weight != 1 for weight in weights) else None,
            rendering.num_context_turns,
            len(spanned),
            rendering.has_other_prompt,
        )


def _named_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """The tokenizer's template; of several named ones, the one with this name."""
    own = tokenizer.chat_template
    if not isinstance(own, dict):
        if name is not None:
            raise InputError(
                f"model.template_name: {name}, but the tokenizer has no named chat templates. "
                "Remove model.template_name"
            )
        return own or None
    found = own.get(name or DEFAULT_TEMPLATE)
    if found is None:
        raise InputError(
            f"the tokenizer has no chat template named {name or DEFAULT_TEMPLATE}. "
            f"Set model.template_name to one of {', '.join(sorted(own))}"
        )
    return str(found)


def _spanned(rendering: Rendering, encoded: EncodedText) -> list[int]:
    """Where a token spans prompt and response: neither label would be right for it."""
    return [turn.start for turn in rendering.turns if not is_boundary(encoded, turn.start)]


def _labeled_range(encoded: EncodedText, turn: TurnSpan, num_before: int) -> tuple[int, int]:
    """The labeled tokens [first, last) of a turn, after `num_before` other tokens."""
    first, last = _token_range(encoded, turn)
    # Nothing comes before the first token of all that it could be predicted from.
    return max(first, 1 - num_before), last


def _token_range(encoded: EncodedText, turn: TurnSpan) -> tuple[int, int]:
    """The tokens [first, last) of a span.

    The end mark may reach beyond the span, as some special tokens absorb white space.
    """
    first, last = first_from(encoded, turn.start), first_from(encoded, turn.end)
    if not turn.is_closed:
        while last > first and encoded.offsets[last - 1][1] > turn.end:
            last -= 1
    return first, last


def _flags(
    encoded: EncodedText, first: int, last: int, noise: Iterable[tuple[int, int]]
) -> list[int]:
    """Whether each of the tokens [first, last) overlaps a range of noise."""
    # Ranges that overlap become one, so that each token needs to be compared with one range only.
    begins: list[int] = []
    ends: list[int] = []
    for begin, end in sorted(noise):
        if ends and begin < ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            begins.append(begin)
            ends.append(end)
    flags = []
    for start, end in encoded.offsets[first:last]:
        place = bisect_right(ends, start)
        flags.append(int(place < len(begins) and begins[place] < end))
    return flags


def cut(tokens: Tokens, max_length: int) -> Tokens:
    """The first `max_length` tokens, with the labels and flags that belong to them."""
    if len(tokens.input_ids) <= max_length:
        return tokens
    labels = tokens.labels[:max_length]
    num_labeled = len(labels) - labels.count(IGNORE_INDEX)
    return replace(
        tokens,
        input_ids=tokens.input_ids[:max_length],
        labels=labels,
        noise=None if tokens.noise is None else tokens.noise[:num_labeled],
        weights=None if tokens.weights is None else tokens.weights[:num_labeled],
    )
