"""How a chat template ends a conversation, after the content of its last response.

In: a template and the special tokens of a tokenizer. Out: the end mark of a conversation, which
the model must generate to stop. Positions are characters. Knows nothing about records or about
where a response begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from forgetting.data.calls import Turn, plain_turn
from forgetting.data.encoding import Range, SpecialTokens
from forgetting.data.jinja import JinjaTemplate
from forgetting.formats import Unusable

PROBE = "\ue000{}\ue001"
"""A content that no template writes itself, with a number in it."""


class Ending(NamedTuple):
    """The end of a conversation."""

    tail: str
    """What the template writes after the content of the last response."""
    mark: Range
    """The end mark, in `tail + appended`."""
    appended: str
    """The end mark, if the template does not write it."""
    token_id: int
    num_special: int = 0
    """Special tokens in the whole conversation, the appended one included."""


class Endings:
    """Finds how a template ends conversations; each sequence of roles is rendered once.

    Args:
        tokenizer: gives the token that ends a text.
        special: the same tokenizer's special tokens.
        template: the chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        special: SpecialTokens,
        template: JinjaTemplate,
    ) -> None:
        self.eos = (str(tokenizer.eos_token), int(tokenizer.eos_token_id))
        """Text and id of the end-of-sequence token."""
        # A conversation does not end with the token that begins one, unless it is both.
        self._never_ends = {str(tokenizer.bos_token)} - {self.eos[0]}
        self._special = special
        self._template = template
        self._known: dict[tuple[str, ...], Ending] = {}

    def of(self, given: Sequence[Turn]) -> Ending:
        """How the template ends a conversation with the roles of these turns.

        Raises:
            Unusable: the template fails for it, or drops the last response.
        """
        roles = tuple(turn["role"] for turn in given)
        if "tool" in roles:
            # Results without calls are not for every template.
            roles = ("user", "assistant")
        if roles not in self._known:
            turns = [plain_turn(role, PROBE.format(index)) for index, role in enumerate(roles)]
            text = self._template.render(turns)
            _, found, tail = text.rpartition(turns[-1]["content"])
            if not found:
                raise Unusable("the chat template drops or changes the text of the response")
            ending = self.find(tail, turns)
            num_special = len(self._special.pattern.findall(text + ending.appended))
            self._known[roles] = ending._replace(num_special=num_special)
        return self._known[roles]

    def find(self, tail: str, turns: Sequence[Turn] | None = None) -> Ending:
        """The end mark: the first special token after the content, or else the one that the next
        turn begins with, or else the end of sequence.

        Args:
            tail: what follows the content of the last response.
            turns: the conversation, to render a next turn; default: there is none.
        """
        special = self._special
        for pattern in (special.pattern, special.added_pattern):
            if match := pattern.search(tail):
                return Ending(tail, match.span(), "", special.added_ids[match[0]])
        if turns is not None and (after := self._next_turn(turns)).startswith(tail):
            for pattern in (special.pattern, special.added_pattern):
                match = pattern.search(after)
                if match and match[0] not in self._never_ends:
                    appended = after[len(tail) : match.end()]
                    return Ending(tail, match.span(), appended, special.added_ids[match[0]])
        token, id_ = self.eos
        return Ending(tail, (len(tail), len(tail) + len(token)), token, id_)

    def _next_turn(self, turns: Sequence[Turn]) -> str:
        """What the template writes between a response and the content of a user turn after it."""
        question = PROBE.format(len(turns))
        try:
            text = self._template.render([*turns, plain_turn("user", question)])
        except Unusable:
            return ""
        return text.partition(turns[-1]["content"])[2].partition(question)[0]
