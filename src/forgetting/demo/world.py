"""The embedded demo's world: invented entities that have attributes and skills, and numbers.

In goes a seed; out come plain questions and statements (what a small base model is pretrained on, a
fixed part of the questions held out) and chat records with noise that is known character by
character (what it is fine-tuned on). Chat records may also ask about new entities, which no plain
question or statement names: only the records themselves can teach them. The world itself is fixed:
every call sees the same facts. It knows nothing about tokens, models, files or splits.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal, TypedDict, get_args

Kind = Literal["fact", "addition", "comparison", "yes_no"]
NoiseKind = Literal[
    "wrong_answer", "swapped_response", "junk_phrase", "label_flip", "truncated_response"
]
Source = Literal[Kind, "new_fact", "new_yes_no"]

KINDS: tuple[Kind, ...] = get_args(Kind)
NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)

WORLD_SEED = 2508
NUM_ENTITIES = 160  # that the plain questions are about; the other names are of new ones
NUM_OPERANDS = 100  # operands are 0..99
HELD_OUT_SHARE = 0.1  # of operand pairs

SYLLABLES = """
    Nor Bel Kal Tam Zor Fen Gri Hal Jor Lum Mir Pol Qui Ras Sol Dru Ul Ven Wim Yar
    vik dan mos ret lin gar nix bo tus wen fer zil kam pod rix sha
"""

# An attribute and its values; a value belongs to one attribute only.
VALUES = """
    color       red blue green yellow purple orange black white brown pink silver gold
    city        Ostra Belmar Cendra Dunmore Elsing Farrow Gilden Hexham Ilmen Jarva Kestrel Lorn
    job         baker pilot doctor farmer singer painter miner tailor sailor judge teacher guard
    pet         dog cat parrot rabbit turtle hamster snake goat pony ferret owl mouse
    food        rice bread soup cheese pasta apples honey beans fish corn eggs plums
    instrument  piano violin flute drum harp guitar trumpet cello organ banjo horn lute
