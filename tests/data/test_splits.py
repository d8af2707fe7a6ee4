"""The corpus: nothing in two splits, nothing lost without a count."""

import csv
import json
import logging
import re
import sys
import tempfile
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.config import DataSettings, SourceSettings
from forgetting.data.account import Account
from forgetting.data.alignment import Tokenization
from forgetting.data.reading import read_records
from forgetting.data.splits import SPLITS, build_corpus
from forgetting.data.spool import Spool
from forgetting.errors import InputError, TooFewSamples
from forgetting.rundir.samples import IGNORE_INDEX, Samples, read_table
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


def build(
    *sources,
    reference=4,
    train=6,
    heldout=2,
    seed=0,
    tokenizer=TOKENIZER,
    trusted=(),
    forgets=True,
    **more,
):
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
        account = build_corpus(
            data,
            Tokenization(tokenizer),
            seed,
            path / "output",
            path,
            trusted=trusted,
            forgets=forgets,
        )
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


def counted(table):
    """Samples of each source in a table."""
    return dict(Counter(table["source"].to_pylist()))


def test_every_split_holds_every_source_in_the_same_proportion(tmp_path):
    first = write(tmp_path, [raw(i) for i in range(90)], "a.jsonl")
    second = write(tmp_path, [raw(i) for i in range(100, 130)], "b.jsonl")
    tables = build(first, second, reference=20, train=40, heldout=8).tables
    assert {name: counted(table) for name, table in tables.items()} == {
        "reference": {"a": 15, "b": 5},
        "train": {"a": 30, "b": 10},
        "heldout": {"a": 6, "b": 2},
    }


def test_a_source_gives_the_count_or_share_that_is_asked_of_it(tmp_path):
    sources = [
        write(tmp_path, [raw(f"{name}{i}") for i in range(40)], f"{name}.jsonl") for name in "abc"
    ]
    asked = [
        sources[0].model_copy(update={"num_samples": 6}),
        sources[1].model_copy(update={"share": 0.5}),
        sources[2],
    ]
    corpus = build(*asked, reference=10, train=20, heldout=10)
    assert {name: count.used for name, count in corpus.counts.items()} == {"a": 6, "b": 20, "c": 14}
    # Drawn with the seed, not from the start.
    again = build(*asked, reference=10, train=20, heldout=10)
    other = build(*asked, reference=10, train=20, heldout=10, seed=1)
    assert corpus.tables == again.tables
    assert corpus.tables["train"] != other.tables["train"]
    with pytest.raises(InputError, match=r"asks for 60 samples of source b \(share\).* only 40"):
        build(asked[1].model_copy(update={"share": 1.0}), reference=50, train=5, heldout=5)


def test_a_source_that_runs_short_is_replaced_or_an_error(tmp_path):
    records = [raw(i) for i in range(5)] + [raw("long " * i) for i in range(40, 45)]
    first = write(tmp_path, records, "a.jsonl")
    second = write(tmp_path, [raw(f"b{i}") for i in range(20)], "b.jsonl")
    corpus = build(first, second, reference=10, train=10, heldout=2)
    assert {name: count.used for name, count in corpus.counts.items()} == {"a": 5, "b": 17}
    assert corpus.counts["a"].prompt_too_long == 5
    fixed = first.model_copy(update={"num_samples": 8})
    with pytest.raises(InputError, match=r"8 samples of source a \(num_samples\), .* only 5"):
        build(fixed, second, reference=10, train=10, heldout=2)


