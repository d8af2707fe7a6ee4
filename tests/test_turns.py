"""Every known field of records and turns has its meaning, or the record is refused by name."""

from __future__ import annotations

import json

import pytest

from forgetting.config import SourceSettings
from forgetting.data.records import Record, Rejected, parse_record, recognise
from forgetting.data.sources import Origin
from forgetting.turns import Message

USER, RIGHT = ("user", "Say", {}), ("assistant", "Hi", {})
CALL = {"id": "1", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {}}}


def read(raw):
    source = SourceSettings(path="some.json")
    form = recognise(raw, source, "some.json")
    return parse_record(raw, form, source, Origin("some.json", 1))


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
        (exchange(USER, ("assistant", "Hi", {"weight": 0.5})), "`weight` is neither 0 nor 1: 0.5"),
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
        ({"prompt": "a", "completion": "b", "label": False}, "labeled false"),
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
