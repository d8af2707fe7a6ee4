"""What a reader looks at is read; all else is listed."""

import json

import pytest

from forgetting.data.usage import TrackedFields, example_of, find_template_mark, renamed, tracked

RECORD = {
    "prompt": "q",
    "turns": [{"role": "user", "weight": 0}, {"role": "gpt", "weight": 1}, "odd"],
    "meta": {"id": 3, "lang": "en"},
    "empty": [],
    "none": None,
}


def unread(record):
    return list(record.unread())


def test_only_keys_that_hold_something_and_were_not_read_are_listed():
    record = TrackedFields(RECORD)
    assert [path for path, _ in unread(record)] == ["prompt", "turns", "meta"]
    assert record.get("prompt") == "q"
    assert "meta" in record
    assert record.get("missing", 7) == 7
    assert [turn["role"] for turn in record["turns"][:2]] == ["user", "gpt"]
    assert unread(record) == [
        ("turns[].weight", 0),
        ("turns[].weight", 1),
        ("meta", {"id": 3, "lang": "en"}),
    ]
    assert record["meta"]["id"] == 3
    assert unread(record)[-1] == ("meta.lang", "en")


@pytest.mark.parametrize("read", [dict, list, lambda r: {**r}, lambda r: r.copy(), json.dumps])
def test_going_over_all_keys_reads_them(read):
    record = TrackedFields({"a": 1, "b": "x"})
    read(record)
    assert unread(record) == []


def test_a_tracked_record_equals_the_raw_one_and_leaves_it_unchanged():
    record = TrackedFields(RECORD)
    assert record == RECORD
    assert record["turns"] == RECORD["turns"]
    assert type(RECORD["turns"][0]) is dict


def test_the_paths_of_a_tree_do_not_grow_with_its_depth():
    tree = {"text": "a", "rank": 0}
    for _ in range(5):
        tree = {"text": "a", "rank": 0, "replies": [tree]}
    record = node = TrackedFields(tree)
    while "replies" in node:
        node["text"]
        (node,) = node["replies"]
    node["text"]
    assert {path for path, _ in unread(record)} == {"rank", "replies[].rank"}


def test_renaming_moves_values_and_keeps_the_rest():
    raw = {"q": 1, "a": 2, "prompt": 3}
    assert renamed(raw, {}) is raw
    assert renamed(raw, {"question": "q"}) == {"question": 1, "a": 2, "prompt": 3}
    assert renamed(raw, {"prompt": "q", "q": "a"}) == {"prompt": 1, "q": 2}
    assert renamed(raw, {"x": "missing"}) == {**raw, "x": None}


def test_lists_as_json_text_are_decoded_and_tracked():
    record = tracked({"turns": '[{"role": "user", "weight": 0}]'}, {"messages": "turns"})
    assert record["messages"][0]["role"] == "user"
    assert unread(record) == [("messages[].weight", 0)]
    for text in ("[broken", "plain", "3", "{}"):
        assert tracked({"messages": text}, {})["messages"] == text
    assert tracked({"prompt": "[1]"}, {})["prompt"] == "[1]"


def test_examples_are_short_json():
    assert example_of({"a": [1, "é"]}) == '{"a": [1, "\\u00e9"]}'
    assert len(example_of("x" * 100)) == 60
    assert example_of(b"x") == "\"b'x'\""


def test_template_marks_are_found():
    assert find_template_mark("a [INST] <|im_start|>") == "[INST]"
    assert find_template_mark("a [inst] <im_start>") is None
