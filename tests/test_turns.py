"""Every known field of records and turns has its meaning, or the record is refused by name."""

from __future__ import annotations

import json

import pytest

from forgetting.config import SourceSettings
from forgetting.data.records import Record, Rejected, parse_record, parse_records, recognise
from forgetting.data.sources import Origin
from forgetting.errors import InputError
from forgetting.turns import Message, decoded

USER, RIGHT = ("user", "Say", {}), ("assistant", "Hi", {})
CALL = {"id": "1", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {}}}


def read(raw):
    source = SourceSettings(path="some.json")
    form = recognise(raw, source, "some.json")
    return parse_record(raw, form, source, Origin("some.json", 1))


def read_both(raw, **settings):
    """The preferred response, and the one to forget."""
    source = SourceSettings(path="some.json", negatives="rejected", **settings)
    form = recognise(raw, source, "some.json")
    return parse_records(raw, form, source, Origin("some.json", 1))


def exchange(*turns, **more):
    """A record of turns, each with role, content and further keys."""
    return {"messages": [{"role": r, "content": text, **keys} for r, text, keys in turns], **more}


def shared_gpt(*values):
    """Turns of `human` and `gpt`."""
    roles = ("human", "gpt") * len(values)
    return [{"from": role, "value": value} for role, value in zip(roles, values, strict=False)]


def preference(chosen, prompt="a"):
    return {"prompt": prompt, "chosen": chosen, "rejected": "c"}


ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"instruction": "a", "output": "b", "system": "s", "history": [["q", "r"]]}, "s|q|r|a|b"),
        ({"instruction": "a", "output": "b", "system": "", "history": '[["q", "r"]]'}, "q|r|a|b"),
        ({"instruction": "a", "response": "b", "system": "s"}, "s|a|b"),
        ({"prompt": "a", "response": "b", "system": "s"}, "s|a|b"),
        ({"question": "a", "answer": "b", "system": "s"}, "s|a|b"),
        ({"conversations": shared_gpt("a", "b"), "system": "s"}, "s|a|b"),
        (exchange(USER, RIGHT, system=[{"type": "text", "text": "s"}]), "s|Say|Hi"),
        (exchange(("system", "s", {}), USER, RIGHT, system=" s"), "s|Say|Hi"),
        (
            exchange(
                ("user", [{"type": "text", "text": "Sa"}, {"type": "text", "text": "y"}], {}),
                ("assistant", [{"type": "text", "text": "Hi"}], {}),
            ),
            "Say|Hi",
        ),
        (exchange(("Developer", "s", {}), ("USER", "a", {}), ("Assistant ", "b", {})), "s|a|b"),
        (preference("b"), "a|b"),
        (preference([ASKED, ANSWERED]), "a|b"),
        (preference([ANSWERED]), "a|b"),
        (preference([ANSWERED], [ASKED]), "a|b"),
        (preference("b", [ASKED]), "a|b"),
        ({"chosen": [ASKED, ANSWERED], "rejected": [ASKED]}, "a|b"),
        ({"prompt": "a", "completion": "b", "label": True}, "a|b"),
        ({"prompt": "a", "completion": "b", "label": "1"}, "a|b"),
        ({"messages": json.dumps([ASKED, *shared_gpt("x", "b")[1:]])}, "a|b"),
        # No loss depends on what follows the last response that is learned.
        (exchange(USER, RIGHT, USER, ("assistant", "Ho", {"weight": 0})), "Say|Hi"),
        (
            exchange(
                USER,
                ("assistant", None, {"tool_calls": [CALL]}),
                ("tool", "12", {}),
                ("function", "13", {}),
                RIGHT,
            ),
            "Say||12|13|Hi",
        ),
    ],
)
def test_known_fields_have_their_meaning(raw, expected):
    record = read(raw)
    assert isinstance(record, Record), record
    assert "|".join(message.content for message in record.messages) == expected
    roles = [m.role for m in record.messages if m.role != "tool"]
    assert roles.pop(0) == ("system" if expected.startswith("s|") else "user")
    assert roles[-1] == "assistant"
    assert Record.load(record.dump()) == record


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize("value", [0, False, 0.0, "false"])
def test_a_turn_without_weight_is_context(key, value):
    turns = [USER, ("assistant", "Ho", {key: value}), USER, ("assistant", "Hi", {key: 1})]
    record = read(exchange(*turns))
    assert [m.is_context for m in record.messages] == [False, True, False, False]
    assert Record.load(record.dump()) == record
    assert record.key() != read(exchange(USER, ("assistant", "Ho", {}), USER, RIGHT)).key()


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({}, 1),
        ({"weight": None}, 1),
        ({"weight": 0.5}, 0.5),
        ({"weight": "0.5"}, 0.5),
        ({"loss": 3}, 3),
        ({"train": "True"}, 1),
        ({"weight": 0.5, "loss": 0.5}, 0.25),
        ({"weight": 0.5, "train": True}, 0.5),
        ({"weight": 2, "train": False}, 0),
    ],
)
def test_the_weight_of_a_turn_is_the_product_of_its_keys(keys, weight):
    record = read(exchange(USER, ("assistant", "Ho", keys), USER, RIGHT))
    assert [m.weight for m in record.messages] == [1, weight, 1, 1]
    assert Record.load(record.dump()) == record
    assert record.num_weightless_turns == (weight == 0)
    # What is trained on is the same conversation.
    plain = read(exchange(USER, ("assistant", "Ho", {}), USER, RIGHT))
    assert (record.key() == plain.key()) == (weight != 0)


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize("value", [-1, -0.25, float("nan"), float("inf"), "-inf", 1e39, 10**400])
def test_a_weight_that_no_loss_can_have_stops_the_run(key, value):
    raw = exchange(USER, ("assistant", "Ho", {key: value}), USER, RIGHT)
    with pytest.raises(InputError, match=r"^some\.json, record 1: a turn has the weight "):
        read(raw)
    # A prompt is never trained on, so its weight makes no difference.
    assert isinstance(read(exchange(("user", "Say", {key: value}), RIGHT)), Record)


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "a", "completion": "b", "label": False},
        {"prompt": "a", "completion": "b", "label": "0"},
        {"prompt": [ASKED], "completion": [ANSWERED], "label": False},
        {"instruction": "a", "output": "b", "label": False},
        exchange(("user", "a", {}), ("assistant", "b", {}), label=False),
        {"conversations": shared_gpt("a", "b"), "label": "False"},
    ],
)
def test_a_response_labeled_false_is_negative(raw):
    record = read(raw)
    assert record.is_negative
    assert [(m.content, m.is_negative) for m in record.messages] == [("a", False), ("b", True)]
    assert Record.load(record.dump()) == record
    right = read({**raw, "label": True})
    assert not right.is_negative
    assert right.key() != record.key()


