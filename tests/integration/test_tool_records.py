"""Records with tools through `prepare` and the planted copies of the detector."""

from __future__ import annotations

import json

import pytest

from forgetting.config import load_recipe
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.samples import SampleFile, read_table
from forgetting.rundir.train_records import train_records
from forgetting.stages.copies import plant_copies
from tests.conftest import byte_tokenizer
from tests.data.test_calls import FULL

CALL = {"function": {"name": "clock", "arguments": {"zone": "UTC"}}}
TOOLS = [{"name": "clock"}]


@pytest.fixture
def prepared(write_recipe, tmp_path):
    """(recipe, run directory) of a corpus with tool calls."""
    template = tmp_path / "tools.jinja"
    template.write_text(FULL, encoding="utf-8")
    records = [
        {
            "messages": [
                {"role": "user", "content": f"What is the time in town {i}?"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": f"{i}:00"},
                {"role": "assistant", "content": f"It is {i} in the morning there."},
            ],
            "tools": TOOLS,
        }
        for i in range(24)
    ]
    file = tmp_path / "records.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    sizes = {"num_reference": 4, "num_train": 20, "num_heldout": 0, "max_length": 256}
    recipe = load_recipe(
        write_recipe(data={"sources": [{"path": str(file)}], **sizes}),
        [f"model.chat_template={template}"],
    )
    return recipe, run_stages(recipe, tmp_path / "run", stages=["prepare"])


def test_records_keep_their_tools_and_calls(prepared):
    _, run = prepared
    fingerprint = SampleFile(layout.train_file(run)).fingerprint
    records = [record for part in train_records(run, fingerprint) for record in part]
    assert len(records) == 20
    for record in records:
        assert record.tools == tuple(TOOLS)
        assert record.messages[1].extra == {"tool_calls": [CALL]}


def test_copies_with_planted_noise_keep_tools_and_calls(prepared, tmp_path):
    recipe, run = prepared
    file = tmp_path / "copies.parquet"
    plant_copies(recipe, run, file)
    tokenizer = byte_tokenizer()
    rows = read_table(file).to_pylist()
    assert any(row["noise_kind"] for row in rows)
    for row in rows:
        text = tokenizer.decode(row["input_ids"])
        assert '[{"name": "clock"}]' in text
        assert '<call>clock {"zone": "UTC"}</call>' in text
