"""Copies with planted noise: what is copied, which kinds, equal seeds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from forgetting.data.planting import default_num_copies, plant
from forgetting.errors import InputError
from forgetting.method.corruptions import (
    CLEAN,
    CORRUPTIONS,
    Corrupted,
    Turn,
    register_corruption,
)

OTHERS: list[list[Turn]] = [
    [
        ("user", "Who wrote the novel? Name the year as well."),
        ("assistant", "Victor Hugo wrote it in 1862. It's about Jean Valjean, who stole bread."),
    ],
    [
        ("user", "How many planets are there?"),
        ("assistant", "There are 8 planets. Jupiter, the largest, is 11.2 times as wide as Earth."),
    ],
    [
        ("user", "Translate the sentence into French."),
        ("assistant", "Voilà: «Où est la gare ?»\nIt means: where is the station in 1234 PARIS?"),
    ],
    [("user", "Say yes."), ("assistant", "Yes")],
]


def conversations(count: int) -> list[list[Turn]]:
    made: list[list[Turn]] = []
    for number in range(count):
        question, answer = OTHERS[number % 3]
        turns = [question, ("assistant", f"{answer[1]} Number {number}.")]
        if number % 5 == 0:
            turns = [("system", "Be brief."), *turns, ("user", "And?"), ("assistant", "No more.")]
        made.append(turns)
    return made


def test_equal_seeds_plant_equal_copies() -> None:
    records = conversations(50)
    first = plant(records, np.random.default_rng(7), 60)
    assert first == plant(records, np.random.default_rng(7), 60)
    assert first != plant(records, np.random.default_rng(8), 60)


def test_a_third_stays_clean_and_kinds_follow_their_weights() -> None:
    copies = plant(conversations(300), np.random.default_rng(0), 300)
    counts = Counter(copy.kind for copy in copies)
    assert counts[CLEAN] == 100
    total = sum(kind.weight for kind in CORRUPTIONS.values())
    for name, kind in CORRUPTIONS.items():
        # Kinds that do not apply to a record give their place to others.
        assert counts[name] >= 200 * kind.weight / total * 0.5
    assert len({copy.index for copy in copies}) == 300


def test_a_corrupted_response_is_the_last_turn_and_the_rest_is_untouched() -> None:
    records = conversations(100)
    copies = plant(records, np.random.default_rng(1), 200)
    places: Counter[int] = Counter()
    for copy in copies:
        original = records[copy.index]
        if copy.kind == CLEAN:
            assert list(copy.turns) == original
            assert copy.spans == ()
        else:
            last = len(copy.turns) - 1
            places[last] += 1
            assert list(copy.turns[:-1]) == original[:last]
            assert copy.turns[-1] != original[last]
            assert copy.turns[-1][0] == "assistant"
            assert 0 <= copy.spans[0][0] < copy.spans[-1][1] <= len(copy.turns[-1][1]) + 1
    assert {2, 4} <= set(places)


def test_small_and_empty_corpora() -> None:
    assert plant([], np.random.default_rng(0)) == []
    assert plant([[("user", "a")], [("assistant", " ")]], np.random.default_rng(0)) == []
    same: list[list[Turn]] = [[("user", "a"), ("assistant", "x")]] * 3
    copies = plant(same, np.random.default_rng(0))
    assert len(copies) == 200
    assert {copy.index for copy in copies} == {0, 1, 2}
    clean = plant(same, np.random.default_rng(0), 9, corruptions={})
    assert {copy.kind for copy in clean} == {CLEAN}


@pytest.mark.parametrize(
    ("records", "copies"),
    [(0, 0), (10, 200), (150, 300), (500, 600), (1000, 600), (2000, 800), (50000, 2000)],
)
def test_default_number_of_copies(records: int, copies: int) -> None:
    assert default_num_copies(records) == copies


def test_a_registered_kind_is_planted_and_what_it_returns_is_checked() -> None:
    made = Corrupted("LOUD", ((0, 4),))
    register_corruption("shout", lambda *_: made, words="upper case")
    try:
        kinds = {"shout": CORRUPTIONS["shout"]}
        copies = plant(conversations(60), np.random.default_rng(0), 30, kinds)
        assert {copy.turns[-1][1] for copy in copies if copy.kind == "shout"} == {"LOUD"}
        for spans in ([(0, 9)], [(2, 1)], [(1, 3), (2, 4)]):
            made = Corrupted("LOUD", tuple(spans))
            with pytest.raises(InputError, match="the corruption shout returned the spans"):
                plant(conversations(60), np.random.default_rng(0), 30, kinds)
    finally:
        CORRUPTIONS.remove("shout")
