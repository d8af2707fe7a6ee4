"""Whatever a file holds, every record of it becomes samples, a listed rejection, or one clear
error that names the file; nothing ends in a traceback."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.config import MAX_RECORD_BYTES, DataSettings, SourceSettings
from forgetting.data.alignment import Tokenization
from forgetting.data.files import read_file
from forgetting.data.splits import SPLITS, build_corpus
from forgetting.errors import InputError
from forgetting.rundir.samples import IGNORE_INDEX, Samples, read_table
from tests.conftest import byte_tokenizer

TOKENIZER = byte_tokenizer()
HOSTILE_TEXTS = {
    "null": "a\x00b",
    "special": "</s><s><pad><|user|>\n<|assistant|>\n<|eot_id|>[INST]",
    "right to left": "a\u202egnp.exe\u2066\u2069\u200f",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "template": "{{ 7*7 }}{% for %}{# #}${x}%s%n",
    "markup": "[bold red]x[/] \x1b[2J\x1b]0;title\x07",
    "private use": "\ue0000\ue001\ue0001\ue001",
    "separators": "a\u2028b\u2029c\x85d\x0b\x0ce\r\nf\rg",
    "combining": "e" + "\u0301" * 500,
    "emoji": "👩\u200d👩\u200d👧\u200d👦🏳\ufe0f\u200d🌈",
    "noncharacter": "\ufffe\uffff\U0010ffff",
    "path": "../../../../etc/passwd",
    "formula": "=cmd|' /C calc'!A0",
}
UNUSABLE = {
    "high surrogate": ("\ud800", "text is not valid Unicode"),
    "low surrogate": ("a\udfffb", "text is not valid Unicode"),
    "empty": ("", "empty response"),
    "blank": (" \n\t\u00a0\u3000", "empty response"),
    "number": (3.5, "field `completion` is not text"),
    "nothing": (None, "field `completion` is null"),
    "list": (["a"], "field `completion` is not text"),
    "object": ({"a": "b"}, "field `completion` is not text"),
}
ORDINARY = [{"prompt": f"q{i}", "completion": f"r{i}"} for i in range(40)]


def build(
    folder, path, max_length=4000, max_rejected_share=0.2, max_record_bytes=MAX_RECORD_BYTES, **more
):
    """The account, samples and rejections of a corpus of three samples."""
    source = SourceSettings(path=str(path), name="hostile", **more)
    sizes = {"num_reference": 1, "num_train": 1, "num_heldout": 1}
    data = DataSettings(
        sources=[source],
        max_length=max_length,
        max_rejected_share=max_rejected_share,
        max_record_bytes=max_record_bytes,
        **sizes,
    )
    (folder / "output").mkdir(exist_ok=True)
    account = build_corpus(data, Tokenization(TOKENIZER), 0, folder / "output", folder)
    samples = {name: Samples.read(folder / f"output/{name}.parquet") for name in SPLITS}
    return account, samples, read_table(folder / "output/rejected.parquet").to_pylist()


def texts_of(samples):
    """The response of each sample, without the end of the sequence."""
    found = []
    for split in samples.values():
        for begin, end in zip(split.token_starts[:-1], split.token_starts[1:], strict=True):
            labels = split.labels[begin:end]
            ids = labels[labels != IGNORE_INDEX].tolist()
            assert ids[-1] == TOKENIZER.eos_token_id
            assert not set(ids[:-1]) & set(TOKENIZER.all_special_ids)
            found.append(TOKENIZER.decode(ids[:-1], clean_up_tokenization_spaces=False))
    return found


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_a_hostile_text_becomes_a_sample_with_exactly_this_text(tmp_path, name):
    text = HOSTILE_TEXTS[name]
    path = tmp_path / "a.jsonl"
    records = [{"prompt": f"{i} {text}", "completion": f"{i} {text}"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, records)))
    _, samples, rejected = build(tmp_path, path)
    assert not rejected
    assert set(texts_of(samples)) == {record["completion"] for record in records}


def test_a_line_of_a_megabyte_is_cut_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"prompt": str(i), "completion": "word " * 200_000} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, records)))
    account, samples, _ = build(tmp_path, path, max_length=256)
    assert account.of("hostile").cut == 3
    assert all(split.lengths.tolist() == [256] for split in samples.values())


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_text_is_listed_with_its_line(tmp_path, name):
    value, reason = UNUSABLE[name]
    path = tmp_path / "a.jsonl"
    records = [*ORDINARY[:7], {"prompt": "q", "completion": value}, *ORDINARY[7:]]
    path.write_text("\n".join(map(json.dumps, records)))
    account, _, rejected = build(tmp_path, path)
    assert rejected == [
        {
            "source": "hostile",
            "file": "a.jsonl",
            "record": 8,
            "line": 8,
            "reason": reason,
            "detail": "",
        }
    ]
    assert account.of("hostile").rejected == {reason: 1}


FIELDS = ["prompt", "completion", "messages", "conversations", "text", "role", "content", "replies"]
texts = st.sampled_from([*HOSTILE_TEXTS.values(), "\ud800", "", " ", "a"]) | st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=6,
)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "", "\udfff"])
turns = st.fixed_dictionaries({"role": roles, "content": texts | values})
records = (
    st.fixed_dictionaries({"prompt": texts, "completion": texts})
    | st.fixed_dictionaries({"messages": st.lists(turns | values, max_size=4)})
    | st.fixed_dictionaries({"text": texts | values})
    | values
)


def outcome(folder, path, form):
    """Builds; every record that was read must be accounted for. Whether it came to samples."""
    try:
        account, samples, rejected = build(folder, path, format=form, max_rejected_share=1.0)
    except InputError:
        return False
    counts = account.of("hostile")
    num_rejected = sum(counts.rejected.values())
    assert num_rejected == len(rejected)
    assert all(row["file"] == path.name and row["record"] <= counts.read for row in rejected)
    lost = num_rejected + counts.duplicates + counts.prompt_too_long
    assert counts.used == 3
    assert counts.read >= counts.used + lost
    assert len(texts_of(samples)) == 3
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples: they write over each other."""
    return tmp_path_factory.mktemp("hostile")


