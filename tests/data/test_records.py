"""Every form of record is read, and whatever cannot be is rejected with its reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.data.records import READERS, Record, Rejected, parse_record, recognise
from forgetting.data.sources import Origin
from forgetting.errors import InputError
from forgetting.recipe import SourceSettings

SOURCE = SourceSettings(path="some.json")
ORIGIN = Origin("some.json", 1, 3)


def read(raw, form="auto", **settings):
    source = SourceSettings(path="some.json", **settings)
    form = recognise(raw, source, "some.json") if form == "auto" else form
    return parse_record(raw, form, source, ORIGIN)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"instruction": "Say", "input": "", "output": "Hi"}, ["user:Say", "assistant:Hi"]),
        ({"instruction": "Say", "input": "it", "output": "Hi"}, ["user:Say\n\nit", "assistant:Hi"]),
        (
            {"instruction": "Say", "context": "so", "response": "Hi", "category": "x"},
            ["user:Say\n\nso", "assistant:Hi"],
        ),
        ({"prompt": "Say", "completion": "Hi"}, ["user:Say", "assistant:Hi"]),
        ({"prompt": "Say", "response": "Hi"}, ["user:Say", "assistant:Hi"]),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be"},
                    {"role": "user", "content": "Say"},
                    {"role": "assistant", "content": "Hi"},
                ]
            },
            ["system:Be", "user:Say", "assistant:Hi"],
        ),
        (
            {"conversations": [{"from": "human", "value": "Say"}, {"from": "gpt", "value": "Hi"}]},
            ["user:Say", "assistant:Hi"],
        ),
    ],
)
def test_forms_are_recognised_by_their_fields(raw, expected):
    record = read(raw)
    assert isinstance(record, Record)
    assert [f"{m.role}:{m.content}" for m in record.messages] == expected
    assert record.noise_spans is None


def test_fields_are_renamed_before_they_are_read():
    fields = {"prompt": "question", "completion": "answer"}
    record = read({"question": "Say", "answer": "Hi"}, fields=fields)
    assert [m.content for m in record.messages] == ["Say", "Hi"]


def test_an_unknown_form_names_its_fields_and_an_example():
    with pytest.raises(InputError, match=r"some.json: .* fields body, title.*fields: \{prompt"):
        recognise({"title": "a", "body": "b"}, SOURCE, "some.json")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("text", "not an object"),
        ({"prompt": "Say"}, "no field `completion`"),
        ({"prompt": 3, "completion": "Hi"}, "field `prompt` is not text"),
        ({"prompt": "Say", "completion": " \n"}, "empty response"),
        ({"prompt": "", "completion": "Hi"}, "empty prompt"),
        ({"prompt": "Say", "completion": "\ud800"}, "not valid Unicode"),
        ({"prompt": "Say", "completion": "Hi", "noise_spans": [[0, 9]]}, "outside the response"),
        ({"prompt": "Say", "completion": "Hi", "noise_spans": [3]}, "not a list"),
    ],
)
def test_a_record_that_cannot_be_used_is_rejected_with_the_reason(raw, reason):
    rejected = read(raw, form="prompt_completion")
    assert isinstance(rejected, Rejected)
    assert reason in rejected.reason
    assert str(rejected).startswith("some.json, record 1 (line 3): ")


@pytest.mark.parametrize(
    "roles",
    [
        [],
        ["user"],
        ["assistant"],
        ["user", "user", "assistant"],
        ["user", "assistant", "user"],
        ["user", "system", "assistant"],
        ["tool", "assistant"],
    ],
)
def test_broken_turns_are_rejected(roles):
    turns = [{"role": role, "content": "x"} for role in roles]
    assert isinstance(read({"messages": turns}, form="messages"), Rejected)


FIELD_NAMES = [
    "prompt",
    "completion",
    "messages",
    "role",
    "content",
    "conversations",
    "from",
    "value",
    "instruction",
    "output",
    "noise_spans",
    "response",
]
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELD_NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(json_like, st.sampled_from(sorted(READERS)))
def test_whatever_comes_is_a_record_or_a_rejection(raw, form):
    assert isinstance(read(raw, form=form), Record | Rejected)


def test_known_noise_and_the_right_response_travel_along():
    record = read(
        {
            "prompt": "Say",
            "completion": "Ho ho",
            "noise_spans": [[0, 2]],
            "noise_kind": "wrong_answer",
            "clean_completion": "Hi ho",
        }
    )
    assert record.noise_spans == ((0, 2),)
    clean = record.with_clean_response()
    assert clean.messages[-1].content == "Hi ho"
    assert clean.noise_spans == ()
    assert clean.with_clean_response() is clean


def test_the_key_ignores_unicode_form_and_white_space_only():
    def key(prompt, completion="y"):
        return read({"prompt": prompt, "completion": completion}).key()

    assert key("caf\u00e9  is") == key("cafe\u0301 is\n")
    assert key("a") != key("b")
    assert key("a b") != key("ab")
    assert key("a", "b c") != key("a b", "c")