def test_the_reference_may_hold_repeats_and_samples_of_the_training_split(tmp_path):
    source = write(tmp_path, [raw(i) for i in range(40)] + [raw(i) for i in range(20)] * 4)
    sizes = {"reference": 20, "train": 16, "heldout": 4}
    plain = build(source, **sizes)
    study = build(source, **sizes, duplicates_in_reference=True)
    # All else stays as it is.
    assert study.tables["train"] == plain.tables["train"]
    assert study.tables["heldout"] == plain.tables["heldout"]
    reference = prompts(study.tables["reference"])
    assert len(reference) == 20
    assert len(set(reference)) < 20
    assert set(reference) & set(prompts(study.tables["train"]))
    assert not set(reference) & set(prompts(study.tables["heldout"]))
    used = study.counts["records"].used
    assert used == sum(table.num_rows for table in study.tables.values())


def test_a_trusted_reference_shares_no_content_with_the_other_splits(tmp_path):
    source = write(tmp_path, [raw(i) for i in range(8)])
    # The same content in other white space, what is new, and what cannot be used.
    respelled = [{k: f" {v}\n" for k, v in raw(i).items()} for i in range(4)]
    records = [*respelled, *[raw(i) for i in range(20, 24)], {"prompt": "?", "completion": ""}]
    trusted = write(tmp_path, records, "clean.jsonl")
    corpus = build(source, reference=8, train=6, heldout=2, trusted=[trusted])
    assert {name: counted(table) for name, table in corpus.tables.items()} == {
        "reference": {"clean": 4},
        "train": {"records": 6},
        "heldout": {"records": 2},
    }
    clean = corpus.counts["clean (trusted)"]
    assert (clean.read, clean.duplicates, clean.used) == (9, 4, 4)
    assert [row["source"] for row in corpus.rejected] == ["clean"]
    assert corpus.account.summary([]).splits["reference"].samples == 4
    with pytest.raises(InputError, match=r"reference\.sources: all samples are in the corpus"):
        build(source, reference=8, train=6, heldout=2, trusted=[source])
    counted_out = source.model_copy(update={"num_samples": 10})
    with pytest.raises(InputError, match="come to 10 samples, more than the 8"):
        build(counted_out, reference=2, train=6, heldout=2, trusted=[trusted])


def test_a_right_response_that_another_record_gives_is_a_repeat(tmp_path):
    noisy = {
        "prompt": "Q",
        "completion": "bad",
        "clean_completion": "good",
        "noise_spans": [[0, 3]],
    }
    clean = {"prompt": "Q", "completion": " good"}
    for records in ([noisy, clean], [clean, noisy]):
        corpus = build(write(tmp_path, [*records, *[raw(i) for i in range(12)]]))
        assert corpus.counts["records"].duplicates == 1


def test_near_repeats_are_dropped_where_asked(tmp_path):
    text = (
        "the quick brown fox jumps over the lazy dog and runs far away into the dark green forest"
    )
    words = text.split()
    records = [
        {"prompt": text, "completion": "Yes, it does all of that every day."},
        {"prompt": text.upper() + "!", "completion": "Yes, it does all of that every day"},
        {"prompt": " ".join(words[::-1]), "completion": "Yes, it does all of that every day."},
        *[raw(f"{'x' * i} is number {i} of those that are not alike") for i in range(12)],
    ]
    source = write(tmp_path, records)
    exact = build(source).counts["records"]
    near = build(source, duplicates="near").counts["records"]
    assert (exact.duplicates, exact.near_duplicates) == (0, 0)
    assert (near.duplicates, near.near_duplicates) == (0, 1)
    again = write(tmp_path, [*records, records[0]])
    assert build(again, duplicates="near").counts["records"].duplicates == 1


def test_near_repeats_without_the_package_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(InputError, match=r"pip install 'forgetting\[near\]'"):
        build(write(tmp_path, [raw(i) for i in range(12)]), duplicates="near")