def test_only_what_follows_the_last_question_is_negative():
    turns = [("user", "a", {}), ("assistant", "b", {}), ("user", "c", {})]
    calls = [("assistant", "", {"tool_calls": [CALL]}), ("tool", "12", {})]
    record = read(exchange(*turns, *calls, ("assistant", "d", {"weight": 0.5}), label=False))
    shown = [(m.content, m.weight, m.is_negative) for m in record.messages if m.role == "assistant"]
    assert shown == [("b", 0, False), ("", 1, True), ("d", 0.5, True)]


@pytest.mark.parametrize(
    "raw",
    [
        exchange(("user", "a", {}), ("assistant", "b", {}), label=0),
        exchange(("user", "a", {}), ("assistant", "b", {}), label="negative"),
        {"question": "a", "answer": "b", "label": False},
        {"text": "b", "label": 0},
    ],
)
def test_the_class_of_a_text_is_no_feedback(raw):
    assert not read(raw).is_negative


TURNS, OTHER_TURNS = [ASKED, ANSWERED], [ASKED, {"role": "assistant", "content": "c"}]


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [ASKED], "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": TURNS[1:], "rejected": OTHER_TURNS[1:]},
        {"chosen": TURNS, "rejected": OTHER_TURNS},
        {"chosen": str(TURNS), "rejected": str(OTHER_TURNS)},
    ],
)
def test_the_rejected_response_is_a_negative_sample(raw):
    chosen, rejected = read_both(raw)
    assert [m.content for m in chosen.messages] == ["a", "b"]
    assert [m.content for m in rejected.messages] == ["a", "c"]
    assert (chosen.is_negative, rejected.is_negative) == (False, True)
    assert rejected.key() != chosen.key()


def test_a_rejected_response_that_is_the_chosen_one_is_refused():
    chosen, rejected = read_both({"prompt": "a", "chosen": "b", "rejected": " b "})
    assert isinstance(chosen, Record)
    assert rejected.reason == "`rejected` is the same as `chosen`"


