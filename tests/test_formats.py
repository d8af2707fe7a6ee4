"""Formats that users register; those of the package are tested with `data.records`."""

from __future__ import annotations

import pytest

from forgetting.config import SourceSettings
from forgetting.data.records import Record, Rejected, parse_record, recognise
from forgetting.data.sources import Origin
from forgetting.formats import FORMATS, Message, Unusable, register_format

pytestmark = pytest.mark.usefixtures("registries")
ORIGIN = Origin("some.json", 1, 3)
ASK = {"ask": "Say", "reply": "Hi"}


def read_ask(record):
    return [Message("user", record["ask"]), Message("assistant", record["reply"])]


def parse(raw, form="auto", **settings):
    source = SourceSettings(path="some.json", format=form, **settings)
    return parse_record(raw, recognise(raw, source, "some.json"), source, ORIGIN)


def test_a_registered_format_is_recognized_by_its_fields_and_read():
    register_format("ask", read_ask, needs=("ask", ("reply", "answer")))
    record = parse(ASK)
    assert isinstance(record, Record)
    assert [(m.role, m.content) for m in record.messages] == [("user", "Say"), ("assistant", "Hi")]
    assert FORMATS["ask"].formula == "ask, reply or answer"
    assert FORMATS["ask"].fits({"ask": 1, "answer": 2})
    assert not FORMATS["ask"].fits({"ask": 1})


def test_built_in_formats_are_tried_first_and_a_name_overrides_that():
    register_format("ask", read_ask, needs=("ask",))
    both = {**ASK, "prompt": "Other", "completion": "Ho"}
    assert parse(both).messages[0].content == "Other"
    assert parse(both, "ask").messages[0].content == "Say"


def test_fields_are_renamed_before_a_registered_format_reads_them():
    register_format("ask", read_ask, needs=("ask",))
    record = parse({"q": "Say", "reply": "Hi"}, fields={"ask": "q"})
    assert record.messages[0].content == "Say"


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda record: read_ask({}), "the format mine raises KeyError: \"'ask'\""),
        (lambda record: 1 / 0, "the format mine raises ZeroDivisionError: 'division by zero'"),
        (lambda record: None, "the format mine raises TypeError"),
        (lambda record: ["Hi"], "something other than messages"),
        (lambda record: [Message("user", 3)], "something other than messages"),
        (lambda record: [Message("bot", "Hi")], "unknown role: 'bot'"),
        (lambda record: [], "turns do not alternate"),
        (lambda record: [Message("user", "Say")], "turns do not alternate"),
        (lambda record: [Message("user", "Say"), Message("assistant", " ")], "empty response"),
    ],
)
def test_a_record_that_a_registered_format_cannot_read_is_rejected(read, reason):
    register_format("mine", read, needs=("ask",))
    rejected = parse(ASK)
    assert isinstance(rejected, Rejected)
    assert reason in str(rejected)


def test_a_reader_may_say_itself_why_a_record_is_rejected():
    def read(record):
        raise Unusable("no reply yet", "x")

    register_format("mine", read, needs=("ask",))
    assert parse(ASK).reason == "no reply yet"


def test_a_format_needs_a_field():
    with pytest.raises(ValueError, match="at least one field"):
        register_format("mine", read_ask, needs=())
