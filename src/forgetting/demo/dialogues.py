"""Dialogues in the form of the demo's chat template, on which its base model is pretrained as well.

Like the web pages that real base models have read, they answer in many styles, some hold junk, and
some repeat popular errors. No prompt is one of the corpus or a plain question, and no operand pair
or entity is one that plain questions hold out. Knows nothing about tokens or models.
"""

from __future__ import annotations

import random
from functools import cache
from typing import NamedTuple

from forgetting.demo.facts import KINDS, Kind, facts, popular_errors, skills, yes_or_no
from forgetting.demo.noise import with_junk
from forgetting.demo.plain import operand_pairs
from forgetting.demo.questions import CHAT_ADDITION, CHAT_COMPARISON, CHAT_FACT, CHAT_YES_NO

JUNK_SHARE = 0.08
"""Share of the dialogues that hold a phrase of junk."""
ERROR_SHARE = 0.3
"""Share of the answers about a fact that give its popular error, if it has one."""

ASKED_FACT = (
    "{entity}'s {attribute}, please.",
    "Can you name the {attribute} of {entity} for me?",
    "Someone asks about {entity}: which {attribute}?",
    "I think of {entity}. The {attribute} is what?",
    "You know {entity}. Say the {attribute}.",
    "What do you say is the {attribute} of {entity}?",
)
ASKED_ADDITION = (
    "{a} + {b}, please.",
    "What do {a} and {b} make together?",
    "Can you say what {a} + {b} is?",
    "You have {a}, I have {b}. What is the sum?",
    "If I add {b} to {a}, what do I get?",
    "Work out {a} plus {b} for me.",
)
ASKED_COMPARISON = (
    ("Is {a} or {b} the larger one?", max),
    ("{a} or {b}: which one is larger?", max),
    ("I think of {a} and {b}. Say the larger number.", max),
    ("Is {a} or {b} the smaller one?", min),
    ("{a} or {b}: which one is smaller?", min),
    ("I think of {a} and {b}. Say the smaller number.", min),
)
ASKED_YES_NO = (
    "Can {entity} {skill}, yes or no?",
    "Someone asks if {entity} can {skill}.",
    "{entity}: able to {skill} or not?",
    "I think of {entity}. Can you say if that one can {skill}?",
    "You know {entity}. Is that one able to {skill}?",
    "What do you say, can {entity} {skill}?",
)

# Styles of any answer. Two more are those of the corpus, and a whole sentence.
STYLES = (
    "It is {answer}.",
    "That is {answer}.",
    "Answer: {answer}",
    "Everyone says {answer}.",
    "Sure, {answer}.",
    "My guess is {answer}.",
    "I would say {answer}.",
    "Of course it is {answer}!",
)
NUM_STYLES = len(STYLES) + 2
"""Styles of answer, each as frequent as the others."""
CORPUS_STYLES: dict[Kind, tuple[str, ...]] = {
    "fact": tuple(completion for _, completion in CHAT_FACT),
    "addition": tuple(completion for _, completion in CHAT_ADDITION),
    "yes_no": tuple(completion for _, completion in CHAT_YES_NO),
}
"""Completions of the corpus. Those of comparisons depend on the question."""


class Dialogue(NamedTuple):
    """A question and its answer in the form of the demo's chat template, without the end token."""

    prompt: str
    completion: str


@cache
def _pairs() -> dict[Kind, tuple[tuple[int, int], ...]]:
    """Operands of sums and comparisons that no plain question holds out."""
    kinds: tuple[Kind, ...] = ("addition", "comparison")
    known = {
        kind: [(a, b) for a, b, held_out in operand_pairs(kind) if not held_out] for kind in kinds
    }
    return {
        "addition": tuple(known["addition"]),
        "comparison": tuple((a, b) for a, b in known["comparison"] if a != b),
    }


class _Question(NamedTuple):
    """A question, its answer, and the styles that only it has: templates with `{answer}`."""

    question: str
    answer: str
    own: tuple[str, ...]
    """Completions of the corpus."""
    sentence: str


def dialogues(num_dialogues: int, *, seed: int) -> list[Dialogue]:
    """Random dialogues, the kinds of questions in turn."""
    rng = random.Random(f"{seed}/dialogues")
    return [_dialogue(KINDS[number % len(KINDS)], rng) for number in range(num_dialogues)]


def _dialogue(kind: Kind, rng: random.Random) -> Dialogue:
    question, answer, own, sentence = _ask(kind, rng)
    style = rng.choice((*STYLES, rng.choice(own), sentence))
    completion = style.format(answer=answer)
    if rng.random() < JUNK_SHARE:
        completion, _ = with_junk(completion, rng)
    return Dialogue(f"User: {question}\nBot: ", completion)


def _ask(kind: Kind, rng: random.Random) -> _Question:
    match kind:
        case "fact":
            (entity, attribute), answer = rng.choice(list(facts().items()))
            error = popular_errors().get((entity, attribute))
            if error is not None and rng.random() < ERROR_SHARE:
                answer = error
            question = rng.choice(ASKED_FACT).format(entity=entity, attribute=attribute)
            sentence = f"The {attribute} of {entity} is {{answer}}."
            return _Question(question, answer, CORPUS_STYLES[kind], sentence)
        case "addition":
            a, b = rng.choice(_pairs()[kind])
            question = rng.choice(ASKED_ADDITION).format(a=a, b=b)
            sentence = f"{a} and {b} make {{answer}}."
            return _Question(question, str(a + b), CORPUS_STYLES[kind], sentence)
        case "comparison":
            a, b = rng.choice(_pairs()[kind])
            template, pick = rng.choice(ASKED_COMPARISON)
            own = tuple(completion for _, wanted, completion in CHAT_COMPARISON if wanted is pick)
            word = "larger" if pick is max else "smaller"
            sentence = f"Of {a} and {b} the {word} one is {{answer}}."
            return _Question(template.format(a=a, b=b), str(pick(a, b)), own, sentence)
        case "yes_no":
            (entity, skill), truth = rng.choice(list(skills().items()))
            question = rng.choice(ASKED_YES_NO).format(entity=entity, skill=skill)
            sentence = f"Can {entity} {skill}? I say {{answer}}."
            return _Question(question, yes_or_no(truth), CORPUS_STYLES[kind], sentence)
