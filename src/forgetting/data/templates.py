"""Records to rendered text, with the spans that a model must generate.

In: records and a chat template. Out: a `Rendering` for each record, or the reason why there is
none. A labeled span begins where the generation prompt for the turns before ends, and ends with
the turn's end mark. Positions are characters. Knows nothing about token boundaries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from forgetting.data.calls import (
    Tools,
    Turn,
    check_rendered,
    map_texts,
    plain_turn,
    texts_of,
    turn_of,
)
from forgetting.data.encoding import Range, SpecialTokens
from forgetting.data.endings import PROBE, Endings
from forgetting.data.jinja import JinjaTemplate
from forgetting.data.positions import (
    between,
    ends_with,
    holds,
    literals_of,
    noise_ranges,
    unmarked,
    unused_characters,
)
from forgetting.data.records import Record
from forgetting.data.sources import Origin
from forgetting.errors import InputError
from forgetting.formats import Message, Unusable

SystemRole = Literal["keep", "fold"]
PLAIN = (
    "{%- for message in messages -%}"
    "{{- '<|' + message.role + '|>\n' + message.content -}}"
    "{%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- if not loop.last -%}{{- '\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\n<|assistant|>\n' -}}{%- endif -%}"
)
"""The format of conversations for tokenizers without a chat template."""


class TurnSpan(NamedTuple):
    """The characters of a text that a model must generate in one turn."""

    start: int
    end: int
    is_closed: bool
    """Whether the span ends with the turn's end mark. Otherwise it ends with the content, because
    the template ends an earlier turn in another way than the last one."""
    weight: float = 1.0
    """Weight of its tokens in training."""
    message: int = 0
    """Place of the response among the messages of the record."""
    body_end: int = 0
    """Where the content of the response ends."""
    mark_start: int = 0
    """Where its end mark begins."""


class Rendering(NamedTuple):
    """The text of a record."""

    text: str
    turns: tuple[TurnSpan, ...]
    """The labeled spans, in ascending order; the last one is the last response."""
    literals: tuple[Range, ...] = ()
    """Where the data holds written-out special tokens, which stay text."""
    noise: tuple[Range, ...] = ()
    """Where the last response is known to be noise, its end mark included."""
    num_context_turns: int = 0
    """Earlier responses without a label, because the template drops or changes them in history."""
    has_other_prompt: bool = False
    """Whether the text before the last response differs from the generation prompt."""


class _LastTurn(NamedTuple):
    """The last response of a rendered conversation."""

    text: str
    """The whole conversation, with an end mark appended if the template writes none."""
    start: int
    body_end: int
    """Where the content ends."""
    mark: Range
    """The end mark, with which the turn ends."""
    token_id: int
    has_other_prompt: bool

    def span(self, weight: float, message: int) -> TurnSpan:
        """The turn with its end mark."""
        begin, end = self.mark
        return TurnSpan(self.start, end, True, weight, message, self.body_end, begin)


class ChatTemplate:
    """Renders records with a Jinja template.

    Args:
        tokenizer: gives the template its special tokens.
        special: the same tokenizer's special tokens.
        source: Jinja source.
        today: the date that `strftime_now` formats.
        system_role: `keep` passes a system turn to the template; `fold` puts its text before the
            first user turn, separated by a blank line.
        literal_special_tokens: whether special tokens written out in the data stay text.

    Raises:
        InputError: the template is not valid Jinja, or fails for every conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        special: SpecialTokens,
        source: str,
        *,
        today: date,
        system_role: SystemRole = "keep",
        literal_special_tokens: bool = True,
    ) -> None:
        self._special = special
        self._system_role = system_role
        self._literal_special_tokens = literal_special_tokens
        self._takes_system: bool | None = None
        self.end_token_ids = {int(tokenizer.eos_token_id)}
        """Tokens that end a response or a turn, in the records rendered so far."""
        variables = {"documents": None, **tokenizer.special_tokens_map}
        try:
            self._template = JinjaTemplate(source, today, variables)
            self._endings = Endings(tokenizer, special, self._template)
            messages = Message("user", "Is it so?"), Message("assistant", "It is.")
            self.render(Record(messages, "", Origin("", 1)))
        except Unusable as why:
            raise InputError(f"{why}. Set another template in model.chat_template") from why
        except TemplateError as error:
            raise InputError(
                f"the chat template is not valid Jinja: {error}. Fix it, or set another one in "
                "model.chat_template"
            ) from error

    def render(self, record: Record) -> Rendering:
        """Render one record.

        Raises:
            Unusable: the template fails, or drops text that the last response needs.
        """
        if is_text(record):
            return self._render_text(record)
        messages = self._folded(record.messages)
        turns, tools = [turn_of(message) for message in messages], list(record.tools)
        marks = self._marks_for(turns, tools)
        if marks:
            turns, tools = self._marked(turns, marks), self._marked(tools, marks)
        try:
            last = self._locate(turns, tools)
        except Unusable as why:
            raise self._explained(why, messages) from why
        self.end_token_ids.add(last.token_id)
        if self._literal_special_tokens:
            self._check_special_tokens(turns, tools, last.text, marks)
        weights = [m.weight if m.role == "assistant" else 0.0 for m in messages]
        spans, num_context_turns = self._earlier_turns(turns, tools, weights, last.text)
        spans.append(last.span(weights[-1], len(turns) - 1))
        text, body_end, mark = last.text, last.body_end, last.mark
        literals: tuple[Range, ...] = ()
        if marks:
            places = [match.start() for match in re.finditer(f"[{marks}]", text)]
            literals = tuple(literals_of(text, marks, places))
            text = text.translate(dict.fromkeys(map(ord, marks)))
            spans = [
                turn._replace(
                    start=unmarked(places, turn.start),
                    end=unmarked(places, turn.end),
                    body_end=unmarked(places, turn.body_end),
                    mark_start=unmarked(places, turn.mark_start),
                )
                for turn in spans
            ]
            body_end = unmarked(places, body_end)
            mark = unmarked(places, mark[0]), unmarked(places, mark[1])
        # A folded system turn is no message of its own here.
        num_folded = len(record.messages) - len(messages)
        spans = [turn._replace(message=turn.message + num_folded) for turn in spans]
        self._check_text(messages, text, spans[-1].start, body_end)
        if tools or any(message.extra for message in messages):
            check_rendered(messages, record.tools, text[:body_end], spans[-1].start)
        spoiled = record.noise_spans or ()
        noise = noise_ranges(spoiled, messages[-1].content, text, body_end, mark)
        return Rendering(
            text, tuple(spans), literals, noise, num_context_turns, last.has_other_prompt
        )

    def render_empty_prompt(self) -> str:
        """The generation prompt for a conversation of one empty user turn.

        Raises:
            InputError: the template fails for it.
        """
        try:
            return self._template.render([plain_turn("user", "")], generation_prompt=True)
        except Unusable as why:
            raise InputError(
                f"the chat template cannot render an empty user turn, which scoring without the "
                f"prompt needs: {why}. Set another template in model.chat_template"
            ) from why

    def _render_text(self, record: Record) -> Rendering:
        (message,) = record.messages
        content, (eos_token, eos_id) = message.content, self._endings.eos
        text = content + eos_token
        self.end_token_ids.add(eos_id)
        literals: tuple[Range, ...] = ()
        if self._literal_special_tokens:
            literals = tuple(match.span() for match in self._special.pattern.finditer(content))
        span = TurnSpan(0, len(text), True, message.weight, 0, len(content), len(content))
        spoiled = record.noise_spans or ()
        noise = noise_ranges(spoiled, content, text, len(content), (len(content), len(text)))
        return Rendering(text, (span,), literals, noise)

    def _folded(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._system_role == "keep" or messages[0].role != "system":
            return messages
        system, first, *others = messages
        text = f"{system.content}\n\n{first.content}" if system.content.strip() else first.content
        return [replace(first, content=text), *others]

    def _marks_for(self, turns: Sequence[Turn], tools: Tools) -> str:
        """Two characters for `_marked`; none if no special token is written out in the record."""
        texts = list(texts_of([*turns, *tools]))
        if not self._literal_special_tokens or not any(map(self._special.pattern.search, texts)):
            return ""
        return "".join(unused_characters(texts, 2))

    def _marked(self, objects: Sequence[Any], marks: str) -> list[Any]:
        """The objects with marks around the special tokens that are written out in them."""
        pattern, marked = self._special.pattern, rf"{marks[0]}\g<0>{marks[1]}"
        return [map_texts(item, lambda text: pattern.sub(marked, text)) for item in objects]

    def _check_special_tokens(
        self, turns: Sequence[Turn], tools: Tools, text: str, marks: str
    ) -> None:
        """Refuse turns that a template joins into a special token, of which each holds a part."""
        pattern = self._special.pattern
        num_found = len(pattern.findall(text))
        num_written_out = text.count(marks[0]) if marks else 0
        has_more = tools or any(len(turn) > len(plain_turn("", "")) for turn in turns)
        if not has_more and num_found - num_written_out == self._endings.of(turns).num_special:
            return
        (edge,) = unused_characters([*marks, *texts_of([*turns, *tools])], 1)
        edged_turns = [
            {**turn, "content": turn["content"] and between(turn["content"], edge)}
            for turn in turns
        ]
        edged = self._template.render(edged_turns, tools)
        plain = edged.replace(edge, "")
        # What is appended to the rendered text is no part of it.
        num_joined = num_found - len(pattern.findall(edged + text[len(plain) :]))
        if text.startswith(plain) and num_joined > 0:
            raise Unusable("the chat template joins turns into a special token")

    def _locate(self, turns: Sequence[Turn], tools: Tools = ()) -> _LastTurn:
        """Render turns and find the last one, a response, in the text."""
        text = self._template.render(turns, tools)
        prompt = self._template.render(turns[:-1], tools, generation_prompt=True)
        ending = self._endings.of(turns)
        if not text.endswith(ending.tail) and "tool_calls" in turns[-1]:
            # A call may end in another way than an answer. Text after it is part of its end.
            marks = list(self._special.pattern.finditer(text))
            ending = self._endings.find(text[marks[-1].start() :] if marks else "")
        elif not text.endswith(ending.tail):
            content = turns[-1]["content"].strip()
            _, found, tail = text.rpartition(content)
            if not found:
                raise Unusable("the chat template changes the text of the messages")
            ending = self._endings.find(tail)
        start, has_other_prompt = len(prompt), False
        if not text.startswith(prompt):
            start, has_other_prompt = self._prompt_end(turns, tools, text, prompt), True
        body_end = len(text) - len(ending.tail)
        if start > body_end:
            raise Unusable("the chat template changes the text of the messages")
        return _LastTurn(
            text + ending.appended,
            start,
            body_end,
            (body_end + ending.mark[0], body_end + ending.mark[1]),
            ending.token_id,
            has_other_prompt,
        )

    def _prompt_end(self, turns: Sequence[Turn], tools: Tools, text: str, prompt: str) -> int:
        """Where the last response begins in a text that does not begin with the prompt for it.

        Some templates write more into the generation prompt (`<think>`) than into the rendering
        of a response without reasoning. The response then begins where the two part.
        """
        probe = self._template.render(
            [*turns[:-1], plain_turn("assistant", PROBE.format(0))], tools
        )
        start = _common_length(probe, prompt)
        question = turns[-2]["content"].strip() if len(turns) > 1 else ""
        if not text.startswith(prompt[:start]) or question not in prompt[:start]:
            raise Unusable(
                "the chat template renders the turns before a response in another way than the "
                "prompt for it"
            )
        return start

    def _earlier_turns(
        self, turns: Sequence[Turn], tools: Tools, weights: Sequence[float], text: str
    ) -> tuple[list[TurnSpan], int]:
        """The spans of responses before the last one, and the number of those without one.

        A response is labeled as far as it is what a model generates after the turns before it.

        Args:
            weights: weight of each turn; 0 if it is not learned.
        """
        spans: list[TurnSpan] = []
        num_context_turns = 0
        for index, weight in enumerate(weights[:-1]):
            if not weight:
                continue
            try:
                alone = self._locate(turns[: index + 1], tools)
            except Unusable:
                num_context_turns += 1
                continue
            if alone.has_other_prompt or not text.startswith(alone.text[: alone.body_end]):
                num_context_turns += 1
            elif text.startswith(alone.text[: alone.mark[1]]):
                self.end_token_ids.add(alone.token_id)
                spans.append(alone.span(weight, index))
            else:
                end = alone.body_end
                spans.append(TurnSpan(alone.start, end, False, weight, index, end, end))
        return spans, num_context_turns

    def _explained(self, why: Unusable, messages: Sequence[Message]) -> Unusable:
        """The reason for a record that cannot be rendered, if the system turn is it."""
        if messages[0].role != "system":
            return why
        if self._takes_system is None:
            probe = [Message("system", "S."), Message("user", "U"), Message("assistant", "A")]
            turns = [plain_turn(message.role, message.content) for message in probe]
            try:
                self._locate(turns)
                self._takes_system = True
            except Unusable:
                self._takes_system = False
        if self._takes_system:
            return why
        return Unusable(
            "the chat template has no system role. Set model.system_role: fold", why.detail
        )

    def _check_text(
        self, messages: Sequence[Message], text: str, start: int, body_end: int
    ) -> None:
        """Refuse a template that drops the question, the system text or the response."""
        content = messages[-1].content
        # A call may follow its text.
        is_followed = "tool_calls" in messages[-1].extra and content in text[start:body_end]
        if not is_followed and not ends_with(text, body_end, content):
            raise Unusable("the chat template drops or changes the text of the response")
        for index, message in enumerate(messages[:-1]):
            is_last = index == len(messages) - 2
            if (is_last or message.role == "system") and not holds(text, start, message.content):
                if message.role == "system":
                    raise Unusable(
                        "the chat template drops or changes the system text. "
                        "Set model.system_role: fold"
                    )
                raise Unusable("the chat template drops or changes the text of the prompt")


def is_text(record: Record) -> bool:
    """Whether a record is a plain text, which takes no template."""
    return len(record.messages) == 1


def _common_length(first: str, second: str) -> int:
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), shorter)
