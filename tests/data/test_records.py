"""Every form of record is read, and whatever cannot be is rejected with its reason."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.config import SourceSettings
from forgetting.data.records import Record, Rejected, normalised, parse_record, recognise
from forgetting.data.sources import Origin
from forgetting.errors import InputError
from forgetting.formats import FORMATS

SOURCE = SourceSettings(path="some.json")
ORIGIN = Origin("some.json", 1, 3)


def read(raw, form="auto", **settings):
    source = SourceSettings(path="some.json", **settings)
    form = recognise(raw, source, "some.json") if form == "auto" else form
    return parse_record(raw, form, source, ORIGIN)


def tree(text, *replies, role="prompter", **more):
    """A message of an Open Assistant tree."""
    return {"text": text, "role": role, "replies": list(replies), **more}


def reply(text, *replies, rank=None, **more):
    return tree(text, *replies, role="assistant", rank=rank, **more)


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
        (
            {
                "conversations": [
                    {"role": "user", "content": "Say"},
                    {"role": "model", "content": "Hi"},
                ]
            },
            ["user:Say", "assistant:Hi"],
        ),
        (
            {
                "prompt": [{"role": "user", "content": "Say"}],
                "completion": [{"role": "assistant", "content": "Hi"}],
            },
            ["user:Say", "assistant:Hi"],
        ),
        ({"question": "Say", "answer": "Hi"}, ["user:Say", "assistant:Hi"]),
        (
            {"question": "Say", "answer": "Hi", "rationale": "Since"},
            ["user:Say", "assistant:Since\nHi"],
        ),
        (
            {"question": "Say", "context": "so", "answers": {"text": ["Hi", "Ho"]}},
            ["user:Say\n\nso", "assistant:Hi"],
        ),
        ({"question": "Say", "answers": ["Hi", "Ho"]}, ["user:Say", "assistant:Hi"]),
        ({"text": "Once upon a time"}, ["assistant:Once upon a time"]),
        (
            {"message_tree_id": "1", "prompt": tree("Say", tree("Hi", role="assistant"))},
            ["user:Say", "assistant:Hi"],
        ),
    ],
)
def test_forms_are_recognised_by_their_fields(raw, expected):
    record = read(raw)
    assert isinstance(record, Record)
    assert [f"{m.role}:{m.content}" for m in record.messages] == expected
    assert record.noise_spans is None


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (tree("q", reply("b", rank=1), reply("a", rank=0)), "qa"),
        # Without a rank the first; one with a rank goes before.
        (tree("q", reply("a"), reply("b")), "qa"),
        (tree("q", reply("b"), reply("a", rank=2)), "qa"),
        (tree("q", reply("b", rank=0, deleted=True), reply("a", rank=1)), "qa"),
        # The best reply's own best path, and no question that nobody answered.
        (
            tree("q", reply("a", tree("r", reply("c", rank=1), reply("s", rank=0)), rank=0)),
            "qars",
        ),
        (tree("q", reply("a", tree("r"))), "qa"),
        (tree("q", reply("a", tree("r", reply("s", deleted=True)))), "qa"),
    ],
)
def test_of_a_tree_the_best_ranked_path_is_taken(root, expected):
    record = read({"message_tree_id": "1", "prompt": root})
    assert "".join(m.content for m in record.messages) == expected


def test_fields_are_renamed_before_they_are_read():
    fields = {"prompt": "question", "completion": "answer"}
    record = read({"question": "Say", "answer": "Hi"}, fields=fields)
    assert [m.content for m in record.messages] == ["Say", "Hi"]


def test_other_names_of_system_texts_are_mapped():
    raw = {"system_prompt": "Be", "question": "Say", "response": "Hi"}
    record = read(raw, fields={"system": "system_prompt", "prompt": "question"})
    assert [f"{m.role}:{m.content}" for m in record.messages] == [
        "system:Be",
        "user:Say",
        "assistant:Hi",
    ]


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
        ({"prompt": "Say", "completion": "Hi", "noise_spans": [[0, 4]]}, "outside the response"),
        ({"prompt": "Say", "completion": "Hi", "noise_spans": [3]}, "not a list"),
        ({"prompt": "\udfff", "completion": "Hi"}, "not valid Unicode"),
        (
            {"prompt": "Say", "completion": "Hi", "noise_spans": [[0, 1]], "noise_kind": 3},
            "`noise_kind` is not text",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_rejected_with_the_reason(raw, reason):
    rejected = read(raw, form="prompt_completion")
    assert isinstance(rejected, Rejected)
    assert reason in rejected.reason
    assert str(rejected).startswith("some.json, record 1 (line 3): ")


@pytest.mark.parametrize(
    "root",
    [
        "text",
        tree("q"),
        tree("q", reply("a", deleted=True)),
        tree("q", role="assistant"),
        {"text": "q", "role": "prompter", "replies": "none"},
        {"text": "q", "role": "prompter", "replies": [3]},
        {"text": None, "role": "prompter"},
    ],
)
def test_trees_that_answer_nothing_are_rejected(root):
    assert isinstance(read({"prompt": root}, form="oasst"), Rejected)


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
    "noise_kind",
    "clean_completion",
    "response",
    "question",
    "answers",
    "text",
    "replies",
    "rank",
    "tools",
    "tool_calls",
    "history",
    "system",
    "chosen",
    "rejected",
    "weight",
    "label",
    "type",
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


@given(json_like, st.sampled_from(sorted(FORMATS)))
def test_whatever_comes_is_a_record_or_a_rejection(raw, form):
    result = read(raw, form=form)
    assert isinstance(result, Record | Rejected)
    if isinstance(result, Rejected):
        # Goes into a table: valid Unicode, and no more kinds of reasons than there are faults.
        f"{result.reason}{result.detail}".encode()
        assert len(result.detail) <= 40


texts = st.text(min_size=1).filter(str.strip)


@given(st.lists(texts, min_size=1, max_size=3), st.lists(texts, min_size=3, max_size=3), texts)
def test_a_record_comes_back_as_it_was_dumped(prompts, responses, clean):
    turns = [
        {"role": role, "content": content}
        for pair in zip(prompts, responses, strict=False)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    known = {"noise_spans": [[0, 1]], "noise_kind": "k", "clean_completion": clean}
    for more in ({}, known, {"noise_spans": []}):
        record = read({"messages": turns, **more}, form="messages")
        if isinstance(record, Record):
            assert Record.load(record.dump()) == record


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


@pytest.mark.parametrize(
    "spans",
    [
        *({}, "", "[[0, 1]]", [[0.0, 1.0]], [[0, 1.5]], [[False, True]], [["0", "1"]], ["01"]),
        *([{0: 1}], 0, True, [[0]], [[0, 1, 2]], [0, 1], [None]),
    ],
)
def test_noise_spans_are_pairs_of_integers_only(spans):
    raw = {"prompt": "p", "completion": "response", "noise_spans": spans}
    assert read(raw).reason == "`noise_spans` is not a list of [start, end]"


def test_stretches_of_combining_marks_are_normalized_up_to_a_length():
    marks = "\u0323\u0301"
    short, long = marks * 300, marks * 200_000
    # Putting the long one into order would take hours.
    text = f"e\u0301  x{short} e{long}\n\u0915\u093c"
    expected = f"\u00e9 x{unicodedata.normalize('NFC', short)} e{long} \u0915\u093c"
    assert normalised(text) == expected
    for text in ("e\u0301" * 2000, "a\u0f73" * 2000, "\u1100\u1161\u11a8" * 1000, " a  b " * 500):
        assert normalised(text) == " ".join(unicodedata.normalize("NFC", text).split())