def test_each_response_of_a_pair_is_judged_for_itself():
    chosen, rejected = read_both({"prompt": "a", "chosen": "b", "rejected": " "})
    assert isinstance(chosen, Record)
    assert rejected.reason == "empty response"
    chosen, rejected = read_both({"prompt": "a", "chosen": None, "rejected": "b"})
    assert chosen.reason == "field `chosen` is null"
    assert rejected.is_negative


CLOCK = {"name": "clock", "arguments": {"zone": "UTC"}}


@pytest.mark.parametrize("role", ["function_call", "Function_Call", "tool_call"])
@pytest.mark.parametrize(
    ("value", "number"),
    [
        (json.dumps(CLOCK), 1),
        (str(CLOCK), 1),
        (json.dumps([CLOCK, CLOCK]), 2),
        (json.dumps({"name": "clock", "arguments": '{"zone": "UTC"}'}), 1),
        (json.dumps({"type": "function", "function": CLOCK}), 1),
    ],
)
def test_the_text_of_a_call_turn_is_its_calls(role, value, number):
    pairs = [("human", "a"), (role, value), ("observation", "12"), ("gpt", "b")]
    turns = [{"from": role, "value": text} for role, text in pairs]
    record = read({"conversations": turns, "tools": json.dumps([TOOL])})
    assert [m.role for m in record.messages] == ["user", "assistant", "tool", "assistant"]
    assert [m.content for m in record.messages] == ["a", "", "12", "b"]
    called = {"type": "function", "function": CLOCK}
    assert record.messages[1].extra == {"tool_calls": [called] * number}


@pytest.mark.parametrize("call", [CLOCK, json.dumps(CLOCK), str(CLOCK)])
def test_a_legacy_function_call_is_a_tool_call(call):
    turns = [
        {"role": "user", "content": "a", "function_call": None},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "clock", "content": "12"},
        {"role": "assistant", "content": "b", "function_call": None},
    ]
    functions = [{"name": "clock", "parameters": {}}]
    record = read({"messages": turns, "functions": functions})
    assert record.messages[1].extra == {"tool_calls": [{"type": "function", "function": CLOCK}]}
    assert record.messages[2].extra == {"name": "clock"}
    assert record.tools == (TOOL,)


def test_tools_calls_and_reasoning_travel_along():
    call = {"role": "assistant", "content": None, "tool_calls": [CALL], "thinking": "Hm"}
    turns = [
        {"role": "user", "content": "Say"},
        call,
        {"role": "tool", "content": "12", "tool_call_id": "1", "name": None},
        {"role": "assistant", "content": "Hi"},
    ]
    record = read({"messages": turns, "tools": json.dumps([TOOL])})
    assert record.tools == (TOOL,)
    assert record.messages[1].extra == {
        "tool_calls": [{"id": "1", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}],
        "reasoning_content": "Hm",
    }
    assert record.messages[2].extra == {"tool_call_id": "1"}
    assert Record.load(record.dump()) == record
    assert record.key() != read({"messages": turns}).key()
    assert read({"messages": turns[:2]}).messages[-1].extra["reasoning_content"] == "Hm"
    assert read(exchange(USER, RIGHT, tools=[])).key() == read(exchange(USER, RIGHT)).key()


