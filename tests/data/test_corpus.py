"""The corpus: nothing in two splits, nothing lost without a count."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.data.corpus import SPLITS, Account, Spool, build_corpus, read_records
from forgetting.data.samples import IGNORE_INDEX, Samples, read_table
from forgetting.data.tokens import Tokenization
from forgetting.errors import InputError
from forgetting.recipe import DataSettings, SourceSettings
from tests.conftest import byte_tokenizer

TOKENIZER = byte_tokenizer()


def raw(index, **more):
    return {"prompt": f"Question {index}?", "completion": f"Answer {index}.", **more}


def write(folder, records, name="records.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return SourceSettings(path=str(path))


@dataclass
class Built:
    """What `build_corpus` wrote and counted."""

    account: Account
    tables: dict[str, pa.Table]
    rejected: list[dict]

    @property
    def counts(self):
        return self.account.sources


def build(*sources, reference=4, train=6, heldout=2, seed=0, tokenizer=TOKENIZER, **more):
    data = DataSettings(
        sources=list(sources),
        num_reference=reference,
        num_train=train,
        num_heldout=heldout,
        **{"max_length": 128, **more},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "output").mkdir()
        account = build_corpus(data, Tokenization(tokenizer), seed, path / "output", path)
        assert [file.name for file in path.iterdir()] == ["output"]
        tables = {name: read_table(path / f"output/{name}.parquet") for name in SPLITS}
        rejected = read_table(path / "output/rejected.parquet").to_pylist()
    return Built(account, tables, rejected)


def prompts(table):
    """The text of each sample of a table."""
    return [TOKENIZER.decode(ids) for ids in table["input_ids"].to_pylist()]


def test_splits_have_the_sizes_asked_for_and_share_nothing(tmp_path):
    corpus = build(write(tmp_path, [raw(i) for i in range(15)]))
    texts = {name: prompts(table) for name, table in corpus.tables.items()}
    assert {name: len(split) for name, split in texts.items()} == {
        "reference": 4,
        "train": 6,
        "heldout": 2,
    }
    assert len({text for split in texts.values() for text in split}) == 12
    ids = [i for table in corpus.tables.values() for i in table["sample_id"].to_pylist()]
    assert len(set(ids)) == 12


spelling = st.tuples(st.integers(0, 7), st.sampled_from(["", " ", "\n", "  \t"]), st.booleans())


@settings(max_examples=30, deadline=None)
@given(st.lists(spelling, min_size=1, max_size=30))
def test_what_differs_in_spaces_or_unicode_form_only_is_one_record(tmp_path_factory, chosen):
    records = [
        {
            "prompt": ("Cafe\u0301" if decomposed else "Caf\u00e9") + f" {number}?{space}",
            "completion": f"yes,{space or ' '}indeed{space}",
        }
        for number, space, decomposed in chosen
    ]
    folder = tmp_path_factory.mktemp("data")
    data = DataSettings(sources=[write(folder, records)], num_reference=1, num_train=1)
    spool = Spool(folder / "spool")
    with Account(data, folder / "rejected.parquet") as account:
        read_records(data, 0, spool, account)
    distinct = len({number for number, _, _ in chosen})
    assert len(spool) == distinct
    assert sum(spool.copies) == len(chosen)
    (count,) = account.sources.values()
    assert (count.read, count.duplicates) == (len(chosen), len(chosen) - distinct)


def test_duplicates_are_found_across_sources(tmp_path):
    first = write(tmp_path, [raw(i) for i in range(8)], "a.jsonl")
    second = write(tmp_path, [raw(i) for i in range(4, 14)], "b.jsonl")
    corpus = build(first, second)
    assert {name: count.duplicates for name, count in corpus.counts.items()} == {"a": 0, "b": 4}
    assert {name: count.read for name, count in corpus.counts.items()} == {"a": 8, "b": 10}


def test_the_seed_decides_the_splits(tmp_path):
    source = write(tmp_path, [raw(i) for i in range(40)])
    fingerprints = [
        [Samples(table).fingerprint for table in build(source, seed=seed).tables.values()]
        for seed in (1, 1, 2)
    ]
    assert fingerprints[0] == fingerprints[1]
    assert all(a != b for a, b in zip(fingerprints[0], fingerprints[2], strict=True))


def test_sources_are_mixed(tmp_path):
    first = write(tmp_path, [raw(i) for i in range(50)], "a.jsonl")
    second = write(tmp_path, [raw(i) for i in range(50, 100)], "b.jsonl")
    corpus = build(first, second, reference=30, train=30, heldout=30)
    for table in corpus.tables.values():
        assert 5 < table["source"].to_pylist().count("a") < 25


def test_too_many_unusable_records_stop_with_the_first_of_them(tmp_path):
    records = [raw(i) for i in range(12)] + [{"prompt": "no answer"}, {"completion": ""}] * 3
    with pytest.raises(InputError) as caught:
        build(write(tmp_path, records))
    message = str(caught.value)
    assert "6 of the 18 records" in message
    assert "records.jsonl" in message
    assert "data.max_rejected_share (0.2)" in message


def test_a_few_unusable_records_are_listed_with_place_and_reason(tmp_path):
    records = [raw(i) for i in range(12)]
    records.insert(3, {"prompt": "no answer", "completion": ""})
    corpus = build(write(tmp_path, records))
    (row,) = corpus.rejected
    assert row == {
        "source": "records",
        "file": "records.jsonl",
        "record": 4,
        "line": 4,
        "reason": "empty response",
        "detail": "",
    }
    assert corpus.counts["records"].rejected == {row["reason"]: 1}


def test_a_prompt_that_leaves_no_room_is_left_out_and_counted(tmp_path):
    records = [raw(i) for i in range(12)] + [raw("long " * 40), raw("also " * 40)]
    corpus = build(write(tmp_path, records))
    texts = [text for table in corpus.tables.values() for text in prompts(table)]
    assert len(texts) == 12
    assert not any("long" in text for text in texts)
    (source,) = corpus.account.summary()["sources"]
    assert source["used"] == 12
    # Records after the last sample needed are never looked at, so at most both are counted.
    assert source["prompt_too_long"] <= 2
    with pytest.raises(InputError, match=r"only 12: 14 distinct .* of which 2 have a prompt"):
        build(write(tmp_path, records), train=7)


def test_a_response_that_is_too_long_is_cut_and_counted(tmp_path):
    records = [raw(i) | {"completion": "long " * 40} for i in range(12)]
    corpus = build(write(tmp_path, records))
    assert corpus.counts["records"].cut == 12
    for table in corpus.tables.values():
        assert {len(ids) for ids in table["input_ids"].to_pylist()} == {128}
        assert {labels[-1] != IGNORE_INDEX for labels in table["labels"].to_pylist()} == {True}


def test_asking_for_more_samples_than_there_are_says_how_many_there_are(tmp_path):
    records = [raw(i) for i in range(10)] + [raw(0), {"prompt": "?"}]
    with pytest.raises(InputError) as caught:
        build(write(tmp_path, records))
    message = str(caught.value)
    assert "asks for 12 samples (num_reference 4 + num_train 6 + num_heldout 2)" in message
    assert "only 10: 10 distinct usable records (1 rejected, 1 duplicates dropped)" in message


def test_counts_and_splits_add_up(tmp_path):
    records = [raw(i) for i in range(20)] + [raw(3), {"prompt": "?", "completion": ""}]
    corpus = build(write(tmp_path, records), reference=10, train=8)
    summary = corpus.account.summary()
    (source,) = summary["sources"]
    assert source["read"] == 22
    rejected = sum(source["rejected"].values())
    assert source["read"] == source["used"] + source["duplicates"] + rejected
    for name, table in corpus.tables.items():
        counted = summary["splits"][name]
        labels = np.concatenate([np.array(row) for row in table["labels"].to_pylist()])
        assert counted == {
            "samples": table.num_rows,
            "tokens": labels.size,
            "response_tokens": int((labels != IGNORE_INDEX).sum()),
        }


def test_held_out_samples_take_the_right_response_and_no_others_do(tmp_path):
    records = [
        {
            "prompt": f"Q{i}",
            "completion": "bad.",
            "clean_completion": "good.",
            "noise_spans": [[0, 3]],
        }
        for i in range(12)
    ]
    tables = build(write(tmp_path, records)).tables
    assert all(text.endswith("good.</s>") for text in prompts(tables["heldout"]))
    assert all(text.endswith("bad.</s>") for text in prompts(tables["train"]))
    assert Samples(tables["train"]).noise().sum() == 6 * 3
    assert Samples(tables["heldout"]).noise().sum() == 0
