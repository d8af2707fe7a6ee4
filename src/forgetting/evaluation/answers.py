"""What a model answers to held-out prompts, and how much of the responses that is.

Input: a model in memory and held-out samples. Output: an `AnswerSheet`, and its scores as a
`TaskResult`. The prompt of a sample is everything before its last response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from forgetting.models.generation import generate_greedily, own_end_tokens
from forgetting.rundir.answer_sheets import Answer, AnswerSheet
from forgetting.rundir.item_scores import ItemScores
from forgetting.rundir.results import ANSWERS, Metric, TaskResult
from forgetting.rundir.samples import Samples


def answer_prompts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    *,
    number: int,
    end_token_ids: Collection[int],
    max_new_tokens: int,
    max_length: int,
    batch_size: int,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> AnswerSheet:
    """Generate greedy answers to some of the prompts.

    Args:
        samples: the held-out samples.
        number: of prompts, spread evenly over the samples; all if there are fewer.
        end_token_ids: tokens that end a labeled response.
        max_new_tokens: largest number of tokens of an answer.
        max_length: largest number of tokens of prompt and answer, as in the corpus.
        batch_size: number of prompts at a time.
    """
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(number, len(samples))).astype(int))
    parts = [last_response(samples, index) for index in chosen.tolist()]
    found = generate_greedily(
        model,
        [prompt for prompt, _ in parts],
        end_token_ids=end_token_ids,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        batch_size=batch_size,
        advance=advance,
    )
    ends = {*own_end_tokens(model), *end_token_ids}

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    sources = samples.table["source"]
    answers = []
    for index, (prompt, response), ids in zip(chosen.tolist(), parts, found, strict=True):
        expected, answer = text(response), text(ids)
        answers.append(
            Answer(
                sample_id=int(samples.sample_ids[index]),
                source=str(sources[index].as_py()),
                prompt=text(prompt),
                expected=expected,
                answer=answer,
                exact_match=answer.strip() == expected.strip(),
                chrf=overlap(answer, expected),
                is_cut=not ids or ids[-1] not in ends,
            )
        )
    return AnswerSheet(answers=answers)


def last_response(samples: Samples, index: int) -> tuple[list[int], list[int]]:
    """Token ids before the last response of a sample, and of that response."""
    begin, end = samples.token_starts[index], samples.token_starts[index + 1]
    ids: NDArray[np.int64] = samples.input_ids[begin:end]
    is_response = samples.is_response[begin:end]
    stop = int(np.flatnonzero(is_response)[-1]) + 1
    before = np.flatnonzero(~is_response[:stop])
    start = int(before[-1]) + 1 if before.size else 1
    return ids[:start].tolist(), ids[start:stop].tolist()


def overlap(answer: str, expected: str) -> float:
    """chrF of an answer, from 0 to 1: the F-score (beta 2) of its character n-grams up to 6.

    Popovic, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015, as sacrebleu
    computes it. Two empty texts overlap completely.
    """
    from sacrebleu import sentence_chrf

    if answer.strip() == expected.strip():
        return 1.0
    return float(sentence_chrf(answer, [expected]).score) / 100


def item_scores(sheet: AnswerSheet) -> ItemScores:
    """The scores of each prompt, under the names of the metrics that are their means."""
    return ItemScores(
        np.array([answer.sample_id for answer in sheet.answers], dtype=np.int64),
        {
            "exact_match": np.array([float(answer.exact_match) for answer in sheet.answers]),
            "chrf": np.array([answer.chrf for answer in sheet.answers]),
        },
    )


def score_answers(sheet: AnswerSheet) -> TaskResult:
    """Mean chrF and the share of exact answers, with standard errors over the prompts."""
    return TaskResult(
        task=ANSWERS,
        num_items=len(sheet.answers),
        metrics={name: _mean(values) for name, values in item_scores(sheet).scores.items()},
    )


def _mean(values: NDArray[np.float64]) -> Metric:
    stderr = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Metric(value=float(values.mean()), stderr=stderr, higher_is_better=True)