def test_records_that_the_template_cannot_render_are_rejected(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}</s>{% endfor %}"
    )
    system = {"role": "system", "content": "be"}
    turns = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}."}]
        for i in range(12)
    ]
    records = [{"messages": pair} for pair in turns]
    one = write(tmp_path, [{"messages": [system, *turns[0]]}, *records])
    corpus = build(one, tokenizer=tokenizer, seed=3)
    (row,) = corpus.rejected
    assert (row["reason"], row["detail"]) == (
        "the chat template has no system role. Set model.system_role: fold",
        "no system",
    )
    assert row["line"] == 1
    assert corpus.counts["records"].rejected == {row["reason"]: 1}
    many = write(tmp_path, [{"messages": [system, *pair]} for pair in turns])
    with pytest.raises(InputError, match=r"12 of the 12 records .*\n.* fold: no system"):
        build(many, tokenizer=tokenizer)


def test_usable_records_do_not_wait_in_memory(tmp_path):
    record = raw("?") | {"completion": "x" * 10_000}
    source = write(tmp_path, [record | {"prompt": str(i)} for i in range(2000)])
    data = DataSettings(sources=[source], num_reference=1, num_train=1)
    spool = Spool(tmp_path / "spool")
    with Account(data, tmp_path / "rejected.parquet") as account:
        tracemalloc.start()
        read_records(data, 0, spool, account)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "spool").stat().st_size > 20e6
    assert peak < 2e6
    assert spool[1999].messages[0].content == "1999"


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
    (source,) = corpus.account.summary([]).model_dump()["sources"]
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
    summary = corpus.account.summary([]).model_dump()
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
            "weighted_tokens": 0,
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


def test_keys_that_no_reader_uses_are_counted_with_an_example(tmp_path):
    turns = [
        {"role": "user", "content": "q", "name": "Ann"},
        {"role": "assistant", "content": "r", "score": 0},
    ]
    records = [
        {"messages": [{**turns[0], "content": f"q{i}"}, {**turns[1]}], "id": i, "tools": []}
        for i in range(12)
    ]
    del records[0]["messages"][1]["score"]
    corpus = build(write(tmp_path, records))
    found = corpus.counts["records"].unused_keys
    assert {path: (key.count, key.example) for path, key in found.items()} == {
        "messages[].name": (12, '"Ann"'),
        "messages[].score": (11, "0"),
        "id": (12, "0"),
    }
    (source,) = json.loads(corpus.account.summary([]).model_dump_json())["sources"]
    assert source["unused_keys"]["messages[].score"] == {"count": 11, "example": "0"}


def negatives(table):
    """Numbers of the questions whose answers are to forget."""
    rows = zip(prompts(table), table["is_negative"].to_pylist(), strict=True)
    return [int(re.search(r"Question (\d+)", text)[1]) for text, is_negative in rows if is_negative]


@pytest.mark.parametrize("every", [2, 3, 12])
@pytest.mark.parametrize("reference", [0, 6])
def test_responses_to_forget_are_only_in_d_train(tmp_path, every, reference):
    """Each record is used, so all of them are there."""
    records = [raw(i, label=i % every > 0) for i in range(24)]
    corpus = build(write(tmp_path, records), reference=reference, train=20 - reference, heldout=4)
    expected = list(range(0, 24, every))
    assert sorted(negatives(corpus.tables["train"])) == expected
    for name in ("reference", "heldout"):
        assert negatives(corpus.tables[name]) == []
    count = corpus.counts["records"]
    assert (count.negatives, count.rejected, count.unused_keys) == (len(expected), {}, {})
    ids = [i for table in corpus.tables.values() for i in table["sample_id"].to_pylist()]
    assert sorted(ids) == list(range(24))


def test_d_train_has_its_share_of_responses_to_forget(tmp_path):
    records = [raw(i, label=i % 4 > 0) for i in range(800)]
    corpus = build(write(tmp_path, records), reference=200, train=200, heldout=50)
    assert 30 <= len(negatives(corpus.tables["train"])) <= 70