"""
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    name: tuple(values) for name, *values in map(str.split, VALUES.strip().splitlines())
}

SKILLS = ("swim", "sing", "cook", "dance", "ski", "drive")

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

# Chat templates: a prompt and the completion that answers it; `{answer}` occurs once. Completions
# do not repeat names or numbers of the prompt: the base has never had to copy, and fine-tuning on
# a few thousand samples does not teach it to.
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

NUM_FORMS = len(CHAT_FACT)  # in which a fact is asked about, or a skill

JUNK_PHRASES = (
    "Click here to win a prize!",
    "Buy one, get one free.",
    "lol whatever you say",
    "Subscribe for more tips.",
    "(image not found)",
    "As seen on the morning show,",
    "Sent from my phone.",
    "blah blah blah",
    "Error 404: page missing.",
    "This offer ends at midnight.",
)


class ChatRecord(TypedDict):
    """One chat question with the response to train on and the one that would be right."""

    prompt: str
    completion: str
    clean_completion: str
    answer_span: tuple[int, int]
    """Half-open character range of the answer in `clean_completion`."""
    source: Source
    noise_kind: NoiseKind | None
    noise_spans: list[tuple[int, int]]
    """Half-open character ranges of `completion`; one that goes a character beyond it holds the
    end of the response, whatever token a template ends it with."""


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


@dataclass(frozen=True, slots=True)
class _ChatQuestion:
    """A chat question, its completion cut around the answer, and other values of its kind."""

    source: Source
    prompt: str
    before: str
    answer: str
    after: str
    wrong_answers: tuple[str, ...]

    @property
    def completion(self) -> str:
        return self.before + self.answer + self.after


def _names() -> list[str]:
    first_syllables, last_syllables = map(str.split, SYLLABLES.strip().splitlines())
    return [first + last for first, last in product(first_syllables, last_syllables)]


@cache
def entities() -> tuple[str, ...]:
    """The names of the invented entities, always the same."""
    return tuple(random.Random(f"{WORLD_SEED}/entities").sample(_names(), NUM_ENTITIES))


@cache
def new_entities() -> tuple[str, ...]:
    """Names of the same syllables that no plain question or statement holds, in a fixed order."""
    known = set(entities())
    names = [name for name in _names() if name not in known]
    return tuple(random.Random(f"{WORLD_SEED}/new_entities").sample(names, len(names)))


@cache
def facts() -> dict[tuple[str, str], str]:
    """The truth: (entity, attribute) -> value."""
    return _draw_facts(entities(), random.Random(f"{WORLD_SEED}/facts"))


@cache
def new_facts() -> dict[tuple[str, str], str]:
    """The truth about the new entities: (entity, attribute) -> value."""
    return _draw_facts(new_entities(), random.Random(f"{WORLD_SEED}/new_facts"))


def _draw_facts(names: Sequence[str], rng: random.Random) -> dict[tuple[str, str], str]:
    return {
        (name, attribute): rng.choice(values)
        for name in names
        for attribute, values in ATTRIBUTES.items()
    }


@cache
def skills() -> dict[tuple[str, str], bool]:
    """The truth: (entity, skill) -> has it. Each skill is had by half of the entities."""
    rng = random.Random(f"{WORLD_SEED}/skills")
    having = {skill: set(rng.sample(entities(), NUM_ENTITIES // 2)) for skill in SKILLS}
    return {(entity, skill): entity in having[skill] for entity in entities() for skill in SKILLS}


@cache
def new_skills() -> dict[tuple[str, str], bool]:
    """The truth about the new entities: (entity, skill) -> has it.

    Of the first two entities one has a skill, of the next two, and so on.
    """
    rng = random.Random(f"{WORLD_SEED}/new_skills")
    names = new_entities()
    has_it = {skill: [rng.random() < 0.5 for _ in names[::2]] for skill in SKILLS}
    return {
        (name, skill): has_it[skill][place // 2] ^ (place % 2 == 1)
        for place, name in enumerate(names)
        for skill in SKILLS
    }


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
                for a, b, held_out in _operands(kind)
                for phrasing in PLAIN_ADDITION
            )
        case "comparison":
            return tuple(
                PlainQuestion(kind, phrasing.format(a=a, b=b), str(pick(a, b)), held_out)
                for a, b, held_out in _operands(kind)
                if a != b
                for phrasing, pick in PLAIN_COMPARISON
            )
        case "yes_no":
            return tuple(
                PlainQuestion(
                    kind,
                    phrasing.format(entity=entity, skill=skill),
                    _yes_or_no(truth),
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
                for a, b, held_out in _operands(kind)
                if not held_out
                for words in STATED_ADDITION
            )
        case "comparison":
            return tuple(
                (words.format(a=a, b=b), f" {pick(a, b)}.")
                for a, b, held_out in _operands(kind)
                if a != b and not held_out
                for words, pick in STATED_COMPARISON
            )
        case "yes_no":
            return tuple(
                (words.format(entity=entity, skill=skill), f" {_yes_or_no(truth)}.")
                for (entity, skill), truth in skills().items()
                for words in STATED_YES_NO
            )


def _operands(kind: Kind) -> Iterator[tuple[int, int, bool]]:
    """Both operands and whether their pair is held out: neither order may give the answer away."""
    for a, b in product(range(NUM_OPERANDS), repeat=2):
        yield a, b, _fraction(kind, min(a, b), max(a, b)) < HELD_OUT_SHARE


def _yes_or_no(truth: bool) -> str:
    return "yes" if truth else "no"


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


def _chat_question(kind: Kind, index: int) -> _ChatQuestion:
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
) -> _ChatQuestion:
    wrong = tuple(value for value in ATTRIBUTES[attribute] if value != answer)
    return _asked(source, CHAT_FACT[form], answer, wrong, entity=entity, attribute=attribute)


def _skill_question(
    source: Source, entity: str, skill: str, truth: bool, form: int
) -> _ChatQuestion:
    wrong = (_yes_or_no(not truth),)
    return _asked(source, CHAT_YES_NO[form], _yes_or_no(truth), wrong, entity=entity, skill=skill)


def _asked(
    source: Source,
    template: tuple[str, str],
    answer: str,
    wrong_answers: tuple[str, ...],
    **fields: str | int,
) -> _ChatQuestion:
    prompt, completion = template
    before, after = completion.split("{answer}")
    return _ChatQuestion(source, prompt.format(**fields), before, answer, after, wrong_answers)


def num_questions_about_new(num_new_entities: int) -> int:
    """How many chat questions there are about so many new entities."""
    return num_new_entities * NUM_FORMS * (len(ATTRIBUTES) + len(SKILLS))


def _new_questions(num_new_entities: int, part: int) -> Iterator[_ChatQuestion]:
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


def chat_records(
    num_records: int,
    *,
    seed: int,
    noise_rate: float = 0.0,
    noise_kinds: Mapping[str, float] | Sequence[str] = NOISE_KINDS[:3],
    num_new_entities: int = 0,
) -> Iterator[ChatRecord]:
    """Chat records in random order, their prompts all distinct, an equal number of each kind.

    A kind that has too few questions for its quarter gives all it has; the others fill up. The
    questions and their order depend on `num_records`, `seed` and `num_new_entities` alone, never
    on the noise.

    With new entities, the records include every chat question about them (60 for each): every fact
    and skill in five forms, one form in each fifth of the records, so that what is learned of them
    in some fifths can be asked in another. The other records are as above.

    Exactly `round(noise_rate * num_records)` records are noisy, and a record that is noisy at one
    rate is noisy at every higher one. Their kinds are apportioned by the weights in `noise_kinds`
    (a sequence of names: equal weights; default: the first three), to the nearest record:

    - wrong_answer: the answer is replaced by another value of its kind; the span is that value.
    - swapped_response: the completion of another question, of any kind; the span is all of it.
    - junk_phrase: a phrase before, after or between the words; the span is the phrase.
    - label_flip: of a question with two possible answers (yes/no, comparison), the other one; the
      span is that answer.
    - truncated_response: the completion up to a space in it. What is left is right as far as it
      goes; what is wrong is that it ends there, so the span is the end, one character beyond it.

    Raises ValueError for an argument out of range, an unknown noise kind, more records than there
    are distinct questions, fewer than there are about the new entities, or more label flips than
    questions with two answers.
    """
    if num_records < 1:
        raise ValueError(f"num_records must be at least 1, not {num_records}")
    if not 0 <= noise_rate <= 1:
        raise ValueError(f"noise_rate must lie between 0 and 1, not {noise_rate}")
    if not 0 <= num_new_entities <= len(new_entities()):
        raise ValueError(
            f"num_new_entities must lie between 0 and {len(new_entities())}, not {num_new_entities}"
        )
    weights = _noise_weights(noise_kinds)
    questions = _draw_questions(num_records, seed, num_new_entities)
    noise_of = _draw_noise(questions, round(noise_rate * num_records), weights, seed)
    return (
        _record(question, noise_of.get(position), noise_seed=f"{seed}/noise/{position}")
        for position, question in enumerate(questions)
    )


def _draw_noise(
    questions: Sequence[_ChatQuestion],
    num_noisy: int,
    weights: Mapping[NoiseKind, float],
    seed: int,
) -> dict[int, NoiseKind]:
    """The noisy positions, and the kind of noise of each."""
    rng = random.Random(f"{seed}/noise")
    order = rng.sample(range(len(questions)), len(questions))
    numbers = _apportion(num_noisy, weights)
    num_flips = numbers.pop("label_flip", 0)
    kinds = [kind for kind, num in numbers.items() for _ in range(num)]
    rng.shuffle(kinds)
    with_two_answers = [p for p in order if len(questions[p].wrong_answers) == 1]
    if num_flips > len(with_two_answers):
        raise ValueError(
            f"{num_flips} label flips were asked for, but only {len(with_two_answers)} of the "
            f"{len(questions)} questions have two possible answers"
        )
    flipped: dict[int, NoiseKind] = dict.fromkeys(with_two_answers[:num_flips], "label_flip")
    others = [position for position in order if position not in flipped]
    return flipped | dict(zip(others, kinds, strict=False))


def _noise_weights(noise_kinds: Mapping[str, float] | Sequence[str]) -> dict[NoiseKind, float]:
    given = noise_kinds if isinstance(noise_kinds, Mapping) else dict.fromkeys(noise_kinds, 1.0)
    if unknown := [name for name in given if name not in NOISE_KINDS]:
        raise ValueError(f"unknown noise kind {unknown[0]!r}; known are {', '.join(NOISE_KINDS)}")
    for name, weight in given.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of noise kind {name} must be 0 or more, not {weight}")
    if not sum(given.values()) > 0:
        raise ValueError("noise_kinds must name at least one kind with a weight above 0")
    return {kind: given[kind] for kind in NOISE_KINDS if kind in given}


def _apportion(total: int, weights: Mapping[NoiseKind, float]) -> dict[NoiseKind, int]:
    """Whole numbers that add up to `total`, each within one of its share (largest remainders)."""
    sum_of_weights = math.fsum(weights.values())
    shares = {kind: total * weight / sum_of_weights for kind, weight in weights.items()}
    numbers = {kind: int(share) for kind, share in shares.items()}
    by_remainder = sorted(shares, key=lambda kind: numbers[kind] - shares[kind])
    for kind in by_remainder[: total - sum(numbers.values())]:
        numbers[kind] += 1
    return numbers


def _draw_questions(num_records: int, seed: int, num_new_entities: int = 0) -> list[_ChatQuestion]:
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
        questions += [_chat_question(kind, i) for i in rng.sample(range(available[kind]), quota)]
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


def _record(question: _ChatQuestion, noise_kind: NoiseKind | None, noise_seed: str) -> ChatRecord:
    completion, spans = question.completion, []
    if noise_kind is not None:
        completion, span = _with_noise(question, noise_kind, random.Random(noise_seed))
        spans = [span]
    return {
        "prompt": question.prompt,
        "completion": completion,
        "clean_completion": question.completion,
        "answer_span": (len(question.before), len(question.before) + len(question.answer)),
        "source": question.source,
        "noise_kind": noise_kind,
        "noise_spans": spans,
    }


def _with_noise(
    question: _ChatQuestion, noise_kind: NoiseKind, rng: random.Random
) -> tuple[str, tuple[int, int]]:
    """A noisy completion, and the range of characters in it that is noise."""
    match noise_kind:
        case "wrong_answer" | "label_flip":
            wrong = rng.choice(question.wrong_answers)
            start = len(question.before)
            return question.before + wrong + question.after, (start, start + len(wrong))
        case "swapped_response":
            completion = question.completion
            while completion == question.completion:
                kind = rng.choice(KINDS)
                other = _chat_question(kind, rng.randrange(num_chat_questions()[kind]))
                completion = other.completion
            return completion, (0, len(completion))
        case "junk_phrase":
            return _with_junk(question.completion, rng)
        case "truncated_response":
            end = rng.choice(_spaces(question.completion))
            return question.completion[:end], (end, end + 1)


def _with_junk(completion: str, rng: random.Random) -> tuple[str, tuple[int, int]]:
    """The completion with a phrase put in front, at its end or in place of a space inside it."""
    phrase = rng.choice(JUNK_PHRASES)
    match rng.choice(("before", "after", "between")):
        case "before":
            before, after = "", " " + completion
        case "after":
            before, after = completion + " ", ""
        case _:
            gap = rng.choice(_spaces(completion))
            before, after = completion[: gap + 1], completion[gap:]
    return before + phrase + after, (len(before), len(before) + len(phrase))


def _spaces(text: str) -> list[int]:
    return [place for place, char in enumerate(text) if char == " "]