def test_a_message_without_more_is_dumped_as_role_and_content():
    assert Message("user", "a").dump() == {"role": "user", "content": "a"}
    for message in (Message("user", "a"), Message("assistant", "", True, {"tool_calls": [CALL]})):
        assert Message.load(message.dump()) == message


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (exchange(USER, ("assistant", "Hi", {"train": False})), "every response is marked"),
        (exchange(USER, ("assistant", [{"type": "image"}], {})), "not of type text: 'image'"),
        (exchange(USER, ("assistant", [3], {})), "field `content` is not text"),
        (exchange(USER, ("assistant", ["Hi", "Ho"], {})), "field `content` is not text"),
        (exchange(USER, ("assistant", [{"text": "Hi"}], {})), "not of type text: None"),
        (exchange(USER, ("assistant", [{"type": "text"}], {})), "no field `text`"),
        (exchange(("system", "s", {}), USER, RIGHT, system="t"), "the field `system` and a system"),
        (exchange(USER, RIGHT, tools="[x]"), "field `tools` is not JSON"),
        (exchange(USER, RIGHT, tools={"a": 1}), "field `tools` is not a list of objects"),
        (exchange(USER, ("assistant", "", {"tool_calls": [{}]})), "a tool call has no `name`"),
        (exchange(USER, ("assistant", "", {"tool_calls": [CALL]}), USER, RIGHT), "not alternate"),
        (exchange(USER, ("tool", "12", {}), RIGHT), "turns do not alternate"),
        (exchange(USER, RIGHT, tools=[{"name": "\ud800"}]), "not valid Unicode"),
        ({"conversations": shared_gpt("a", None)}, "field `value` is null"),
        ({"conversations": [*shared_gpt("a", "b"), *shared_gpt("c")]}, "do not alternate"),
        ({"messages": "[{]"}, "field `messages` is not a list of turns"),
        ({"messages": "[open('x')]"}, "field `messages` is not a list of turns"),
        (exchange(USER, ("assistant", "Ho", {"weight": "much"})), "`weight` is not a number"),
        (exchange(USER, ("assistant", "Ho", {"loss": [1]})), "`loss` is not a number"),
        (exchange(USER, ("function_call", "noon", {})), "field `value` is not JSON"),
        (exchange(USER, ("function_call", "[]", {})), "field `value` is not a list of objects"),
        (exchange(USER, ("function_call", "[3]", {})), "field `value` is not a list of objects"),
        (exchange(USER, ("function_call", "{}", {})), "a tool call has no `name`"),
        (exchange(USER, ("assistant", "", {"function_call": "x"})), "`function_call` is not JSON"),
        (exchange(USER, ("assistant", "", {"function_call": 3})), "`function_call` is not a list"),
        (
            exchange(USER, ("assistant", "", {"function_call": CLOCK, "tool_calls": [CALL]})),
            "both `tool_calls` and `function_call`",
        ),
        (
            exchange(USER, RIGHT, tools=[TOOL], functions=[{"name": "clock"}]),
            "both `tools` and `functions`",
        ),
        ({"prompt": "a", "completion": "b", "label": "good"}, "`label` is neither 0 nor 1"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "no field `prompt`"),
        ({"instruction": "a", "output": "b", "history": "x"}, "field `history` is not a list"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "not a list of pairs"),
        ({"instruction": "a", "output": "b", "history": [["x", 3]]}, "pairs of texts"),
        (
            exchange(USER, ("assistant", "Hi", {"thinking": "Hm"}), noise_spans=[[0, 1]]),
            "`noise_spans` of a record",
        ),
    ],
)
def test_a_known_field_that_cannot_be_used_is_named(raw, reason):
    rejected = read(raw)
    assert isinstance(rejected, Rejected)
    assert reason in str(rejected)


@pytest.mark.parametrize(
    "text", ["it's", 'say "it"', "a\nb\t\\d", "é\u2028😀", "[{'role': 'user'}]"]
)
def test_turns_as_python_writes_them_are_read(text):
    turns = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "weight": None},
    ]
    for given in (str(turns), f"\n {turns} ", json.dumps(turns)):
        for record in (read({"messages": given}), read({"conversations": given})):
            assert [m.content for m in record.messages] == [text, text]
        pair = {"prompt": str(turns[:1]), "completion": str(turns[1:])}
        assert [m.content for m in read(pair).messages] == [text, text]
        assert read({**pair, "completion": "b"}).messages[1].content == "b"
    history = str([["q", text]])
    record = read({"instruction": "a", "output": "b", "history": history})
    assert [m.content for m in record.messages] == ["q", text, "a", "b"]


def test_a_text_that_looks_like_a_list_stays_a_text():
    for text in ("[1, 2]", "['a']", "[{'a': 1}]", "[x]"):
        record = read({"prompt": text, "completion": text})
        assert [m.content for m in record.messages] == [text, text]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "[" + "-" * 100_000 + "1]",
        "[(" * 3000,
        "__import__('os')",
        "['\\d",
        "[nan]",
        "\0",
    ],
)
def test_text_that_holds_no_value_is_never_run(text, recwarn):
    with pytest.raises(ValueError, match="neither JSON nor a Python literal"):
        decoded(text)
    assert not recwarn.list


def test_a_needless_backslash_is_no_warning(recwarn):
    assert decoded(r"['\d']") == [r"\d"]
    assert decoded(r"['\d', None]".replace(r"\\", "\\")) == [r"\d", None]
    assert not recwarn.list
