"""The tiny model in memory, its tokenizer, and small files of all nine benchmarks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.rundir.answer_sheets import Answer


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def answer(sample_id=0, **changes) -> Answer:
    """An answer with made-up content."""
    own = {"source": "s", "prompt": "p", "expected": "e", "answer": "a"}
    own |= {"exact_match": False, "chrf": 0.25, "is_cut": False}
    return Answer(sample_id=sample_id, **{**own, **changes})


def write_lines(path: Path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def squad(language, texts):
    """A file in the SQuAD form: one passage and question for each text."""
    return {
        "data": [
            {
                "title": text,
                "paragraphs": [
                    {
                        "context": f"The {text} is here.",
                        "qas": [
                            {
                                "id": f"{language}-{text}",
                                "question": f"What is {text}?",
                                "answers": [{"text": text, "answer_start": 4}],
                            }
                        ],
                    }
                ],
            }
            for text in texts
        ]
    }


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return save_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def save_benchmarks(folder: Path) -> Path:
    """Four items of each benchmark in its published form; TyDiQA in two languages, one of them
    without a training file."""
    words = ["red", "blue", "green", "gold"]
    with (folder / "TruthfulQA.csv").open("w", encoding="utf-8") as stream:
        fields = ["Question", "Best Answer", "Correct Answers", "Incorrect Answers"]
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        for word in words:
            answers = [f"Is it {word}?", "Yes", f"Yes; It is {word}", "No; Never"]
            writer.writerow(dict(zip(fields, answers, strict=True)))
    write_lines(
        folder / "boolq.jsonl",
        (
            {"question": f"is it {w}", "passage": f"It is {w}.", "answer": i % 2 == 0}
            for i, w in enumerate(words)
        ),
    )
    blocks = [
        f"\n{'abcd'[i]}\nIt is {w}.Or not.\nWhich?\nA.one\nB.two\nC.three\nD.four\n"
        for i, w in enumerate(words)
    ]
    (folder / "logiqa").mkdir()
    (folder / "logiqa" / "Test.txt").write_text("".join(blocks))
    problems = (
        f"<Problem ID='{i}'><Body>{w} &amp; {i}.</Body><Question>How many?</Question>"
        f"<Solution-Type>Sum</Solution-Type><Answer>{i} ({w})</Answer>"
        f"<Formula>{i}</Formula></Problem>"
        for i, w in enumerate(words)
    )
    (folder / "ASDiv.xml").write_text(f"<File><ProblemSet>{''.join(problems)}</ProblemSet></File>")
    for language, split in (("korean", "dev"), ("korean", "train"), ("english", "dev")):
        texts = words if split == "dev" else ["black", "white"]
        file = folder / "tydiqa" / f"{language}_tydiqa_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(squad(language, texts)))
    write_lines(
        folder / "ifeval" / "input_data.jsonl",
        (
            {
                "key": i,
                "prompt": f"Write about {w}.",
                "instruction_id_list": ["punctuation:no_comma"]
                if i % 2
                else ["length_constraints:number_words"],
                "kwargs": [{}] if i % 2 else [{"relation": "at least", "num_words": 1 + 300 * i}],
            }
            for i, w in enumerate(words)
        ),
    )
    arc = [
        {
            "instruction": f"Please choose the correct answer to the question: Which is {w}?\n\n"
            "Answer1: a stone Answer2: a leaf Answer3: a cat\n\n"
            "Answer format: answer1/answer2/answer3",
            "answer": f"answer{i % 3 + 1}",
        }
        for i, w in enumerate(words)
    ]
    (folder / "ARC-Challenge-test.json").write_text(json.dumps(arc))
    write_lines(folder / "lambada_test.jsonl", ({"text": f"The stone is very {w}"} for w in words))
    for name in ("two_digit_addition", "single_digit_three_ops"):
        write_lines(
            folder / "arithmetic" / f"{name}.jsonl",
            (
                {"context": f"\n\nQ: What is {i} plus {i}?\n\nA:", "completion": f" {2 * i}"}
                for i in range(4)
            ),
        )
    return folder
