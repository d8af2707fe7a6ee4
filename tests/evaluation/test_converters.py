"""Published records become those that the tasks of lm-eval read."""

from __future__ import annotations

import pytest

from forgetting.evaluation import converters

TRUE = {"choices": ["Yes.", "No."], "labels": [1, 0]}


def test_truthfulqa_puts_the_true_answer_first():
    record = {
        "question": "Is it?",
        "mc1_targets": {"No.": 0, "Yes.": 1},
        "mc2_targets": {"No.": 0, "Yes.": 1, "Never.": 0, "It is.": 1},
    }
    assert converters.truthfulqa(record) == {
        "question": "Is it?",
        "mc1_targets": TRUE,
        "mc2_targets": {"choices": ["Yes.", "It is.", "No.", "Never."], "labels": [1, 1, 0, 0]},
    }


def test_truthfulqa_is_derived_from_the_answers_of_the_csv():
    row = {
        "Question": "Is it?",
        "Best Answer": " Yes ",
        "Correct Answers": "It is; Yes; ",
        "Incorrect Answers": "No; Never; No",
    }
    item = converters.truthfulqa_csv(row)
    assert item["mc1_targets"] == {"choices": ["Yes", "No", "Never"], "labels": [1, 0, 0]}
    assert item["mc2_targets"] == {
        "choices": ["Yes", "It is", "No", "Never"],
        "labels": [1, 1, 0, 0],
    }


def test_boolq_labels_are_numbers():
    record = {"question": "is it", "passage": "It is.", "answer": True}
    assert converters.boolq(record) == {"question": "is it", "passage": "It is.", "label": 1}


def test_logiqa_has_a_space_after_a_full_stop_and_no_letters():
    lines = ["b", "One.Two", "Which?", "A.first", "C.second.third", "B third", "D.fourth"]
    assert converters.logiqa(lines) == {
        "label": "b",
        "context": "One. Two",
        "question": "Which?",
        "options": ["first", "second. third", "third", "fourth"],
    }


def test_asdiv_keeps_the_unit_that_the_task_cuts():
    problem = {
        "Body": "Two and two.",
        "Question": "How many?",
        "Solution-Type": "Addition",
        "Answer": "4 (apples)",
        "Formula": "2+2=4",
    }
    assert converters.asdiv(problem) == {
        "body": "Two and two.",
        "question": "How many?",
        "solution_type": "Addition",
        "answer": "4 (apples)",
        "formula": "2+2=4",
    }


def test_tydiqa_answers_are_columns():
    record = {
        "id": "korean-1",
        "title": "T",
        "context": "C",
        "question": "Q",
        "answers": [{"text": "a", "answer_start": 1}, {"text": "b", "answer_start": 2}],
    }
    answers = {"text": ["a", "b"], "answer_start": [1, 2]}
    assert converters.tydiqa(record) == {**record, "answers": answers}


def test_ifeval_keeps_what_the_checks_read():
    record = {
        "key": 1,
        "prompt": "Do it.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    assert converters.ifeval({**record, "more": 1}) == record


def test_arc_splits_the_answers_of_the_instruction():
    record = {
        "instruction": "Please choose the correct answer to the question: Which is hot?\nThink."
        "\n\nAnswer1: the Answer Answer2: ice Answer3: fire\n\nAnswer format: "
        "answer1/answer2/answer3",
        "answer": "answer3",
    }
    assert converters.arc(record) == {
        "question": "Which is hot?\nThink.",
        "choices": {"text": ["the Answer", "ice", "fire"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    }


def test_lambada_and_arithmetic_are_taken_as_they_are():
    assert converters.lambada({"text": "one two"}) == {"text": "one two"}
    record = {"context": "\n\nQ: 1 plus 1?\n\nA:", "completion": " 2"}
    assert converters.arithmetic(record) == record


@pytest.mark.parametrize(
    ("convert", "record"),
    [
        (converters.truthfulqa, {"question": "Q", "mc1_targets": {"a": 1}, "mc2_targets": {}}),
        (
            converters.truthfulqa,
            {"question": "Q", "mc1_targets": {"a": 1, "b": 1, "c": 0}, "mc2_targets": {"a": 1}},
        ),
        (converters.truthfulqa_csv, {"Question": "Q", "Best Answer": None}),
        (converters.boolq, {"question": "Q", "passage": "P", "answer": "true"}),
        (converters.logiqa, ["e", "C", "Q", "A.1", "B.2", "C.3", "D.4"]),
        (converters.logiqa, ["a", "C", "Q", "A.1", "B.2", "C.3"]),
        (converters.logiqa, ["a"]),
        (converters.asdiv, {"Body": None, "Question": "Q", "Answer": "1"}),
        (converters.tydiqa, {"id": "korean-1", "answers": []}),
        (converters.ifeval, {"instruction_id_list": ["x"], "kwargs": []}),
        (converters.arc, {"instruction": "Which?", "answer": "answer1"}),
        (converters.lambada, {"text": "alone"}),
        (converters.arithmetic, {"context": "Q"}),
        (converters.boolq, ["no", "object"]),
    ],
)
def test_what_is_not_of_the_form_raises(convert, record):
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        convert(record)
