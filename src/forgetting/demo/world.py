"""The corpus of the embedded demo: chat records with noise that is known character by character.

In: a seed. Out: records to fine-tune on. Knows nothing about tokens, models, files or splits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from forgetting.demo.facts import new_entities
from forgetting.demo.noise import NOISE_KINDS, NoiseKind, draw_noise, noise_weights, with_noise
from forgetting.demo.questions import ChatQuestion, Source, draw_questions


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
    weights = noise_weights(noise_kinds)
    questions = draw_questions(num_records, seed, num_new_entities)
    noise_of = draw_noise(questions, round(noise_rate * num_records), weights, seed)
    return (
        _record(question, noise_of.get(position), noise_seed=f"{seed}/noise/{position}")
        for position, question in enumerate(questions)
    )


def _record(question: ChatQuestion, noise_kind: NoiseKind | None, noise_seed: str) -> ChatRecord:
    completion, spans = question.completion, []
    if noise_kind is not None:
        completion, span = with_noise(question, noise_kind, random.Random(noise_seed))
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
