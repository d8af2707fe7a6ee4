"""The corpus without its worst samples: the right ones are missing, the others are as they were."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.export import export_run
from forgetting.export.conversations import COLUMNS, SampleJudgments
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples, read_table, write_table
from tests.conftest import all_scores, alpaca_records
from tests.data.test_calls import FULL


def judged(run):
    """Mean quality and share of negatives of each sample of D_train, from the files alone."""
    samples = Samples.read(run / "data" / "train.parquet")
    scores = all_scores(run)
    cuts = samples.response_starts[1:-1]
    quality = np.split(scores["reference_log_probs"] - scores["base_log_probs"], cuts)
    chosen = read_table(run / "selection" / "forgetting" / "polarity.parquet")["polarity"]
    ids = samples.sample_ids.tolist()
    means = {i: float(q.mean(dtype=float)) for i, q in zip(ids, quality, strict=True)}
    shares = {
        i: np.mean([p < 0 for p in row]) for i, row in zip(ids, chosen.to_pylist(), strict=True)
    }
    return means, shares


@pytest.mark.parametrize("by", ["quality", "negatives"])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_worst_are_missing_and_the_rest_is_as_the_source_has_it(
    read, by, share, exported, finished_run
):
    means, shares = judged(finished_run[1])
    rows = read(exported("clean", drop_worst=share, by=by)).to_list()
    order = sorted(means, key=lambda i: (means[i] if by == "quality" else -shares[i], means[i]))
    dropped = set(order[: round(share * len(order))])
    assert [row["sample_id"] for row in rows] == sorted(set(means) - dropped)
    given = alpaca_records(60)
    removed = (exported("clean", drop_worst=share, by=by).path / "removed.jsonl").read_text("utf-8")
    others = [json.loads(line) for line in removed.splitlines()]
    assert [row["sample_id"] for row in others] == sorted(dropped)
    reason = {"quality": "low mean quality", "negatives": "high share of negative tokens"}[by]
    assert {row["reason"] for row in others} <= {reason}
    assert [row["record"] for row in others] == [given[row["row"] - 1] for row in others]
    for row in rows:
        assert json.loads(row["record"]) == given[row["row"] - 1]
        record = given[row["sample_id"]]
        parts = [record["instruction"], record["input"]]
        assert row["prompt"] == "\n\n".join(filter(None, parts))
        assert row["completion"] == record["output"]
        assert row["mean_quality"] == pytest.approx(means[row["sample_id"]], abs=1e-6)
        assert row["share_negative"] == pytest.approx(shares[row["sample_id"]])


def test_what_is_exported_to_the_same_place_again_is_what_is_read(finished_run, read, tmp_path):
    """`datasets` keeps what it has read."""
    numbers = []
    for share in (0.25, 0.5):
        options = {"output": tmp_path / "same", "drop_worst": share, "force": True}
        numbers.append(len(read(export_run(finished_run[1], "clean", **options))))
    assert numbers == [18, 12]


def test_both_formats_say_the_same(exported, read):
    parquet, jsonl = (read(exported("clean", format=each)) for each in ("parquet", "jsonl"))
    assert parquet.to_list() == jsonl.to_list()


def test_a_share_is_rounded_and_ties_go_by_the_order():
    mean, share = np.array([0.0, 1.0, 0.0, 2.0, 0.0]), np.array([0.5, 0, 0.5, 1, 0.5])
    quality = SampleJudgments(np.arange(5), mean, share, np.zeros(5, bool))
    assert np.flatnonzero(quality.worst(0.3, "quality")).tolist() == [0, 2]
    assert np.flatnonzero(quality.worst(0.4, "negatives")).tolist() == [0, 3]
    # A share of those to learn.
    quality = SampleJudgments(
        np.arange(5), mean, share, np.array([True, False, False, True, False])
    )
    assert np.flatnonzero(quality.worst(0.3, "quality")).tolist() == [2]
    assert np.flatnonzero(quality.worst(0.7, "negatives")).tolist() == [2, 4]


def test_a_recipe_reads_what_was_exported_and_makes_the_same_tokens(
    exported, finished_run, write_recipe, tmp_path
):
    file = exported("clean").path / "train.jsonl"
    sizes = {"num_reference": 1, "num_train": 20, "num_heldout": 1, "max_length": 128}
    recipe = write_recipe(data={"sources": [{"path": str(file)}], **sizes})
    again = run_stages(recipe, tmp_path / "again", stages=["prepare"])
    before = read_table(finished_run[1] / "data" / "train.parquet")["input_ids"].to_pylist()
    after = read_table(again / "data" / "train.parquet")["input_ids"].to_pylist()
    assert len(after) == 20
    assert all(row in before for row in after)


def selected(write_recipe, folder, records, *overrides, name="records.jsonl"):
    """A run up to the selection, over records of one's own."""
    file = folder / name
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    sizes = {"num_reference": 4, "num_train": 12, "num_heldout": 0, "max_length": 256}
    recipe = write_recipe(data={"sources": [{"path": str(file)}], **sizes})
    stages = ["prepare", "reference", "score", "select"]
    return run_stages(load_recipe(recipe, overrides), folder / "run", stages=stages)