GOOD = {
    "auto": ORDINARY[:20],
    "prompt_completion": ORDINARY[:20],
    "text": [{"text": f"text {i}"} for i in range(20)],
    "messages": [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "gpt", "content": f"r{i}"}]}
        for i in range(20)
    ],
}


@pytest.mark.parametrize("form", GOOD)
def test_hostile_records_are_accounted_for(folder, form):
    reached = []

    @settings(max_examples=40, deadline=None)
    @given(st.lists(records, max_size=6))
    def check(hostile):
        path = folder / "hostile.jsonl"
        few = [*GOOD[form][:10], *hostile, *GOOD[form][10:]]
        path.write_text("".join(json.dumps(record) + "\n" for record in few))
        reached.append(outcome(folder, path, form))
        # Good records come first, so that there is a format, and all of the file is JSON.
        assert reached[-1]

    check()
    assert len(reached) >= 40


def good_files():
    """The same good records as bytes of every form."""
    table = pa.Table.from_pylist(ORDINARY)
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows(ORDINARY)
    return {
        "hostile.json": json.dumps(ORDINARY).encode(),
        "hostile.jsonl": "\n".join(map(json.dumps, ORDINARY)).encode(),
        "hostile.csv": text.getvalue().encode(),
        "hostile.tsv": text.getvalue().replace(",", "\t").encode(),
        "hostile.parquet": parquet.getvalue(),
        "hostile.arrow": arrow.getvalue(),
        "hostile.jsonl.gz": gzip.compress("\n".join(map(json.dumps, ORDINARY)).encode()),
    }


GOOD_FILES = good_files()


def damaged(content, data):
    """Bytes set, inserted, or cut off anywhere."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=5))
        else:
            content = content[: max(at, 1)]
    return content


def misspelled(content, data):
    """Letters and digits replaced by others: in values, in names of fields, in what is binary."""
    content = bytearray(content)
    places = [at for at, byte in enumerate(content) if chr(byte).isascii() and chr(byte).isalnum()]
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.sampled_from(places))] = ord(data.draw(st.sampled_from("aZ09")))
    return content


# How many of 40 files at least are read to their end, in which the accounts must agree. Most of
# what is damaged anywhere is an error; a misspelled text is not, unless it is the header.
@pytest.mark.parametrize(
    ("name", "damage", "at_least"),
    [
        *((name, damaged, 0) for name in GOOD_FILES),
        ("hostile.json", misspelled, 40),
        ("hostile.jsonl", misspelled, 40),
        ("hostile.jsonl.gz", misspelled, 40),
        ("hostile.csv", misspelled, 25),
        ("hostile.tsv", misspelled, 25),
        ("hostile.parquet", misspelled, 5),
        ("hostile.arrow", misspelled, 5),
    ],
)
def test_damaged_files_are_an_error_or_read(folder, name, damage, at_least):
    reached = []

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(data=st.data())
    def check(data):
        path = folder / name
        if damage is misspelled and name.endswith(".gz"):
            path.write_bytes(gzip.compress(damage(GOOD_FILES["hostile.jsonl"], data)))
        else:
            path.write_bytes(damage(GOOD_FILES[name], data))
        reached.append(outcome(folder, path, "prompt_completion"))

    check()
    assert sum(reached) >= at_least


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "nested", ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000]
)
def test_deep_nesting_is_an_error_with_its_line(tmp_path, name, nested):
    path = tmp_path / name
    lines = [*map(json.dumps, ORDINARY[:3]), nested]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"{name} is (nested too deeply|broken JSON).* line 4"):
        build(tmp_path, path)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_number_with_thousands_of_digits_is_named(tmp_path, ending):
    file = tmp_path / f"mine.{ending}"
    file.write_text('{"prompt": "a", "completion": "b", "n": ' + "9" * 5000 + "}\n")
    with pytest.raises(InputError, match=rf"mine.{ending} cannot be read .*line 1"):
        list(read_file(file))
