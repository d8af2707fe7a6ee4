"""Held-out prompts are answered greedily, scored, and kept with the evaluation."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.evaluation.answers import answer_prompts, last_response, overlap, score_answers
from forgetting.rundir import layout
from forgetting.rundir.answer_sheets import AnswerSheet, read_answer_sheet, side_by_side
from forgetting.rundir.samples import Samples
from tests.evaluation.conftest import answer


def chrf(answer, expected, order=6, beta=2):
    """Popovic 2015, written out: mean precision and recall of character n-grams, white space
    removed."""
    a, b = (text.replace(" ", "") for text in (answer, expected))
    precisions, recalls = [], []
    for n in range(1, order + 1):
        one, two = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (a, b))
        if not one or not two:
            continue
        same = (one & two).total()
        precisions.append(same / one.total())
        recalls.append(same / two.total())
    p, r = (sum(values) / len(values) if values else 0.0 for values in (precisions, recalls))
    return (1 + beta**2) * p * r / (beta**2 * p + r) if p and r else 0.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("the cat sat on the mat", "the cat is on the mat"),
        ("Paris", "Paris is the capital of France"),
        ("completely different", "xyz"),
        ("a longer answer than it should be", "a longer answer"),
    ],
)
def test_overlap_is_chrf(answer, expected):
    assert overlap(answer, expected) == pytest.approx(chrf(answer, expected), abs=1e-6)


def test_overlap_of_equal_and_of_empty_texts():
    assert overlap("same text", "same text ") == 1
    assert overlap("", "") == 1
    assert overlap("", "text") == 0
    assert overlap("text", "") == 0


def test_the_prompt_is_everything_before_the_last_response():
    # Two turns: 1 2 | 3 4 | 5 | 6 7 | 8, of which 3 4 and 6 7 are responses.
    labels = [-100, -100, 3, 4, -100, 6, 7, -100]
    samples = Samples.from_lists([list(range(1, 9)), [9, 10]], [labels, [-100, 10]])
    assert last_response(samples, 0) == ([1, 2, 3, 4, 5], [6, 7])
    assert last_response(samples, 1) == ([9], [10])


def test_scores_are_means_over_the_prompts():
    values = [1.0, 0.5, 0.0, 0.25]
    answers = [answer(i, chrf=v, exact_match=v == 1) for i, v in enumerate(values)]
    result = score_answers(AnswerSheet(answers=answers))
    assert result.num_items == 4
    found = result.metrics["chrf"]
    assert found.value == pytest.approx(np.mean(values))
    assert found.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(4))
    assert result.metrics["exact_match"].value == 0.25
    assert score_answers(AnswerSheet(answers=answers[:1])).metrics["chrf"].stderr is None


@pytest.mark.slow
def test_a_run_keeps_the_answers_of_every_model(finished_run):
    _, run = finished_run
    samples = Samples.read(layout.split_file(layout.data_dir(run), "heldout"))
    sheets = {
        variant: read_answer_sheet(layout.evaluation_dir(run, variant))
        for variant in ("base", "full", "ignoring", "forgetting")
    }
    for variant, found in sheets.items():
        assert [each.sample_id for each in found.answers] == samples.sample_ids.tolist()
        file = layout.result_file(layout.evaluation_dir(run, variant), "answers")
        result = json.loads(file.read_text())
        assert result["num_items"] == len(samples)
        assert result["metrics"]["chrf"]["value"] == pytest.approx(
            np.mean([each.chrf for each in found.answers])
        )
    assert sheets["base"] != sheets["full"]
    prompts = side_by_side(sheets)
    assert len(prompts) == len(samples)
    for prompt in prompts:
        assert list(prompt.answers) == list(sheets)
        assert prompt.expected
        assert prompt.prompt


@pytest.mark.slow
def test_the_answers_are_the_same_again(finished_run, tiny_model):
    _, run = finished_run
    samples = Samples.read(layout.split_file(layout.data_dir(run), "heldout"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def answers(**changes):
        options = {"number": 20, "end_token_ids": [1], "max_new_tokens": 12, "max_length": 128}
        given = {**options, "batch_size": 8, **changes}
        return answer_prompts(model, tokenizer, samples, **given).answers

    assert answers() == answers()
    # Not only a beginning of the samples.
    chosen = [each.sample_id for each in answers(number=3)]
    assert len(chosen) == 3
    assert chosen[0] == samples.sample_ids[0]
    assert chosen[-1] == samples.sample_ids[-1]
    cut = answers(max_new_tokens=1)
    assert all(each.is_cut or not each.answer for each in cut)
