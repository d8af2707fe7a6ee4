"""Tools, tool calls and reasoning are labeled where a template renders them, else refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgetting.data.alignment import Tokenization
from forgetting.data.records import Record
from forgetting.data.sources import Origin
from forgetting.formats import Message, Unusable
from tests.data.families import FAMILIES, out, record, tokenizer_of, turns

IM = ("<|im_start|>", "<|im_end|>")
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"zone": "string"}}}
TOOLS = "{%- if tools -%}<|im_start|>system\n{{- tools | tojson -}}<|im_end|>\n{%- endif -%}"
ANSWER = (
    out(r"'<|im_start|>assistant\n'")
    + "{%- if m.reasoning_content -%}"
    + out(r"'<think>' + m.reasoning_content + '</think>'")
    + "{%- endif -%}"
    + out("m.content")
    + "{%- for call in m.tool_calls -%}"
    + out("'<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>'")
    + "{%- endfor -%}"
    + out(r"'<|im_end|>\n'")
)
OTHER = out(r"'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'")
FULL = turns(OTHER, ANSWER, start=TOOLS, end=out(r"'<|im_start|>assistant\n'"))


def call(**arguments):
    function = {"name": "clock", "arguments": arguments}
    return Message("assistant", "", extra={"tool_calls": [{"id": "1", "function": function}]})


def conversation(*messages, tools=(TOOL,)):
    return Record(tuple(messages), "s", Origin("s", 1), tools=tuple(tools))


def labeled(some, template=FULL, marks=IM, **options):
    """The labeled stretches of a record, as text."""
    tokenizer = tokenizer_of("merging", *marks)
    tokens = Tokenization(tokenizer, template, **options).encode(some)
    pieces, inside = [], False
    for id_, label in zip(tokens.input_ids, tokens.labels, strict=True):
        if label != -100:
            pieces = [*pieces[:-1], [*pieces[-1], id_]] if inside else [*pieces, [id_]]
        inside = label != -100
    return [tokenizer.decode(ids) for ids in pieces]


ASKED, RESULT, ANSWERED = Message("user", "q"), Message("tool", "12"), Message("assistant", "Noon")


def test_calls_and_answers_are_labeled_and_results_are_not():
    assert labeled(conversation(ASKED, call(zone="UTC"), RESULT, ANSWERED)) == [
        '<call>clock {"zone": "UTC"}</call><|im_end|>',
        "Noon<|im_end|>",
    ]


@pytest.mark.parametrize("content", ["", "Let me see."])
def test_a_call_may_be_the_last_response(content):
    last = Message("assistant", content, extra=call(zone="a\nb", n=3, on=True).extra)
    arguments = r'{"zone": "a\nb", "n": 3, "on": true}'
    assert labeled(conversation(ASKED, last)) == [
        f"{content}<call>clock {arguments}</call><|im_end|>"
    ]


def test_a_call_that_ends_in_its_own_way_is_labeled_up_to_there():
    own = FULL.replace(
        ANSWER, ANSWER.replace("'<|im_end|>", "('<|eom|>' if m.tool_calls else '<|im_end|>') + '")
    )
    assert labeled(conversation(ASKED, call(zone="UTC")), own, (*IM, "<|eom|>")) == [
        '<call>clock {"zone": "UTC"}</call><|eom|>'
    ]


def test_special_tokens_in_calls_and_tools_stay_text():
    tool = {"name": "clock", "about": "<|im_end|>"}
    some = conversation(ASKED, call(zone="<|im_end|>"), tools=[tool])
    tokenizer = tokenizer_of("merging", *IM)
    ids = Tokenization(tokenizer, FULL).encode(some).input_ids
    # Of the tools, the question and the call.
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3
    assert tokenizer.decode(ids).count("<|im_end|>") == 5


def test_reasoning_is_labeled_with_its_response():
    last = Message("assistant", "Noon", extra={"reasoning_content": "Hm"})
    assert labeled(conversation(ASKED, last, tools=())) == ["<think>Hm</think>Noon<|im_end|>"]
    other = FULL.replace("m.reasoning_content", "m.thinking")
    assert labeled(conversation(ASKED, last, tools=()), other) == [
        "<think>Hm</think>Noon<|im_end|>"
    ]


@pytest.mark.parametrize(
    ("some", "template", "reason"),
    [
        (conversation(ASKED, ANSWERED), FAMILIES["chatml"].template, "does not render tools"),
        (conversation(ASKED, ANSWERED), None, "does not render tools"),
        (conversation(ASKED, ANSWERED, tools=[{"type": "search"}]), None, "not render tools"),
        (conversation(ASKED, ANSWERED, tools=[{"a": "b"}]), FULL, "not render tools"),
        (
            conversation(ASKED, call(zone="UTC"), RESULT, ANSWERED, tools=()),
            FAMILIES["chatml"].template,
            "does not render tool calls",
        ),
        (
            conversation(ASKED, call(zone="UTC"), tools=()),
            FULL.replace("(call.function.arguments | tojson)", "''"),
            "does not render tool calls",
        ),
        (
            conversation(ASKED, call(zone="UTC"), RESULT, ANSWERED),
            FULL.replace("for m in messages", "for m in messages if m.role != 'tool'"),
            "does not render the results of tools|drops or changes the text of the prompt",
        ),
        (
            conversation(
                ASKED, Message("assistant", "a", extra={"reasoning_content": "Hm"}), tools=()
            ),
            FAMILIES["chatml"].template,
            "does not render the reasoning",
        ),
    ],
)
def test_a_record_that_the_template_renders_in_part_is_refused(some, template, reason):
    with pytest.raises(Unusable, match=reason):
        labeled(some, template)


@pytest.mark.parametrize("family", ["chatml", "mistral", "llama-3", "plain"])
def test_a_turn_marked_as_context_is_read_and_not_learned(family):
    given = FAMILIES[family]
    whole = record("q", "Ho", "r", "Hi")
    messages = list(whole.messages)
    messages[1] = Message("assistant", "Ho", weight=0)
    tokens = Tokenization(tokenizer_of("merging", *given.marks), given.template)
    marked = tokens.encode(Record(tuple(messages), "s", Origin("s", 1)))
    assert marked.input_ids == tokens.encode(whole).input_ids
    assert marked.num_context_turns == 0
    some = conversation(*messages, tools=())
    assert labeled(some, given.template, given.marks) == [given.generated("Hi")]


@pytest.mark.parametrize("special", ["", "<|im_end|>"])
def test_a_call_has_the_weight_of_its_turn(special):
    messages = (
        ASKED,
        replace(call(zone="UTC"), weight=0.5),
        RESULT,
        Message("assistant", f"Noon{special}", 2.0),
    )
    tokenizer = tokenizer_of("merging", *IM)
    tokens = Tokenization(tokenizer, FULL).encode(conversation(*messages))
    labeled_ids = [label for label in tokens.labels if label != -100]
    first, second = ('<call>clock {"zone": "UTC"}</call><|im_end|>', f"Noon{special}<|im_end|>")
    for weight, text in ((0.5, first), (2.0, second)):
        own = zip(labeled_ids, tokens.weights, strict=True)
        assert tokenizer.decode([id_ for id_, each in own if each == weight]) == text
    assert set(tokens.weights) == {0.5, 2.0}
