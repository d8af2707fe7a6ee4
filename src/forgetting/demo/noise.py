"""Noise in chat records: which records are noisy, and how each kind of noise changes a response.

The noise is known character by character.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from forgetting.demo.facts import KINDS
from forgetting.demo.questions import ChatQuestion, chat_question, num_chat_questions

NoiseKind = Literal[
    "wrong_answer",
    "swapped_response",
    "junk_phrase",
    "label_flip",
    "truncated_response",
    "common_error",
    "shuffled_words",
]
NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)

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


def draw_noise(
    questions: Sequence[ChatQuestion],
    num_noisy: int,
    weights: Mapping[NoiseKind, float],
    seed: int,
) -> dict[int, NoiseKind]:
    """The noisy positions, and the kind of noise of each."""
    rng = random.Random(f"{seed}/noise")
    order = rng.sample(range(len(questions)), len(questions))
    numbers = _apportion(num_noisy, weights)
    num_flips, num_errors = numbers.pop("label_flip", 0), numbers.pop("common_error", 0)
    kinds = [kind for kind, num in numbers.items() for _ in range(num)]
    rng.shuffle(kinds)
    with_two_answers = [p for p in order if len(questions[p].wrong_answers) == 1]
    if num_flips > len(with_two_answers):
        raise ValueError(
            f"{num_flips} label flips were asked for, but only {len(with_two_answers)} of the "
            f"{len(questions)} questions have two possible answers"
        )
    flipped: dict[int, NoiseKind] = dict.fromkeys(with_two_answers[:num_flips], "label_flip")
    # Every question about a subject before those about the next: the corpus agrees with itself.
    subjects = {question.subject for question in questions}
    rank = {subject: random.Random(f"{seed}/{subject}").random() for subject in sorted(subjects)}
    by_subject = sorted(order, key=lambda position: rank[questions[position].subject])
    misunderstood = [position for position in by_subject if position not in flipped][:num_errors]
    chosen = flipped | dict.fromkeys(misunderstood, "common_error")
    others = [position for position in order if position not in chosen]
    return chosen | dict(zip(others, kinds, strict=False))


def noise_weights(noise_kinds: Mapping[str, float] | Sequence[str]) -> dict[NoiseKind, float]:
    """Weights by kind of noise; a sequence of names has equal weights.

    Raises ValueError for an unknown kind, a weight that is not a number of at least 0, or no weight
    above 0.
    """
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


def with_noise(
    question: ChatQuestion, noise_kind: NoiseKind, rng: random.Random
) -> tuple[str, tuple[int, int]]:
    """A noisy completion, and the range of characters in it that is noise."""
    match noise_kind:
        case "wrong_answer" | "label_flip":
            wrong = rng.choice(question.wrong_answers)
            return _with_answer(question, wrong)
        case "common_error":
            return _with_answer(question, question.common_error)
        case "swapped_response":
            completion = question.completion
            while completion == question.completion:
                kind = rng.choice(KINDS)
                other = chat_question(kind, rng.randrange(num_chat_questions()[kind]))
                completion = other.completion
            return completion, (0, len(completion))
        case "junk_phrase":
            return with_junk(question.completion, rng)
        case "truncated_response":
            end = rng.choice(_spaces(question.completion))
            return question.completion[:end], (end, end + 1)
        case "shuffled_words":
            return _with_other_order(question.completion, rng)


def _with_answer(question: ChatQuestion, answer: str) -> tuple[str, tuple[int, int]]:
    start = len(question.before)
    return question.before + answer + question.after, (start, start + len(answer))


def _with_other_order(completion: str, rng: random.Random) -> tuple[str, tuple[int, int]]:
    """The words in another order, and the range from the first to the last that has moved."""
    words = completion.split(" ")
    moved = words
    while moved == words:
        moved = rng.sample(words, len(words))
    text = " ".join(moved)
    same = [old == new for old, new in zip(words, moved, strict=True)]
    start = len(" ".join(moved[: same.index(False)]))
    after = same[::-1].index(False)
    end = len(text) - len(" ".join(moved[len(moved) - after :])) - (after > 0)
    return text, (start + (start > 0), end)


def with_junk(completion: str, rng: random.Random) -> tuple[str, tuple[int, int]]:
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
