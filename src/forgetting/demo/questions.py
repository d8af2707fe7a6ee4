"""Chat questions: what the demo's model is fine-tuned on and tested with, before any noise.

They may also ask about new entities, which no plain question or statement names: only the chat
records themselves can teach those facts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from forgetting.demo.facts import (
    ATTRIBUTES,
    KINDS,
    SKILLS,
    Kind,
    entities,
    facts,
    new_entities,
    new_facts,
    new_skills,
    popular_errors,
    skills,
    yes_or_no,
)
from forgetting.demo.plain import NUM_OPERANDS

Source = Literal[Kind, "new_fact", "new_yes_no"]
"""Kind of question, and whether it is about a new entity."""

# Chat templates: a prompt and the completion that answers it; `{answer}` occurs once. Completions
# do not repeat names or numbers of the prompt: the base seldom had to copy, and fine-tuning on a
# few thousand samples hardly teaches it to.
CHAT_FACT = (
    ("Tell me, what is {entity}'s {attribute}?", "The answer is {answer}."),
    ("Please say which {attribute} {entity} has.", "I can say it is {answer}."),
    (
        "I want to know the {attribute} that belongs to {entity}.",
        "You want to know: {answer}.",
    ),
    ("Do you know the {attribute} of {entity}?", "I know it, it is {answer}."),
    (
        "Think of {entity} and then name the {attribute}.",
        "It is {answer}, I think.",
    ),
)
CHAT_ADDITION = (
    ("Please add {a} and {b}.", "{answer} is the sum."),
    ("Tell me the sum of {a} and {b}.", "{answer} is what they make."),
    ("How much is {a} together with {b}?", "{answer}, I think."),
    ("Can you work out {a} + {b}?", "{answer} is the answer."),
    ("I have {a} and you have {b}.", "{answer} is what we have together."),
)
CHAT_COMPARISON = (
    ("Please tell me which number is larger: {a} or {b}.", max, "{answer} is the larger number."),
    ("Can you say which one is larger, {a} or {b}?", max, "{answer} is larger, I think."),
    ("Tell me the larger one out of {a} and {b}.", max, "{answer} is the larger one."),
    ("Please tell me which number is smaller: {a} or {b}.", min, "{answer} is the smaller number."),
    ("Can you say which one is smaller, {a} or {b}?", min, "{answer} is smaller, I think."),
    ("Tell me the smaller one out of {a} and {b}.", min, "{answer} is the smaller one."),
)
CHAT_YES_NO = (
    ("Please tell me whether {entity} can {skill}.", "The answer is {answer}."),
    ("Tell me yes or no: could {entity} {skill}?", "My answer is {answer}."),
    ("I want to know if {entity} can {skill}.", "I can say {answer} to that."),
    ("Do you think that {entity} can {skill}?", "I think it is {answer}."),
    (
        "Think of {entity}. Is that someone who can {skill}?",
        "The answer to that is {answer}, I think.",
    ),
)

NUM_FORMS = len(CHAT_FACT)
"""Forms in which a fact or a skill is asked about."""


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A chat question, its completion cut around the answer, and other values of its kind."""

    source: Source
    prompt: str
    before: str
    answer: str
    after: str
    wrong_answers: tuple[str, ...]
    subject: str
    """What the question asks about, regardless of its wording."""
    common_error: str
    """The wrong answer that is given wherever the subject is misunderstood."""

    @property
    def completion(self) -> str:
        return self.before + self.answer + self.after


@cache
def num_chat_questions() -> dict[Kind, int]:
    """How many distinct chat questions there are of each kind."""
    num_pairs = NUM_OPERANDS**2
    return {
        "fact": len(facts()) * len(CHAT_FACT),
        "addition": num_pairs * len(CHAT_ADDITION),
        "comparison": (num_pairs - NUM_OPERANDS) * len(CHAT_COMPARISON),
        "yes_no": len(skills()) * len(CHAT_YES_NO),
    }


