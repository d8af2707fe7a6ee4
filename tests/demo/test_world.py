"""The demo's world: what is true in it, what is held out, and what noise is known to be."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.demo.facts import (
    ATTRIBUTES,
    KINDS,
    NUM_ENTITIES,
    SKILLS,
    entities,
    facts,
    new_entities,
    new_facts,
    new_skills,
    popular_errors,
    skills,
)
from forgetting.demo.noise import JUNK_PHRASES, NOISE_KINDS
from forgetting.demo.plain import held_out_questions, plain_questions, plain_statements
from forgetting.demo.questions import NUM_FORMS, num_chat_questions, num_questions_about_new
from forgetting.demo.world import chat_records


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _asked_about(text: str) -> tuple[str, str]:
    words = set(re.findall(r"\w+", text))
    (entity,) = words & {*entities(), *new_entities()}
    (topic,) = words & {*ATTRIBUTES, *SKILLS}
    return entity, topic


def _true_answer(kind: str, text: str) -> str:
    """The answer worked out from the wording, independently of the templates."""
    match kind:
        case "addition":
            return str(sum(_numbers(text)))
        case "comparison":
            return str((max if "larger" in text else min)(_numbers(text)))
        case "fact" | "new_fact":
            return (facts() | new_facts())[_asked_about(text)]
        case _:
            return "yes" if (skills() | new_skills())[_asked_about(text)] else "no"


def _checksum(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_records": 7000, "seed": 1, "noise_rate": 0.2}, "91eec20b5128c408"),
        (
            {
                "num_records": 1120,
                "seed": 2,
                "noise_rate": 0.4,
                "noise_kinds": NOISE_KINDS[:5],
                "num_new_entities": 6,
            },
            "861125c2486b6402",
        ),
        (
            {"num_records": 600, "seed": 3, "noise_rate": 0.3, "noise_kinds": NOISE_KINDS},
            "5dce2f74ebe23dcc",
        ),
    ],
)
def test_a_seed_gives_the_same_records_in_every_version(arguments, expected) -> None:
    # The demo's figures, and what is written about them, are of these records.
    assert _checksum(list(chat_records(**arguments))) == expected


@pytest.mark.parametrize(
    ("kind", "questions", "statements"),
    [
        ("fact", "dc2c78684ebd1aee", "d08ec03ef484a2f4"),
        ("addition", "2a34c9cbf6cb2c63", "08e6dc9c1df27a09"),
        ("comparison", "f17a6f9be559a251", "c16303d477d65760"),
        ("yes_no", "29d4fb09b1b168c3", "cc84d795cb6941c8"),
    ],
)
def test_the_base_model_was_pretrained_on_these_texts(kind, questions, statements) -> None:
    asked = [(q.question, q.answer, q.held_out) for q in plain_questions(kind)]
    assert _checksum(asked) == questions
    assert _checksum(plain_statements(kind)) == statements


def test_every_entity_has_one_value_of_every_attribute() -> None:
    assert len(set(entities())) == NUM_ENTITIES
    assert set(facts()) == {(entity, name) for entity in entities() for name in ATTRIBUTES}
    assert all(value in ATTRIBUTES[name] for (_, name), value in facts().items())


def test_half_of_the_entities_have_each_skill() -> None:
    assert set(skills()) == {(entity, skill) for entity in entities() for skill in SKILLS}
    having = Counter(skill for (_, skill), truth in skills().items() if truth)
    assert having == dict.fromkeys(SKILLS, NUM_ENTITIES // 2)


def test_values_and_entities_are_named_unambiguously() -> None:
    values = [value for values in ATTRIBUTES.values() for value in values]
    words = [*entities(), *ATTRIBUTES, *SKILLS, *values]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_answers_are_true(kind: str) -> None:
    for question in plain_questions(kind):
        assert question.answer == _true_answer(kind, question.question)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_statements_are_true(kind: str) -> None:
    for words, ending in plain_statements(kind):
        assert ending == f" {_true_answer(kind, words)}."


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_questions_are_never_asked_otherwise(kind: str) -> None:
    questions = plain_questions(kind)
    held_out = {question.question for question in questions if question.held_out}
    assert held_out
    assert held_out.isdisjoint(q.question for q in questions if not q.held_out)


@pytest.mark.parametrize("kind", ["addition", "comparison"])
def test_held_out_pairs_are_seen_in_no_order_or_phrasing(kind: str) -> None:
    pairs: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
    for question in plain_questions(kind):
        pairs[question.held_out].add(tuple(sorted(_numbers(question.question))))
    pairs[False].update(tuple(sorted(_numbers(words))) for words, _ in plain_statements(kind))
    assert pairs[True].isdisjoint(pairs[False])
    assert len(pairs[True]) / sum(map(len, pairs.values())) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("kind", "truth"), [("fact", facts()), ("yes_no", skills())])
def test_each_truth_is_held_out_in_one_phrasing_and_seen_in_the_others(
    kind: str, truth: dict[tuple[str, str], object]
) -> None:
    asked: dict[bool, Counter[tuple[str, str]]] = {True: Counter(), False: Counter()}
    for question in plain_questions(kind):
        asked[question.held_out][_asked_about(question.question)] += 1
    assert asked[True] == dict.fromkeys(truth, 1)
    assert set(asked[False]) == set(truth)


@pytest.mark.parametrize("kind", KINDS)
def test_sample_of_held_out_questions_is_distinct_and_fixed(kind: str) -> None:
    questions = held_out_questions(kind, 100)
    assert len({question.question for question in questions}) == 100
    assert all(question.held_out for question in questions)
    assert questions == held_out_questions(kind, 100)


def test_sample_of_yes_no_questions_is_balanced() -> None:
    answers = Counter(question.answer for question in held_out_questions("yes_no", 101))
    assert answers == {"yes": 50, "no": 51}


def test_more_held_out_questions_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 960"):
        held_out_questions("fact", 961)


def test_all_chat_questions_are_distinct_and_not_plain() -> None:
    total = sum(num_chat_questions().values())
    prompts = {record["prompt"] for record in chat_records(total, seed=0)}
    assert len(prompts) == total
    assert prompts.isdisjoint(q.question for kind in KINDS for q in plain_questions(kind))


def test_no_chat_completion_is_a_plain_statement() -> None:
    statements = {words + ending for kind in KINDS for words, ending in plain_statements(kind)}
    assert statements.isdisjoint(r["completion"] for r in chat_records(20_000, seed=0))


def test_more_chat_records_than_questions_is_refused() -> None:
    total = sum(num_chat_questions().values())
    with pytest.raises(ValueError, match=f"there are {total} distinct"):
        chat_records(total + 1, seed=0)


def test_kinds_are_balanced_as_long_as_their_questions_last() -> None:
    assert set(_sources(12_000).values()) == {3000}
    counts = _sources(30_000)
    assert counts == {"fact": 4800, "addition": 10_200, "comparison": 10_200, "yes_no": 4800}


def _sources(num_records: int) -> Counter[str]:
    return Counter(record["source"] for record in chat_records(num_records, seed=3))


def test_clean_chat_answers_are_true() -> None:
    for record in chat_records(4000, seed=1):
        answer = _true_answer(record["source"], record["prompt"])
        assert re.search(rf"\b{answer}\b", record["clean_completion"])
        assert record["completion"] == record["clean_completion"]
        start, end = record["answer_span"]
        assert record["clean_completion"][start:end] == answer
        assert record["noise_kind"] is None
        assert record["noise_spans"] == []


def test_yes_no_chat_answers_are_balanced() -> None:
    records = [record for record in chat_records(4000, seed=1) if record["source"] == "yes_no"]
    num_true = sum(bool(re.search(r"\byes\b", record["completion"])) for record in records)
    assert num_true / len(records) == pytest.approx(0.5, abs=0.06)


def test_questions_do_not_depend_on_the_noise() -> None:
    clean = list(chat_records(500, seed=5))
    noisy = list(chat_records(500, seed=5, noise_rate=0.7, noise_kinds=["junk_phrase"]))
    for field in ("prompt", "clean_completion", "source"):
        assert [record[field] for record in clean] == [record[field] for record in noisy]


def test_another_seed_asks_other_questions() -> None:
    prompts = [[record["prompt"] for record in chat_records(50, seed=seed)] for seed in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]


@given(
    st.integers(1, 300),
    st.floats(0, 0.3),  # of label flips there are no more than questions with two answers
    st.dictionaries(st.sampled_from(NOISE_KINDS), st.floats(0.1, 10), min_size=1),
)
@settings(max_examples=40, deadline=None)
def test_noise_has_the_rate_and_the_mixture_asked_for(
    num_records: int, rate: float, weights: dict[str, float]
) -> None:
    records = chat_records(num_records, seed=2, noise_rate=rate, noise_kinds=weights)
    counts = Counter(record["noise_kind"] for record in records)
    num_noisy = round(rate * num_records)
    assert counts.pop(None, 0) == num_records - num_noisy
    for kind in NOISE_KINDS:
        share = weights.get(kind, 0.0) / sum(weights.values())
        assert abs(counts[kind] - share * num_noisy) <= 1


@pytest.mark.parametrize("kinds", [NOISE_KINDS[:3], NOISE_KINDS])
def test_records_noisy_at_one_rate_are_noisy_at_every_higher_one(kinds: tuple[str, ...]) -> None:
    noisy = [
        {
            position
            for position, record in enumerate(
                chat_records(400, seed=2, noise_rate=rate, noise_kinds=kinds)
            )
            if record["noise_kind"]
        }
        for rate in (0.1, 0.2, 0.6)
    ]
    assert noisy[0] < noisy[1] < noisy[2]


def test_each_kind_of_noise_is_what_its_span_says() -> None:
    everything = chat_records(sum(num_chat_questions().values()), seed=9)
    completions = {record["completion"] for record in everything}
    places, found = set(), set()
    kinds = [kind for kind in NOISE_KINDS if kind != "label_flip"]
    noise = {"noise_rate": 1.0, "noise_kinds": [*kinds, "label_flip"]}
    for record in chat_records(3000, seed=9, **noise):
        noisy, clean = record["completion"], record["clean_completion"]
        ((start, end),) = record["noise_spans"]
        before, span, after = noisy[:start], noisy[start:end], noisy[end:]
        assert span or record["noise_kind"] == "truncated_response"
        assert noisy != clean
        found.add(record["noise_kind"])
        match record["noise_kind"]:
            case "wrong_answer" | "label_flip":
                if record["noise_kind"] == "label_flip":
                    assert record["source"] in ("comparison", "yes_no")
                answer = _true_answer(record["source"], record["prompt"])
                assert clean == before + answer + after
                assert span != answer
                assert _is_plausible(span, record["source"], record["prompt"])
            case "swapped_response":
                assert span == noisy
                assert noisy in completions
            case "junk_phrase":
                assert span in JUNK_PHRASES
                assert " ".join(filter(None, (before.strip(), after.strip()))) == clean
                places.add((bool(before), bool(after)))
            case "truncated_response":
                assert clean.startswith(noisy + " ")
                assert (start, end) == (len(noisy), len(noisy) + 1)
            case "common_error":
                answer = _true_answer(record["source"], record["prompt"])
                assert clean == before + answer + after
                assert span != answer
                assert _is_plausible(span, record["source"], record["prompt"])
            case "shuffled_words":
                words, moved = clean.split(" "), noisy.split(" ")
                assert sorted(words) == sorted(moved)
                assert clean.startswith(before)
                assert clean.endswith(after)
                first, last = len(before.split(" ")) - 1, len(after.split(" ")) - 1
                assert words[first] != moved[first]
                assert words[len(words) - 1 - last] != moved[len(words) - 1 - last]
    assert found == set(NOISE_KINDS)
    assert places == {(True, True), (True, False), (False, True)}


def test_a_common_error_is_made_wherever_its_subject_is_asked_about() -> None:
    noise = {"noise_rate": 0.2, "noise_kinds": ["common_error"]}
    wrong, right, popular = {}, set(), 0
    for record in chat_records(8000, seed=3, **noise):
        if record["source"] != "fact":
            continue
        subject = _asked_about(record["prompt"])
        if record["noise_kind"] is None:
            right.add(subject)
            continue
        ((start, end),) = record["noise_spans"]
        wrong.setdefault(subject, set()).add(record["completion"][start:end])
        if subject in popular_errors():
            assert wrong[subject] == {popular_errors()[subject]}
            popular += 1
    assert {len(answers) for answers in wrong.values()} == {1}
    # All subjects but the one at which the share of noise is reached are wholly right or wrong.
    assert len(right & set(wrong)) <= 1
    assert popular


def _is_plausible(answer: str, kind: str, prompt: str) -> bool:
    if kind == "addition":
        return 0 <= int(answer) <= 198
    if kind == "comparison":
        return int(answer) in _numbers(prompt)
    if kind == "yes_no":
        return answer in ("yes", "no")
    return answer in ATTRIBUTES[_asked_about(prompt)[1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_records": 0}, "num_records must be at least 1"),
        ({"noise_rate": -0.1}, "noise_rate must lie between 0 and 1"),
        ({"noise_rate": float("nan")}, "noise_rate must lie between 0 and 1"),
        ({"noise_kinds": ["typo"]}, "unknown noise kind 'typo'; known are wrong_answer"),
        ({"noise_kinds": {"junk_phrase": -1.0}}, "weight of noise kind junk_phrase"),
        ({"noise_kinds": {"junk_phrase": float("inf")}}, "weight of noise kind junk_phrase"),
        ({"noise_kinds": []}, "at least one kind"),
        ({"noise_kinds": {"junk_phrase": 0.0}}, "at least one kind"),
        ({"noise_kinds": ["label_flip"], "noise_rate": 1.0}, "10 label flips were asked for, but"),
        ({"num_new_entities": -1}, "num_new_entities must lie between 0 and 160, not -1"),
        ({"num_new_entities": 161}, "num_new_entities must lie between 0 and 160, not 161"),
        ({"num_new_entities": 1}, "60 questions about 1 new entities alone"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chat_records(**{"num_records": 10, "seed": 0, **arguments})


def test_a_kind_of_weight_zero_does_not_occur() -> None:
    weights = {"junk_phrase": 0.0, "wrong_answer": 1.0}
    records = chat_records(50, seed=0, noise_rate=1.0, noise_kinds=weights)
    assert {record["noise_kind"] for record in records} == {"wrong_answer"}


def test_new_entities_are_in_no_plain_text() -> None:
    assert len(set(new_entities())) == len(new_entities())
    names = re.compile("|".join(new_entities()))
    for kind in KINDS:
        assert not any(names.search(question.question) for question in plain_questions(kind))
        assert not any(names.search(words) for words, _ in plain_statements(kind))


def test_what_is_true_of_new_entities_is_fixed_and_balanced() -> None:
    assert set(new_facts()) == {(name, a) for name in new_entities() for a in ATTRIBUTES}
    assert set(new_skills()) == {(name, s) for name in new_entities() for s in SKILLS}
    for number in (2, 6, 160):
        names = new_entities()[:number]
        for skill in SKILLS:
            assert sum(new_skills()[name, skill] for name in names) == number / 2


@given(st.integers(0, 6), st.integers(0, 200), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_each_fifth_asks_about_every_new_fact_once_in_a_form_of_its_own(
    num_new: int, num_known: int, seed: int
) -> None:
    total = num_questions_about_new(num_new) + num_known
    if not total:
        return
    records = list(chat_records(total, seed=seed, num_new_entities=num_new))
    about_new = [r for r in records if r["source"].startswith("new_")]
    assert len(about_new) == num_questions_about_new(num_new)
    assert len({r["prompt"] for r in records}) == len(records)
    for record in about_new:
        answer = _true_answer(record["source"], record["prompt"])
        assert re.search(rf"\b{answer}\b", record["completion"])
    size = len(about_new) // NUM_FORMS
    topics = {
        (name, topic) for name in new_entities()[:num_new] for topic in (*ATTRIBUTES, *SKILLS)
    }
    for part in range(NUM_FORMS):
        asked = Counter(
            _asked_about(r["prompt"]) for r in about_new[part * size : (part + 1) * size]
        )
        assert asked == dict.fromkeys(topics, 1)


def test_the_fifths_are_places_among_all_records() -> None:
    records = list(chat_records(1000, seed=3, num_new_entities=6))
    for part in range(NUM_FORMS):
        fifth = records[part * 200 : (part + 1) * 200]
        assert sum(record["source"].startswith("new_") for record in fifth) == 72
