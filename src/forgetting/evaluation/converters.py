"""Converts benchmark records from their published formats to those that lm-eval reads.

Input: one record of a published file. Output: one record with the fields of the data set
on the hub that the task of lm-eval is written for. Pure functions; a record that is not of the
form raises `KeyError`, `TypeError`, `AttributeError` or `ValueError`. Knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def truthfulqa(record: Record) -> dict[str, Any]:
    """Multiple choice, from targets of the form `{answer: 1 or 0}`.

    The task takes the first choice of `mc1_targets` as the true one.
    """
    targets = {}
    for name in ("mc1_targets", "mc2_targets"):
        pairs = sorted(record[name].items(), key=lambda pair: -int(pair[1]))
        labels = [int(label) for _, label in pairs]
        if set(labels) != {0, 1} or (name == "mc1_targets" and sum(labels) != 1):
            raise ValueError(f"{name} must have true and false answers, and mc1 one true one")
        targets[name] = {"choices": [str(answer) for answer, _ in pairs], "labels": labels}
    return {"question": str(record["question"]), **targets}


def truthfulqa_csv(row: Record) -> dict[str, Any]:
    """Multiple choice, derived from the answers of the generation task."""
    best = row["Best Answer"].strip()
    true = _distinct([best, *row["Correct Answers"].split(";")])
    false = _distinct(row["Incorrect Answers"].split(";"))
    return truthfulqa(
        {
            "question": row["Question"],
            "mc1_targets": {best: 1} | dict.fromkeys(false, 0),
            "mc2_targets": dict.fromkeys(true, 1) | dict.fromkeys(false, 0),
        }
    )


def _distinct(answers: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(stripped for answer in answers if (stripped := answer.strip())))


def boolq(record: Record) -> dict[str, Any]:
    """`answer: true` to `label: 1`."""
    if not isinstance(record["answer"], bool):
        raise ValueError("`answer` must be true or false")
    return {
        "question": str(record["question"]),
        "passage": str(record["passage"]),
        "label": int(record["answer"]),
    }


def logiqa(lines: Sequence[str]) -> dict[str, Any]:
    """A block of seven lines: letter of the answer, context, question, options A to D."""
    label, context, question, *options = lines
    if label not in {"a", "b", "c", "d"}:
        raise ValueError(f"the answer must be a, b, c or d, not {label!r}")
    if len(options) != 4:
        raise ValueError(f"four options must follow the question, not {len(options)}")

    def spaced(text: str) -> str:
        # The files lack the space after a period; the dataset on the Hub has it.
        return text.replace(".", ". ").strip()

    return {
        "label": label,
        "context": spaced(context),
        "question": spaced(question),
        # Some options lack their letter or are in another order. The Hub's reader, too, removes
        # two characters from each and keeps the order.
        "options": [spaced(option[2:]) for option in options],
    }


def asdiv(problem: Record) -> dict[str, Any]:
    """The children of a `Problem` element."""
    if not problem["Body"] or not problem["Question"] or not problem["Answer"]:
        raise ValueError("a problem must have text in Body, Question and Answer")
    return {
        "body": problem["Body"],
        "question": problem["Question"],
        "solution_type": problem["Solution-Type"],
        "answer": problem["Answer"],
        "formula": problem["Formula"],
    }


def tydiqa(record: Record) -> dict[str, Any]:
    """A question of a file in the SQuAD format, with its passage and title."""
    answers = record["answers"]
    if not answers:
        raise ValueError("`answers` is empty")
    return {
        "id": record["id"],
        "title": record["title"],
        "context": record["context"],
        "question": record["question"],
        "answers": {
            "text": [str(answer["text"]) for answer in answers],
            "answer_start": [int(answer["answer_start"]) for answer in answers],
        },
    }


def ifeval(record: Record) -> dict[str, Any]:
    """The four fields that the checks read."""
    if len(record["instruction_id_list"]) != len(record["kwargs"]):
        raise ValueError("`kwargs` must have one entry for each of `instruction_id_list`")
    return {name: record[name] for name in ("key", "prompt", "instruction_id_list", "kwargs")}


_ARC = re.compile(
    r"Please choose the correct answer to the question: (?P<question>.*?)\n\n"
    r"(?P<answers>Answer1: .*?)\n\nAnswer format: (?P<format>\S+)\s*",
    re.DOTALL,
)


def arc(record: Record) -> dict[str, Any]:
    """From an instruction that lists `Answer1: ... Answer2: ...`; labels become A, B, ..."""
    match = _ARC.fullmatch(record["instruction"])
    if match is None:
        raise ValueError("`instruction` is no question with `Answer1: ...` and `Answer format:`")
    names = match["format"].split("/")
    answers = re.split(r"(?:^| )Answer[1-9]: ", match["answers"])[1:]
    if len(answers) != len(names):
        raise ValueError(f"{len(answers)} answers, but the format names {len(names)}")
    labels = [chr(ord("A") + index) for index in range(len(names))]
    return {
        "question": match["question"],
        "choices": {"text": answers, "label": labels},
        "answerKey": labels[names.index(record["answer"])],
    }


def lambada(record: Record) -> dict[str, Any]:
    """A passage; the task asks for its last word."""
    text = str(record["text"])
    if " " not in text:
        raise ValueError("`text` has one word only")
    return {"text": text}


def arithmetic(record: Record) -> dict[str, Any]:
    """A question and its answer, including the space before the answer."""
    return {"context": str(record["context"]), "completion": str(record["completion"])}