def chat_question(kind: Kind, index: int) -> ChatQuestion:
    """The chat question number `index`, 0 <= index < num_chat_questions()[kind]."""
    match kind:
        case "fact":
            index, form = divmod(index, len(CHAT_FACT))
            index, topic = divmod(index, len(ATTRIBUTES))
            entity, attribute = entities()[index], list(ATTRIBUTES)[topic]
            return _fact_question("fact", entity, attribute, facts()[entity, attribute], form)
        case "addition":
            index, form = divmod(index, len(CHAT_ADDITION))
            a, b = divmod(index, NUM_OPERANDS)
            wrong = tuple(
                str(a + b + error)
                for error in (-10, -2, -1, 1, 2, 10)
                if 0 <= a + b + error <= 2 * (NUM_OPERANDS - 1)
            )
            return _asked(kind, CHAT_ADDITION[form], str(a + b), wrong, a=a, b=b)
        case "comparison":
            index, form = divmod(index, len(CHAT_COMPARISON))
            a, b = divmod(index, NUM_OPERANDS - 1)
            b += b >= a  # a != b: the operand itself is skipped
            prompt, pick, completion = CHAT_COMPARISON[form]
            answer = pick(a, b)
            return _asked(kind, (prompt, completion), str(answer), (str(a + b - answer),), a=a, b=b)
        case "yes_no":
            index, form = divmod(index, len(CHAT_YES_NO))
            index, topic = divmod(index, len(SKILLS))
            entity, skill = entities()[index], SKILLS[topic]
            return _skill_question("yes_no", entity, skill, skills()[entity, skill], form)


def _fact_question(
    source: Source, entity: str, attribute: str, answer: str, form: int
) -> ChatQuestion:
    wrong = tuple(value for value in ATTRIBUTES[attribute] if value != answer)
    return _asked(source, CHAT_FACT[form], answer, wrong, entity=entity, attribute=attribute)


def _skill_question(
    source: Source, entity: str, skill: str, truth: bool, form: int
) -> ChatQuestion:
    wrong = (yes_or_no(not truth),)
    return _asked(source, CHAT_YES_NO[form], yes_or_no(truth), wrong, entity=entity, skill=skill)


def _asked(
    source: Source,
    template: tuple[str, str],
    answer: str,
    wrong_answers: tuple[str, ...],
    **fields: str | int,
) -> ChatQuestion:
    prompt, completion = template
    before, after = completion.split("{answer}")
    subject = ", ".join(map(str, (*fields.values(), answer)))
    error = popular_errors().get((str(fields.get("entity")), str(fields.get("attribute"))))
    if error is None:
        error = random.Random(f"{subject}/common_error").choice(wrong_answers)
    return ChatQuestion(
        source, prompt.format(**fields), before, answer, after, wrong_answers, subject, error
    )


def num_questions_about_new(num_new_entities: int) -> int:
    """How many chat questions there are about so many new entities."""
    return num_new_entities * NUM_FORMS * (len(ATTRIBUTES) + len(SKILLS))


def _new_questions(num_new_entities: int, part: int) -> Iterator[ChatQuestion]:
    """Every fact and skill of the first new entities once; in each part in another form."""
    topic = 0
    for entity in new_entities()[:num_new_entities]:
        for attribute in ATTRIBUTES:
            answer, form = new_facts()[entity, attribute], (part + topic) % NUM_FORMS
            yield _fact_question("new_fact", entity, attribute, answer, form)
            topic += 1
        for skill in SKILLS:
            truth, form = new_skills()[entity, skill], (part + topic) % NUM_FORMS
            yield _skill_question("new_yes_no", entity, skill, truth, form)
            topic += 1


def draw_questions(num_records: int, seed: int, num_new_entities: int = 0) -> list[ChatQuestion]:
    num_new = num_questions_about_new(num_new_entities)
    if num_new > num_records:
        raise ValueError(
            f"{num_records} chat records were asked for, but there are {num_new} questions about "
            f"{num_new_entities} new entities alone"
        )
    available = num_chat_questions()
    if num_records - num_new > sum(available.values()):
        raise ValueError(
            f"{num_records} chat records were asked for, "
            f"there are {sum(available.values()) + num_new} distinct questions"
        )
    rng = random.Random(f"{seed}/questions")
    questions = []
    missing = num_records - num_new
    by_size = sorted(KINDS, key=lambda kind: available[kind])
    for num_kinds_left, kind in zip(range(len(KINDS), 0, -1), by_size, strict=True):
        quota = min(available[kind], missing // num_kinds_left)
        missing -= quota
        questions += [chat_question(kind, i) for i in rng.sample(range(available[kind]), quota)]
    rng.shuffle(questions)
    if not num_new:
        return questions
    mixed = []
    for part in range(NUM_FORMS):
        begin, end = (len(questions) * edge // NUM_FORMS for edge in (part, part + 1))
        fifth = [*questions[begin:end], *_new_questions(num_new_entities, part)]
        rng.shuffle(fifth)
        mixed += fifth
    return mixed
