"""Planted noise: labels are exact, copies are reproducible, odd input is no error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.method.corruptions import (
    CLEAN,
    CORRUPTIONS,
    Corpus,
    Corrupted,
    Turn,
    register_corruption,
    shape,
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
CORPUS = Corpus(OTHERS)
LINES = st.lists(
    st.one_of(
        st.sampled_from([c for turns in OTHERS for _, c in turns]),
        st.text(st.characters(codec="utf-8"), max_size=40),
    ),
    min_size=1,
    max_size=4,
)
TEXTS = LINES.map(" ".join).filter(lambda text: bool(text.strip()))
INSERTING = ("insert", "leak", "repeat")


def outside(found: Corrupted) -> list[str]:
    """The stretches of text that are in no span."""
    parts, at = [], 0
    for start, end in found.spans:
        parts.append(found.text[at:start])
        at = end
    return [*parts, found.text[at:]]


def run(name: str, response: str, seed: int) -> Corrupted | None:
    rng = np.random.default_rng(seed)
    return CORRUPTIONS[name].function(response, "What is it? Tell me.", CORPUS, rng)


@pytest.mark.parametrize("name", CORRUPTIONS)
@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(0, 2**32 - 1))
def test_spans_are_ascending_disjoint_and_within_the_text_and_its_end(
    name: str, response: str, seed: int
) -> None:
    found = run(name, response, seed)
    if found is None:
        return
    assert found.spans
    edges = [edge for span in found.spans for edge in span]
    assert all(start < end for start, end in found.spans)
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= len(found.text) + 1
    assert found == run(name, response, seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(0, 2**32 - 1))
def test_text_outside_spans_is_the_originals(name: str, response: str, seed: int) -> None:
    found = run(name, response, seed)
    if found is None:
        return
    kept = outside(found)
    if name == "swap":
        assert kept == ["", ""]
        return
    at = 0
    for place, part in enumerate(kept):
        # Text that is put before the first word brings a space with it.
        if place and found.spans[0][0] == 0 and place == 1 and name in INSERTING:
            part = part.removeprefix(" ")
        where = response.find(part, at)
        assert where >= 0
        at = where + len(part)
    if name in INSERTING:
        assert "".join(kept) in (response, f" {response}")


def test_examples_of_each_kind_change_what_their_name_says() -> None:
    response = "The tower is 330 metres tall. It was built in 1889 by Gustave Eiffel's company."
    made = {name: [run(name, response, seed) for seed in range(40)] for name in CORRUPTIONS}
    for name, results in made.items():
        assert any(result is not None for result in results), name
    for found in made["truncate"]:
        assert found is not None
        assert response.startswith(found.text)
        assert found.spans == ((len(found.text), len(found.text) + 1),)
        assert found.text[-1] not in ".!?"
    for found in made["swap"]:
        assert found is not None
        assert found.text in CORPUS.responses
        assert found.spans == ((0, len(found.text) + 1),)
    for found in filter(None, made["substitute"]):
        old, new = response.split(), found.text.split()
        changed = [(o, n) for o, n in zip(old, new, strict=True) if o != n]
        assert 1 <= len(changed) <= 4
        for start, end in found.spans:
            assert shape(found.text[start:end]) in {shape(w.strip(".")) for w, _ in changed} | {
                shape(w.strip(".").removesuffix("'s")) for w, _ in changed
            }
    for found in made["drop"]:
        assert found is not None
        ((start, end),) = found.spans
        assert len(found.text) < len(response)
        # One visible character: the token after the gap.
        assert len(found.text[start:end].strip()) == 1
        assert response.startswith(found.text[:start])
        assert response.endswith(found.text[end:])
    for found in made["mojibake"]:
        assert found is not None
        assert "â€™" in found.text
    for found in made["placeholder"]:
        assert found is not None
        ((start, end),) = found.spans
        assert end == len(found.text) + 1
        assert response.startswith(found.text[:start])
        assert len(found.text) - start < 25
    starts = [found.spans[0][0] for found in made["placeholder"]]
    assert 10 < starts.count(0) < 30
    assert len({found.text for found in made["placeholder"]}) > 30


def test_a_placeholder_in_place_of_itself_is_no_corruption() -> None:
    made = [run("placeholder", "Paris", seed) for seed in range(100)]
    texts = [found.text for found in made if found is not None]
    again = [run("placeholder", text, seed) for seed, text in enumerate(texts)]
    assert None in again
    assert all(
        found is None or found.text != text for text, found in zip(texts, again, strict=True)
    )


def test_repeat_marks_only_what_comes_again() -> None:
    found = run("repeat", "one two", 3)
    assert found is not None
    ((start, end),) = found.spans
    again = found.text[start:end].split()
    assert set(again) <= {"one", "two"}
    assert found.text[:start].endswith(again[-1])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corpus_of_one_text_offers_nothing_to_take(name: str) -> None:
    alone = Corpus([[("user", "hi"), ("assistant", "yes")]])
    found = CORRUPTIONS[name].function("yes", "hi", alone, np.random.default_rng(0))
    if name in ("swap", "substitute", "garble", "drop", "truncate", "mojibake"):
        assert found is None
    else:
        assert found is None or found.text != "yes"


@pytest.mark.parametrize("name", ["swap", CLEAN])
def test_a_name_can_be_registered_once(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        register_corruption(name, CORRUPTIONS["swap"].function)


def test_shapes() -> None:
    assert shape("1,234.5") == "0,000.0"
    assert shape("Paris") == shape("Madri") != shape("paris")
    assert shape("walking") == shape("singing")
    assert shape("NASA") != shape("Nasa")