@pytest.mark.parametrize("quota", [{}, {"num_samples": 8}, {"share": 0.25}])
def test_a_source_of_responses_to_forget_gives_to_d_train_alone(tmp_path, quota):
    right = write(tmp_path, [raw(i) for i in range(24)], "right.jsonl")
    wrong = write(tmp_path, [raw(i, label=False) for i in range(50, 58)], "wrong.jsonl")
    wrong = wrong.model_copy(update=quota)
    corpus = build(right, wrong, reference=12, train=16, heldout=4)
    assert sorted(negatives(corpus.tables["train"])) == list(range(50, 58))
    assert {name: table.num_rows for name, table in corpus.tables.items()} == {
        "reference": 12,
        "train": 16,
        "heldout": 4,
    }


def test_too_few_responses_to_learn_for_the_other_splits_are_named(tmp_path):
    records = [raw(i, label=i > 20) for i in range(24)]
    with pytest.raises(InputError, match=r"need 6 responses to learn .* only 3 usable records"):
        build(write(tmp_path, records), train=18)


def test_responses_to_forget_are_refused_where_no_variant_forgets(tmp_path):
    records = [raw(i, label=i != 5) for i in range(24)]
    with pytest.raises(InputError, match=r"^records.jsonl, record 6 \(line 6\): .*no variant"):
        build(write(tmp_path, records), forgets=False)
    assert build(write(tmp_path, records[:5] + records[6:]), forgets=False)


def test_trusted_responses_to_forget_are_left_out_and_are_no_fault_of_the_data(tmp_path):
    own = write(tmp_path, [raw(i) for i in range(8)])
    trusted = write(tmp_path, [raw(i, label=i % 4 == 0) for i in range(20, 36)], "trusted.jsonl")
    for forgets in (True, False):
        corpus = build(own, trusted=[trusted], forgets=forgets, max_rejected_share=0)
        rejected = corpus.counts["trusted (trusted)"].rejected
        assert rejected == {
            "the response is one to forget, and D_ref holds only responses to learn": 12
        }
        assert corpus.tables["reference"].num_rows == 4


def test_both_responses_of_a_pair_are_samples(tmp_path):
    records = [
        {"prompt": f"Question {i}?", "chosen": f"Answer {i}.", "rejected": f"No {i}.", "id": i}
        for i in range(12)
    ]
    source = write(tmp_path, records)
    assert build(source).counts["records"].unused_keys.keys() == {"rejected", "id"}
    both = source.model_copy(update={"negatives": "rejected"})
    corpus = build(both, train=18)
    assert sorted(negatives(corpus.tables["train"])) == list(range(12))
    count = corpus.counts["records"]
    assert (count.read, count.used, count.negatives) == (24, 24, 12)
    assert count.unused_keys.keys() == {"id"}
    texts = prompts(corpus.tables["train"])
    forgotten = corpus.tables["train"]["is_negative"].to_pylist()
    assert [f"No {text}" in text or "No " in text for text in texts] == forgotten


def test_near_repeats_are_found_among_responses_to_forget_apart(tmp_path):
    long = "a long question about the very same thing in many words that never end " * 3
    records = [
        {"prompt": f"{long} {i}", "chosen": f"Right {i}.", "rejected": f"Wrong {i}."}
        for i in (0, 0)
    ]
    source = write(tmp_path, records).model_copy(update={"negatives": "rejected"})
    sizes = {"reference": 0, "train": 2, "heldout": 0, "max_length": 512}
    corpus = build(source, duplicates="near", **sizes)
    assert corpus.tables["train"]["is_negative"].to_pylist().count(True) == 1


def test_pairs_are_asked_of_a_source_that_has_them(tmp_path):
    source = write(tmp_path, [raw(i) for i in range(12)])
    with pytest.raises(InputError, match="source records: `negatives: rejected` needs records"):
        build(source.model_copy(update={"negatives": "rejected"}))


