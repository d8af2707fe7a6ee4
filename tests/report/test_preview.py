"""What is learned can be told without colours, and nothing in the data can act on the terminal."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest
from rich.console import Console

from forgetting.data.alignment import Tokenization
from forgetting.data.records import Message, Record
from forgetting.data.sources import Origin
from forgetting.report.preview import (
    label_lines,
    rejection_lines,
    sample_texts,
    source_table,
    unused_key_lines,
)
from forgetting.rundir import layout
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, read_table, write_table
from forgetting.rundir.stats import DataSummary, SourceCounts, UnusedKey
from tests.conftest import byte_tokenizer

HOSTILE = "a [bold]b[/]\x1b[31m\u202ec</s>\x00"


@pytest.fixture
def run(tmp_path):
    """A run directory with two samples of D_train."""
    turns = [("user", HOSTILE), ("assistant", "one"), ("user", "more"), ("assistant", HOSTILE)]
    messages = tuple(Message(*turn) for turn in turns)
    records = [Record(messages, "s", Origin("s", 1)), Record(messages[:2], "s", Origin("s", 2))]
    tokens = Tokenization(byte_tokenizer()).encode_batch(records)
    table = Samples.from_lists([t.input_ids for t in tokens], [t.labels for t in tokens]).table
    data = layout.data_dir(tmp_path)
    data.mkdir()
    write_table(table, layout.train_file(tmp_path))
    source = SourceCounts(
        name="s[red]",
        used=2,
        tokens=1234,
        response_tokens=500,
        cut=1,
        read=9,
        rejected={"empty \x1bresponse": 3},
        duplicates=2,
        near_duplicates=1,
        prompt_too_long=1,
        weightless_turns=1200,
        negatives=1,
        unused_keys={"id": UnusedKey(1, "3"), "turns[].\x1b": UnusedKey(1200, '"[x]"')},
    )
    DataSummary(max_length=9, sources=[source], splits={}, end_token_ids=[]).save(data)
    return tmp_path


def printed(*renderables, **options):
    console = Console(file=io.StringIO(), width=100, **options)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()


def test_responses_and_special_tokens_are_marked_without_colours(run):
    text = printed(*sample_texts(run, byte_tokenizer(), 5, seed=0), no_color=True)
    shown = "a [bold]b[/]⟨U+001B⟩[31m⟨U+202E⟩c</s>⟨U+0000⟩"
    assert f"<|user|>\n{shown}\n<|assistant|>\n⟦one‹</s>›⟧\n" in text
    assert f"<|user|>\nmore\n<|assistant|>\n⟦{shown}‹</s>›⟧\n" in text.replace("\n‹", "‹")
    assert "\x1b" not in text


def test_a_sample_to_forget_is_named_as_one(run):
    path = layout.train_file(run)
    rows = [{**row, "is_negative": row["sample_id"] == 1} for row in read_table(path).to_pylist()]
    write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), path)
    headings = [str(text) for text in sample_texts(run, byte_tokenizer(), 5, seed=0)][::2]
    assert [heading.endswith(", to forget") for heading in headings] == [False, True]


def test_colours_tell_prompt_response_and_special_tokens_apart(run):
    texts = list(sample_texts(run, byte_tokenizer(), 2, seed=0))
    text = next(text for text in texts if "one" in text.plain)

    def style(part):
        at = text.plain.index(part)
        return {str(span.style) for span in text.spans if span.start <= at < span.end}

    styles = [style("<|user|>"), style("one"), style("</s>›")]
    assert [len(found) for found in styles] == [1, 1, 1]
    assert len(set.union(*styles)) == 3


def test_samples_are_drawn_with_the_seed(run):
    def shown(seed):
        return [str(text) for text in sample_texts(run, byte_tokenizer(), 1, seed)]

    assert shown(3) == shown(3)
    assert len({shown(seed)[0] for seed in range(8)}) == 2
    assert len(list(sample_texts(run, byte_tokenizer(), 9, seed=0))) == 2 * 2


def test_the_table_has_every_count_of_a_source(run):
    row = printed(source_table(run)).splitlines()[3].split()
    assert row == ["s[red]", "2", "1,234", "500", "1", "9", "3", "3", "1"]
    (line,) = rejection_lines(run)
    assert str(line) == "s[red]: 3 rejected, empty ⟨U+001B⟩response"


def test_unused_keys_are_listed_with_count_and_example(run):
    text = printed(*unused_key_lines(run), no_color=True)
    assert text.splitlines() == [
        's[red]: turns[].⟨U+001B⟩ not used, 1,200 times, such as "[x]"',
        "s[red]: id not used, 1 time, such as 3",
    ]


def test_what_the_data_says_about_responses_is_listed_if_it_says_something(run):
    assert [str(line) for line in label_lines(run)] == [
        "s[red]: 1,200 responses of weight 0, context only",
        "s[red]: 1 sample to forget",
    ]
