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
    """One chat question, with the response to train on and the right one."""

    prompt: str
    completion: str
    clean_completion: str
    answer_span: tuple[int, int]
    """Half-open character range of the answer in `clean_completion`."""
    source: Source
    noise_kind: NoiseKind | None
    noise_spans: list[tuple[int, int]]
    """Half-open character ranges of `completion`. A range that extends one character beyond it
    marks the end of the response, for any end token of the template."""


def chat_records(
    num_records: int,
    *,
    seed: int,
    noise_rate: float = 0.0,
    noise_kinds: Mapping[str, float] | Sequence[str] = NOISE_KINDS[:3],
    num_new_entities: int = 0,
) -> Iterator[ChatRecord]:
    """Chat records in random order, their prompts all distinct, an equal number of each kind.

    A kind with too few questions for its quarter gives all it has, and the others fill up. The
    questions and their order depend only on `num_records`, `seed` and `num_new_entities`, never on
    the noise.

    With new entities, the records include every chat question about them (60 for each): every fact
    and skill in five forms, one form in each fifth of the records. What is learned about them in
    some fifths can be tested in another. The other records are as above.

    Exactly `round(noise_rate * num_records)` records are noisy. A record that is noisy at one rate
    is noisy at every higher rate. Their kinds follow the weights in `noise_kinds`, to the nearest
    record (a sequence of names has equal weights; default: the first three kinds):

    - wrong_answer: another value of its kind replaces the answer. The span is that value.
    - swapped_response: the completion of another question, of any kind. The span is all of it.
    - junk_phrase: a phrase before, after or between the words. The span is the phrase.
    - label_flip: the other answer to a question with two possible answers (yes/no, comparison). The
      span is that answer.
    - truncated_response: the completion up to one of its spaces. The words are right, but the end
      is wrong, so the span is the end, one character beyond the text.
    - common_error: the same wrong answer wherever a subject is asked about, its popular error if it
      has one. Whole subjects are wrong, one after the other. The span is that answer.
    - shuffled_words: the words in another order. The span goes from the first to the last that has
      moved.

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