def test_weights_of_turns_are_those_of_their_tokens(tmp_path):
    def record(i):
        turns = [("user", "q", {}), ("assistant", f"one {i}", {"weight": i % 3 / 2})] * 2
        last = ("assistant", f"two {i}", {})
        turns = [*turns, ("user", "r", {}), last]
        return {"messages": [{"role": r, "content": text, **more} for r, text, more in turns]}

    corpus = build(write(tmp_path, [record(i) for i in range(12)]))
    found = 0
    for table in corpus.tables.values():
        samples = Samples(table)
        weights = np.split(samples.weights, samples.response_starts[1:-1])
        ids = np.split(samples.response_ids, samples.response_starts[1:-1])
        for own, of_sample in zip(ids, weights, strict=True):
            responses = TOKENIZER.decode(own).split("</s>")
            number = int(responses[-2].removeprefix("two "))
            expected = [number % 3 / 2] * (2 if number % 3 else 0) + [1]
            assert len(responses) - 1 == len(expected)
            ends = np.flatnonzero(own == TOKENIZER.eos_token_id)
            assert of_sample[ends].tolist() == expected
            starts = np.r_[0, ends[:-1] + 1]
            assert of_sample[starts].tolist() == expected
            found += int((of_sample != 1).sum())
    count = corpus.counts["records"]
    assert found > 0
    assert count.weighted_tokens == found
    assert found == sum(split.weighted_tokens for split in corpus.account.splits.values())
    assert count.weightless_turns == 2 * 4


def test_a_table_with_turns_as_json_text_is_read_and_its_keys_are_tracked(tmp_path):
    turns = [
        [
            {"role": "user", "content": f"q{i}"},
            {"role": "assistant", "content": f"r{i}", "score": 1},
        ]
        for i in range(12)
    ]
    path = tmp_path / "records.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["messages"], *[[json.dumps(pair)] for pair in turns]])
    corpus = build(SourceSettings(path=str(path)))
    assert corpus.counts["records"].used == 12
    assert list(corpus.counts["records"].unused_keys) == ["messages[].score"]


def test_a_renamed_key_is_used_and_its_namesake_is_not(tmp_path):
    records = [{"q": f"Q{i}", "a": f"A{i}", "context": f"C{i}"} for i in range(12)]
    source = write(tmp_path, records)
    named = source.model_copy(update={"fields": {"prompt": "q", "completion": "a"}})
    assert list(build(named).counts["records"].unused_keys) == ["context"]


def test_written_out_template_marks_are_counted_and_warned_of(tmp_path, caplog, monkeypatch):
    # A command that ran before in this process has a log of its own.
    monkeypatch.setattr(logging.getLogger("forgetting"), "propagate", True)
    caplog.set_level(logging.WARNING, "forgetting")
    records = [raw(i) for i in range(200)]
    for record in records[:3]:
        record["completion"] = "[INST] Hi [/INST] " + record["completion"]
    corpus = build(write(tmp_path, records), train=194)
    assert corpus.counts["records"].template_marks == 3
    # Once, also where the log has the handler of the test twice.
    (warning,) = set(caplog.messages)
    assert warning.startswith(
        "records: 3 of 200 records hold marks of a chat template, such as [INST]"
    )
    caplog.clear()
    assert build(write(tmp_path, records[2:])).counts["records"].template_marks == 1
    # An audit asks for too many, and then for as many as there are: that must not warn twice.
    with pytest.raises(TooFewSamples):
        build(write(tmp_path, records), train=500)
    assert not caplog.messages


def test_what_the_template_does_to_turns_is_counted(tmp_path):
    tokenizer = byte_tokenizer()
    # A response begins with a space in history, and with none where it is the last.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:"
        "{{ ' ' if m.role == 'assistant' and not loop.last }}{{ m.content }}</s>"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    records = [
        {"messages": [{"role": ("user", "gpt")[i % 2], "content": f"{n} {i}"} for i in range(4)]}
        for n in range(12)
    ]
    counts = build(write(tmp_path, records), tokenizer=tokenizer).counts["records"]
    assert (counts.used, counts.context_turns, counts.other_prompts) == (12, 12, 0)
