"""Counts over the samples on disk, against loops over the same samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgetting.errors import InputError
from forgetting.report import counts
from forgetting.report.counts import Share, count_lengths, count_negatives
from forgetting.rundir import layout
from forgetting.rundir import selections as selection_module
from forgetting.rundir.samples import Samples, write_table
from forgetting.rundir.selections import PolarityWriter
from tests.written_run import write_run

Decode = Callable[[Sequence[int]], str]


def write_small(run_dir: Path, responses: list[list[int]], polarity: list[list[int]]) -> Path:
    """A run of one variant, with a prompt of one token before each response."""
    selection = layout.selection_dir(run_dir, "own")
    for folder in (layout.data_dir(run_dir), selection):
        folder.mkdir(parents=True)
    ids = list(range(len(responses)))
    table = {
        "sample_id": pa.array(ids, pa.int64()),
        "source": ["a"] * len(ids),
        "input_ids": pa.array([[63, *row] for row in responses], pa.list_(pa.int32())),
        "labels": pa.array([[-100, *row] for row in responses], pa.list_(pa.int32())),
        "is_negative": pa.nulls(len(ids), pa.bool_()),
    }
    samples = Samples(pa.table(table))
    write_table(samples.table, layout.train_file(run_dir))
    starts = np.r_[0, np.cumsum([len(row) for row in polarity])]
    with PolarityWriter(layout.polarity_file(selection), samples.fingerprint) as writer:
        writer.write(samples.sample_ids, np.concatenate(polarity).astype(np.int8), starts)
    return run_dir


def test_types_of_tokens_by_hand(tmp_path: Path, decode: Decode) -> None:
    """Bytes are ids below 256; 256 is " the", 261 a line break, 262 two spaces, 265 the end."""
    response = [*b"7na", *"ï".encode(), *b"ve.", 256, *b"n, x9", 261, 262, *b"a", 265]
    types = [
        "number",  # 7
        *["inside a word"] * 2,  # letters that follow a number go on with its word
        *["part of a character"] * 2,
        *["inside a word"] * 2,  # ve
        "punctuation",
        "start of a word",  # " the"
        "inside a word",  # n
        "punctuation",
        "white space",
        "start of a word",  # x
        "number",
        *["white space"] * 2,
        "start of a word",  # a, after white space
        "special",
    ]
    polarity = np.random.default_rng(0).choice([-1, 0, 1], len(response))
    run = write_small(tmp_path / "run", [response], [polarity.tolist()])
    found = count_negatives(run, "own", decode, special_ids={265})
    assert found is not None
    total = Counter(types)
    negative = Counter(kind for kind, p in zip(types, polarity, strict=True) if p < 0)
    assert found.by_type == {kind: Share(total[kind], negative[kind]) for kind in total}
    assert list(found.by_type) == [kind for kind in counts.TOKEN_TYPES if kind in total]


def test_the_space_before_a_word_is_seen_where_a_first_token_hides_it(tmp_path: Path) -> None:
    """As tokenizers of the SentencePiece kind decode."""
    words = {3: " red", 4: "s"}

    def decode(ids: Sequence[int]) -> str:
        return "".join(words.get(i, "?") for i in ids).removeprefix(" ")

    run = write_small(tmp_path / "run", [[3, 4, 3]], [[-1, -1, 1]])
    found = count_negatives(run, "own", decode)
    assert found is not None
    assert found.by_type == {"start of a word": Share(2, 1), "inside a word": Share(1, 1)}
    assert [(t.text, t.count) for t in found.most_frequent] == [
        (" red", Share(2, 1)),
        ("s", Share(1, 1)),
    ]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More samples than are in memory at a time."""
    return write_run(tmp_path_factory.mktemp("counts") / "run", num_samples=1100)


def read_lists(path: Path, name: str) -> list[Any]:
    return pq.read_table(path)[name].to_pylist()


def test_most_frequent_negatives_as_a_loop_finds_them(long_run: Path, decode: Decode) -> None:
    labels = read_lists(long_run / "data" / "train.parquet", "labels")
    responses = [[i for i in row if i != -100] for row in labels]
    total = Counter(i for row in responses for i in row)
    for variant in ("ignoring", "forgetting"):
        negatives = count_negatives(long_run, variant, decode, {265})
        assert negatives is not None
        polarity = read_lists(long_run / "selection" / variant / "polarity.parquet", "polarity")
        negative = Counter(
            i
            for row, chosen in zip(responses, polarity, strict=True)
            for i, p in zip(row, chosen, strict=True)
            if p < 0
        )
        wanted = sorted(negative, key=lambda i: (-negative[i], i))[: counts.NUM_TOKENS_SHOWN]
        assert [t.token_id for t in negatives.most_frequent] == wanted
        for token in negatives.most_frequent:
            assert token.count == Share(total[token.token_id], negative[token.token_id])
        assert sum(share.num_tokens for share in negatives.by_type.values()) == total.total()
        assert sum(share.num_negative for share in negatives.by_type.values()) == negative.total()


def test_lengths_and_sources_as_a_loop_finds_them(long_run: Path) -> None:
    table = pq.read_table(long_run / "data" / "train.parquet").to_pylist()
    train = next(split for split in count_lengths(long_run) if split.name == "train")
    assert train.lengths.tolist() == [len(row["input_ids"]) for row in table]
    response_lengths = [sum(label != -100 for label in row["labels"]) for row in table]
    assert train.response_lengths.tolist() == response_lengths
    for source, found in train.by_source.items():
        own = [place for place, row in enumerate(table) if row["source"] == source]
        assert found.num_samples == len(own)
        assert found.num_tokens == sum(len(table[place]["input_ids"]) for place in own)
        assert found.num_response_tokens == sum(response_lengths[place] for place in own)


def test_a_thousand_samples_are_in_memory_at_a_time(
    long_run: Path, decode: Decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def spy(table: pa.Table) -> Samples:
        sizes.append(table.num_rows)
        return Samples(table)

    monkeypatch.setattr(counts, "Samples", spy)
    monkeypatch.setattr(selection_module, "Samples", spy)
    count_lengths(long_run)
    count_negatives(long_run, "forgetting", decode)
    assert sum(sizes) == 4 * 1100
    assert max(sizes) <= 1000


def test_polarity_of_other_tokens_is_refused(tmp_path: Path, decode: Decode) -> None:
    run = write_small(tmp_path / "run", [[65, 66], [67, 68]], [[1, 1], [1]])
    with pytest.raises(InputError, match="one polarity for each response token"):
        count_negatives(run, "own", decode)
    other = write_small(tmp_path / "other", [[65, 66]], [[1, 1]])
    polarity = Path("selection/own/polarity.parquet")
    (run / polarity).write_bytes((other / polarity).read_bytes())
    with pytest.raises(InputError, match="other tokens"):
        count_negatives(run, "own", decode)
    assert count_negatives(run, "not yet", decode) is None