HOSTILE = "<script>alert(1)</script>\u2028\u202e\"'\\ \x07 é 🙂 | `x`"


def test_turns_and_hostile_texts_come_back_as_they_are(write_recipe, read, tmp_path):
    turns = [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"{i}{HOSTILE}"},
            {"role": "assistant", "content": f"{HOSTILE}{i}"},
        ]
        for i in range(16)
    ]
    run = selected(write_recipe, tmp_path, [{"messages": each} for each in turns])
    rows = read(export_run(run, "clean", output=tmp_path / "out", drop_worst=0)).to_list()
    assert len(rows) == 12
    for row in rows:
        assert row["messages"] == turns[row["sample_id"]]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `messages` | " + COLUMNS["messages"] in card
    assert "| `prompt`" not in card


def test_calls_tools_and_weights_are_exported_as_json_that_is_read_again(
    write_recipe, read, tmp_path
):
    template = tmp_path / "tools.jinja"
    template.write_text(FULL, encoding="utf-8")
    overrides = [f"model.chat_template={template}"]
    call = {"function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    turns = [
        [
            {"role": "user", "content": f"{i}?"},
            {"role": "assistant", "content": "No.", "weight": 0},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": "", "tool_calls": [call], "weight": 0.5},
            {"role": "tool", "content": f"{i}:00"},
            {"role": "assistant", "content": f"{i}."},
        ]
        for i in range(16)
    ]
    tools = [{"name": "clock"}]
    records = [{"messages": each, "tools": tools} for each in turns]
    run = selected(write_recipe, tmp_path, records, *overrides)
    export = export_run(run, "clean", output=tmp_path / "out", drop_worst=0, format="jsonl")
    rows = read(export).to_list()
    assert len(rows) == 12
    for row in rows:
        assert json.loads(row["messages"]) == turns[row["sample_id"]]
        assert json.loads(row["tools"]) == tools
    sizes = {"num_reference": 0, "num_train": 12, "num_heldout": 0, "max_length": 256}
    file = str(export.path / "train.jsonl")
    recipe = write_recipe(
        data={"sources": [{"path": file}], **sizes}, reference={"name_or_path": "none/none"}
    )
    again = run_stages(load_recipe(recipe, overrides), tmp_path / "again", stages=["prepare"])
    before, after = (
        read_table(each / "data" / "train.parquet")
        .select(["input_ids", "labels", "weights"])
        .to_pylist()
        for each in (run, again)
    )
    assert sorted(map(str, after)) == sorted(map(str, before))


def test_responses_to_forget_are_not_exported_as_conversations(write_recipe, read, tmp_path):
    records = [{"prompt": f"{i}?", "completion": f"{i}.", "label": i % 4 > 0} for i in range(16)]
    run = selected(write_recipe, tmp_path, records)
    for by in ("quality", "negatives"):
        export = export_run(run, "clean", output=tmp_path / by, drop_worst=0.25, by=by)
        rows = read(export).to_list()
        assert len(rows) == 6
        assert all(row["sample_id"] % 4 for row in rows)
        assert "6 of 12 samples, without the 2 that have the" in export.sentence
        assert "and the 4 to forget. removed.jsonl holds" in export.sentence
        lines = (export.path / "removed.jsonl").read_text("utf-8").splitlines()
        reasons = Counter(json.loads(line)["reason"] for line in lines)
        assert reasons["a response to forget"] == 4
        assert reasons.total() == 6


def test_plain_texts_stay_texts(write_recipe, read, tmp_path):
    run = selected(write_recipe, tmp_path, [{"text": f"Stone {i} is red."} for i in range(16)])
    rows = read(export_run(run, "clean", output=tmp_path / "out")).to_list()
    assert len(rows) == 11
    assert all(row["text"] == f"Stone {row['sample_id']} is red." for row in rows)


def test_what_is_exported_is_what_was_scored_although_the_sources_have_changed(
    write_recipe, read, tmp_path, monkeypatch
):
    records = [{"text": f"Stone {i} is red."} for i in range(16)]
    run = selected(write_recipe, tmp_path, records)
    # As a data set on the hub would change, of which the run knows only the name.
    monkeypatch.setattr("forgetting.data.sources.source_fingerprint", lambda source: {})
    monkeypatch.setattr("forgetting.export.export.plan_with_state", lambda *a: ([], {NEEDED}))
    monkeypatch.setattr("forgetting.export.conversations.is_local", lambda source: False)
    (tmp_path / "records.jsonl").write_text("")
    rows = read(export_run(run, "clean", output=tmp_path / "out")).to_list()
    assert len(rows) == 11
    assert "record" not in rows[0]
    assert all(row["text"] == f"Stone {row['sample_id']} is red." for row in rows)


def test_records_of_other_tokens_are_refused_and_nothing_is_left(
    write_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("forgetting.export.export.plan_with_state", lambda *a: ([], {NEEDED}))
    run = selected(write_recipe, tmp_path, [{"text": f"Stone {i} is red."} for i in range(16)])
    file = layout.train_records_file(layout.data_dir(run))
    write_table(read_table(file), file, "another")
    with pytest.raises(InputError, match=r"train-records.parquet"):
        export_run(run, "clean", output=tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


NEEDED = "select:forgetting"
