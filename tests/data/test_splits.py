"""The corpus: nothing in two splits, nothing lost without a count."""

import csv
import json
import logging
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
from forgetting.errors import InputError
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
    *sources, reference=4, train=6, heldout=2, seed=0, tokenizer=TOKENIZER, trusted=(), **more
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
            data, Tokenization(tokenizer), seed, path / "output", path, trusted=trusted
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


def test_responses_labeled_false_are_left_out_and_are_no_fault_of_the_data(tmp_path):
    records = [raw(i, label=i % 2 == 0) for i in range(24)]
    corpus = build(write(tmp_path, records))
    count = corpus.counts["records"]
    assert count.rejected == {"the response is labeled false, so it is not learned": 12}
    assert len(corpus.rejected) == 12
    assert count.unused_keys == {}
    texts = [text for table in corpus.tables.values() for text in prompts(table)]
    assert len(texts) == 12
    assert not any(f"Question {i}?" in text for text in texts for i in range(1, 24, 2))


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
