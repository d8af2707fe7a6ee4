"""Plain questions and statements: the texts that the demo's base model is pretrained on.

A fixed part of the questions is held out from pretraining. Knows nothing about chats or noise.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from forgetting.demo.facts import WORLD_SEED, Kind, facts, skills, yes_or_no

NUM_OPERANDS = 100
"""Operands are 0 to 99."""
HELD_OUT_SHARE = 0.1
"""Share of operand pairs that are held out."""

PLAIN_FACT = (
    "What is the {attribute} of {entity}?",
    "What {attribute} does {entity} have?",
    "Name the {attribute} of {entity}.",
    "Which {attribute} belongs to {entity}?",
    "{entity} has which {attribute}?",
)
PLAIN_ADDITION = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a} and {b} make what?",
)
PLAIN_COMPARISON = (
    ("Which is larger, {a} or {b}?", max),
    ("Name the larger of {a} and {b}.", max),
    ("Which is smaller, {a} or {b}?", min),
    ("Name the smaller of {a} and {b}.", min),
)
PLAIN_YES_NO = (
    "Can {entity} {skill}?",
    "Is {entity} able to {skill}?",
    "Does {entity} know how to {skill}?",
    "Has {entity} learned to {skill}?",
)

# Plain statements end with the answer; they give the base model words to make sentences with.
STATED_FACT = (
    "Everyone says that the {attribute} of {entity} is",
    "{entity} goes with the {attribute}",
    "If you think of {entity}, the {attribute} that belongs to it is",
    "I know which {attribute} {entity} has. It is",
)
STATED_ADDITION = (
    "If I add {a} and {b}, the sum is",
    "I have {a} and you have {b}. Together that makes",
    "Add {b} more to {a} and you get",
    "Work out {a} + {b} as",
)
STATED_COMPARISON = (
    ("I think of {a} and {b}. The larger number is", max),
    ("Out of two numbers, {a} and {b}, the larger one is", max),
    ("I think of {a} and {b}. The smaller number is", min),
    ("Out of two numbers, {a} and {b}, the smaller one is", min),
)
STATED_YES_NO = (
    "If you want to know whether {entity} can {skill}, I say",
    "Someone asks if {entity} could {skill}. My answer is",
    "To think that {entity} can {skill}: the answer is",
    "About {entity}, who can {skill} or not, it is",
)


@dataclass(frozen=True, slots=True)
class PlainQuestion:
    """A question in the form that the base model is pretrained on."""

    kind: Kind
    question: str
    answer: str
    held_out: bool

    @property
    def prompt(self) -> str:
        """What the model continues with a space, the answer and its end-of-sequence token."""
        return f"Q: {self.question}\nA:"

    @property
    def completion(self) -> str:
        return f" {self.answer}"


def _fraction(*key: str | int) -> float:
    """A number in [0, 1) that depends on the key alone, in every process and on every machine."""
    digest = hashlib.blake2b("/".join(map(str, (WORLD_SEED, *key))).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64


def _held_out_phrasing(kind: Kind, entity: str, topic: str, num_phrasings: int) -> int:
    """The one phrasing in which a fact or skill is never asked about during pretraining."""
    return int(_fraction(kind, entity, topic) * num_phrasings)


@cache
def plain_questions(kind: Kind) -> tuple[PlainQuestion, ...]:
    """Every plain question of a kind, in a fixed order.

    Held out are, for facts and yes/no, one phrasing for each entity and attribute or skill (it is
    seen in the others); for sums and comparisons, a tenth of the unordered operand pairs, in every
    order and phrasing.
    """
    match kind:
        case "fact":
            return tuple(
                PlainQuestion(
                    kind,
                    phrasing.format(entity=entity, attribute=attribute),
                    value,
                    number == _held_out_phrasing(kind, entity, attribute, len(PLAIN_FACT)),
                )
                for (entity, attribute), value in facts().items()
                for number, phrasing in enumerate(PLAIN_FACT)
            )
        case "addition":
            return tuple(
                PlainQuestion(kind, phrasing.format(a=a, b=b), str(a + b), held_out)
                for a, b, held_out in operand_pairs(kind)
                for phrasing in PLAIN_ADDITION
            )
        case "comparison":
            return tuple(
                PlainQuestion(kind, phrasing.format(a=a, b=b), str(pick(a, b)), held_out)
                for a, b, held_out in operand_pairs(kind)
                if a != b
                for phrasing, pick in PLAIN_COMPARISON
            )
        case "yes_no":
            return tuple(
                PlainQuestion(
                    kind,
                    phrasing.format(entity=entity, skill=skill),
                    yes_or_no(truth),
                    number == _held_out_phrasing(kind, entity, skill, len(PLAIN_YES_NO)),
                )
                for (entity, skill), truth in skills().items()
                for number, phrasing in enumerate(PLAIN_YES_NO)
            )


@cache
def plain_statements(kind: Kind) -> tuple[tuple[str, str], ...]:
    """Every plain statement of a kind: its beginning, and the answer with which it ends.

    Operand pairs that are held out from the questions are not stated either.
    """
    match kind:
        case "fact":
            return tuple(
                (words.format(entity=entity, attribute=attribute), f" {value}.")
                for (entity, attribute), value in facts().items()
                for words in STATED_FACT
            )
        case "addition":
            return tuple(
                (words.format(a=a, b=b), f" {a + b}.")
                for a, b, held_out in operand_pairs(kind)
                if not held_out
                for words in STATED_ADDITION
            )
        case "comparison":
            return tuple(
                (words.format(a=a, b=b), f" {pick(a, b)}.")
                for a, b, held_out in operand_pairs(kind)
                if a != b and not held_out
                for words, pick in STATED_COMPARISON
            )
        case "yes_no":
            return tuple(
                (words.format(entity=entity, skill=skill), f" {yes_or_no(truth)}.")
                for (entity, skill), truth in skills().items()
                for words in STATED_YES_NO
            )


def operand_pairs(kind: Kind) -> Iterator[tuple[int, int, bool]]:
    """Both operands and whether their pair is held out: neither order may give the answer away."""
    for a, b in product(range(NUM_OPERANDS), repeat=2):
        yield a, b, _fraction(kind, min(a, b), max(a, b)) < HELD_OUT_SHARE


def held_out_questions(kind: Kind, num_questions: int, *, seed: int = 0) -> list[PlainQuestion]:
    """A sample of distinct held-out plain questions; yes/no is half "yes" and half "no".

    Raises ValueError if there are fewer than `num_questions` (or fewer of one yes/no answer).
    """
    held_out = [question for question in plain_questions(kind) if question.held_out]
    rng = random.Random(f"{seed}/held_out/{kind}")
    if kind != "yes_no":
        return _sample(rng, held_out, num_questions)
    positive = [question for question in held_out if question.answer == "yes"]
    negative = [question for question in held_out if question.answer == "no"]
    num_positive = num_questions // 2
    return _sample(rng, positive, num_positive) + _sample(
        rng, negative, num_questions - num_positive
    )


def _sample(
    rng: random.Random, questions: list[PlainQuestion], num_questions: int
) -> list[PlainQuestion]:
    if not 0 <= num_questions <= len(questions):
        raise ValueError(
            f"{num_questions} held-out questions were asked for, there are {len(questions)}"
        )
    return rng.sample(questions, num_questions)
