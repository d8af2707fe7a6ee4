"""Files that once failed, next to the project: each is read, and learned as it should be."""

from __future__ import annotations

import logging

import pytest

from forgetting.config import DataSettings, SourceSettings
from forgetting.data.account import Account
from forgetting.data.alignment import Tokenization
from forgetting.data.reading import read_records
from forgetting.data.spool import Spool
from forgetting.formats import Unusable
from tests.data.families import SHARED, tokenizer_of
from tests.data.test_calls import FULL, IM

CASES = SHARED / "cases"
ALTERNATE = "turns do not alternate from user to assistant"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the files are not here")


def learned(file, folder, negatives=None):
    """(labeled texts of each usable record under ChatML with tools, prompts, counts).

    What is to forget has a minus before it.
    """
    source = SourceSettings(path=str(CASES / file), negatives=negatives)
    settings = DataSettings(
        sources=[source], num_reference=0, num_heldout=0, num_train=1, max_rejected_share=1
    )
    tokenizer = tokenizer_of("merging", *IM)
    tokenization = Tokenization(tokenizer, FULL)
    with (
        Account(settings, folder / "rejected.parquet") as account,
        Spool(folder / "records.spool") as spool,
    ):
        read_records(settings, 0, spool, account)
        account.warn()
        records = [spool[index] for index in range(len(spool))]
        results = tokenization.encode_batch(records)
    texts, prompts = [], []
    for record, tokens in zip(records, results, strict=True):
        assert not isinstance(tokens, Unusable), tokens
        pieces = zip(tokens.input_ids, tokens.labels, strict=True)
        labeled = [id_ for id_, label in pieces if label != -100]
        sign = "-" if record.is_negative else ""
        responses = tokenizer.decode(labeled).split("<|im_end|>")[:-1]
        texts.append([f"{sign}{response}" for response in responses])
        prompts.append(tokenizer.decode(tokens.input_ids))
    (count,) = account.sources.values()
    return texts, prompts, count


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "01-weight-field.jsonl",
            [["An apple is a fruit."], ["Red is a colour."], ["A crow is a bird."]],
        ),
        ("02-alpaca-history-system.json", [["Paris.", "Madrid."], ["Santiago.", "Lima."]]),
        ("04-kto-label-false.jsonl", [["-Five."], ["Four."]]),
        ("05-content-parts.jsonl", [["Hi."], ["Bye."]]),
        ("06-tool-calls.jsonl", [["<call>clock {}</call>", "It is noon."], ["Hi."]]),
        ("07-roles.jsonl", [["Hi."], ["Bye."]]),
        ("09-sharegpt-turns.jsonl", []),
        ("10-dpo.jsonl", [["Hi."], ["Bye."]]),
        ("11-messages-as-string.csv", [["Hi."], ["Bye."]]),
        ("13-mixed-forms.jsonl", [["Hi."]]),
    ],
)
def test_what_is_learned(file, expected, tmp_path):
    assert learned(file, tmp_path)[0] == expected


def test_rejected_responses_are_forgotten_where_asked(tmp_path):
    texts, _, count = learned("10-dpo.jsonl", tmp_path, negatives="rejected")
    assert texts == [["Hi."], ["-Go."], ["Bye."], ["-Go."]]
    assert (count.read, count.unused_keys) == (4, {})


def test_system_texts_and_tools_are_in_the_prompt(tmp_path):
    for file, text in (
        ("02-alpaca-history-system.json", "<|im_start|>system\nAnswer with one word.<|im_end|>"),
        ("07-roles.jsonl", "<|im_start|>system\nBe short.<|im_end|>"),
        ("06-tool-calls.jsonl", '"name": "clock"'),
    ):
        assert any(text in prompt for prompt in learned(file, tmp_path)[1]), file


@pytest.mark.parametrize(
    ("file", "reasons"),
    [
        ("09-sharegpt-turns.jsonl", {ALTERNATE: 3, "field `value` is null": 1}),
        ("13-mixed-forms.jsonl", {"no field `prompt`": 2}),
    ],
)
def test_what_is_refused_is_counted(file, reasons, tmp_path):
    assert learned(file, tmp_path)[2].rejected == reasons


def test_the_rejected_response_is_named_as_unused(tmp_path):
    unused = learned("10-dpo.jsonl", tmp_path)[2].unused_keys
    assert {path: key.count for path, key in unused.items()} == {"rejected": 2}


def test_rendered_text_is_warned_of(tmp_path, caplog):
    logging.getLogger("forgetting").propagate = True
    learned("08-prerendered-text.jsonl", tmp_path)
    assert "2 of 2 records hold marks of a chat template" in caplog.text
