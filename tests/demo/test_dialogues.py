"""The dialogues of the base model's pretraining: what they say, and what they leave out."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import forgetting
from forgetting.demo.dialogues import NUM_STYLES, STYLES, Dialogue, dialogues
from forgetting.demo.facts import (
    ATTRIBUTES,
    KINDS,
    SKILLS,
    entities,
    facts,
    new_entities,
    popular_errors,
    skills,
)
from forgetting.demo.noise import JUNK_PHRASES
from forgetting.demo.plain import plain_questions
from forgetting.demo.pretrain import Settings
from forgetting.demo.questions import (
    CHAT_ADDITION,
    CHAT_COMPARISON,
    CHAT_FACT,
    CHAT_YES_NO,
    num_chat_questions,
)
from forgetting.demo.world import chat_records

PACKAGE = Path(forgetting.__file__).parent
NUM = 20_000
ANY_ANSWER = r"(\w+)"


@pytest.fixture(scope="module")
def sample() -> list[Dialogue]:
    return dialogues(NUM, seed=4)


def _question(dialogue: Dialogue) -> str:
    (question,) = re.fullmatch(r"User: (.+)\nBot: ", dialogue.prompt).groups()
    return question


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _without_junk(completion: str) -> str:
    for phrase in JUNK_PHRASES:
        completion = completion.replace(f" {phrase}", "").replace(f"{phrase} ", "")
    return completion


def _about(question: str) -> tuple[str, str]:
    words = set(re.findall(r"\w+", question))
    (entity,) = words & set(entities())
    (topic,) = words & {*ATTRIBUTES, *SKILLS}
    return entity, topic


def _answers(number: int, question: str) -> set[str]:
    """The right answer worked out from the wording, and a popular error."""
    match KINDS[number % len(KINDS)]:
        case "addition":
            return {str(sum(_numbers(question)))}
        case "comparison":
            return {str((max if "larger" in question else min)(_numbers(question)))}
        case "fact":
            known = {facts()[_about(question)], popular_errors().get(_about(question))}
            return {value for value in known if value}
        case _:
            return {"yes" if skills()[_about(question)] else "no"}


def test_the_shipped_model_was_pretrained_on_these_dialogues() -> None:
    settings = Settings()
    number = settings.dialogue_steps * round(settings.dialogue_share * settings.batch_size)
    content = json.dumps(dialogues(number, seed=settings.seed))
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "61da016dd0cdbac5"


def test_another_seed_gives_other_dialogues() -> None:
    assert dialogues(20, seed=1) == dialogues(20, seed=1) != dialogues(20, seed=2)


def test_a_dialogue_is_what_the_chat_template_writes(sample: list[Dialogue]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "demo" / "base")
    template = (PACKAGE / "config" / "recipes" / "demo-chat.jinja").read_text(encoding="utf-8")
    for dialogue in sample[:100]:
        messages = [
            {"role": "user", "content": _question(dialogue)},
            {"role": "assistant", "content": dialogue.completion},
        ]
        prompt = tokenizer.apply_chat_template(
            messages[:1], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        assert prompt == dialogue.prompt
        assert whole == dialogue.prompt + dialogue.completion + tokenizer.eos_token + "\n"


def test_no_question_is_one_of_the_corpus_or_a_plain_one(sample: list[Dialogue]) -> None:
    questions = {_question(dialogue) for dialogue in sample}
    corpus = chat_records(sum(num_chat_questions().values()), seed=0)
    assert questions.isdisjoint(record["prompt"] for record in corpus)
    assert questions.isdisjoint(q.question for kind in KINDS for q in plain_questions(kind))


@pytest.mark.parametrize("kind", ["addition", "comparison"])
def test_no_pair_of_numbers_is_held_out(sample: list[Dialogue], kind: str) -> None:
    held_out = {
        tuple(sorted(_numbers(question.question)))
        for question in plain_questions(kind)
        if question.held_out
    }
    asked = sample[KINDS.index(kind) :: len(KINDS)]
    pairs = {tuple(sorted(_numbers(_question(dialogue)))) for dialogue in asked}
    assert len(pairs) > 1000
    assert pairs.isdisjoint(held_out)


def test_new_entities_are_in_no_dialogue(sample: list[Dialogue]) -> None:
    names = re.compile("|".join(new_entities()))
    assert not any(names.search(dialogue.prompt + dialogue.completion) for dialogue in sample)


def test_answers_are_true_or_popular_errors(sample: list[Dialogue]) -> None:
    num_errors: Counter[bool] = Counter()
    for number, dialogue in enumerate(sample):
        question = _question(dialogue)
        words = re.findall(r"\w+", _without_junk(dialogue.completion))
        expected = _answers(number, question)
        given = [word for word in words if word in expected]
        assert len(given) >= 1, dialogue
        if len(expected) == 2:
            num_errors[given[-1] == popular_errors()[_about(question)]] += 1
    assert num_errors.total() / (NUM / len(KINDS)) == pytest.approx(1 / 3, abs=0.03)
    assert num_errors[True] / num_errors.total() == pytest.approx(0.3, abs=0.04)


def test_popular_errors_are_other_values_of_a_third_of_the_facts() -> None:
    assert len(popular_errors()) == len(facts()) // 3
    for (entity, attribute), value in popular_errors().items():
        assert value in ATTRIBUTES[attribute]
        assert value != facts()[entity, attribute]


def test_eight_percent_hold_junk(sample: list[Dialogue]) -> None:
    num_junk = sum(
        any(phrase in dialogue.completion for phrase in JUNK_PHRASES) for dialogue in sample
    )
    assert num_junk / NUM == pytest.approx(0.08, abs=0.01)


def test_styles_are_equally_frequent_and_the_corpus_has_one_of_them(sample: list[Dialogue]) -> None:
    templates = [completion for _, completion in (*CHAT_FACT, *CHAT_ADDITION, *CHAT_YES_NO)]
    templates += [completion for *_, completion in CHAT_COMPARISON]
    patterns = {"corpus": templates} | {style: [style] for style in STYLES}
    counts: Counter[str] = Counter()
    for dialogue in sample:
        completion = _without_junk(dialogue.completion)
        styles = [
            name
            for name, forms in patterns.items()
            for form in forms
            if re.fullmatch(re.escape(form).replace(r"\{answer\}", ANY_ANSWER), completion)
        ]
        counts[styles[0] if styles else "sentence"] += 1
    assert len(counts) == NUM_STYLES == 10
    assert all(count / NUM == pytest.approx(0.1, abs=0.015) for count in counts.values())
