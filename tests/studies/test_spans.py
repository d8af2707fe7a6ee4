"""Marked spans: what is read, what is left out, and what is measured of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from forgetting.cli import main
from forgetting.errors import InputError
from forgetting.method import MEASURES
from forgetting.rundir.samples import Samples, list_column, read_table
from forgetting.studies import measures
from forgetting.studies.spans import measure_spans, read_marked

SHARED = Path(__file__).resolve().parents[3] / "shared"
MARKED = SHARED / "data" / "noise" / "halueval_general_spans.json"


def marked_records(number):
    """As HaluEval has them: every third is wrong in its last word."""
    records = []
    for index in range(number):
        response = f"The stone {index} is of a color like mud"
        wrong = index % 3 == 0
        spans = [[len(response) - 3, len(response)]] if wrong else []
        records.append(
            {
                "id": str(index),
                "prompt": f"Which color is stone {index}?",
                "response": response,
                "hallucination": "yes" if wrong else "no",
                "char_spans": spans,
                "raw_spans": ["mud"] if wrong else [],
            }
        )
    return records


def write(path, records):
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_records_of_which_it_is_not_known_what_is_wrong_are_left_out(tmp_path):
    records = marked_records(7)
    records[0]["raw_spans"] = ["mud", "elsewhere"]  # one of the two was not located
    records[3]["char_spans"] = []
    records[3]["raw_spans"] = []
    found, num_left_out = read_marked(write(tmp_path / "data.json", records))
    assert num_left_out == 2
    assert [r["prompt"] for r in found] == [records[i]["prompt"] for i in (1, 2, 4, 5, 6)]
    end = len(records[6]["response"])
    assert found[-1]["noise_spans"] == [[end - 3, end]]
    assert found[0]["noise_spans"] == []


def test_json_lines_with_noise_spans_are_read_too(tmp_path):
    file = tmp_path / "data.jsonl"
    lines = [{"prompt": "a", "completion": "bc", "noise_spans": [[0, 1]]}] * 2
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_marked(file) == (lines, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "does not hold a list of records"),
        ("[3]", "record 1: expected fields, got int"),
        ('[{"response": "b", "char_spans": []}]', "record 1 has no text in `prompt`"),
        ('[{"prompt": "b", "char_spans": []}]', "record 1 has no text in `response`"),
        ('[{"prompt": "a", "response": "b"}]', "`char_spans` (or `noise_spans`) is not a list"),
        ('[{"prompt": "a", "response": "b", "char_spans": [1]}]', "is not a list of [start, end]"),
        ('[{"prompt": "a", "response": "b", "char_spans": []}]', "has a marked span"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_message(content, message, tmp_path):
    file = tmp_path / "data.json"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        read_marked(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_without_a_reference_the_measures_of_the_base_are_computed(tiny_model, tmp_path, capsys):
    data = write(tmp_path / "data.json", marked_records(40))
    output = tmp_path / "out"
    words = ["spans", str(data), "--model", str(tiny_model)]
    assert main([*words, "--output", str(output)]) == 0
    assert "Results are in" in capsys.readouterr().out
    rows = list(csv.DictReader((output / "results.csv").open()))
    assert {row["measure"] for row in rows} == {"base_loss", "entropy_gap", "detector"}
    samples = Samples.read(output / "run" / "data" / "train.parquet")
    (shard,) = (output / "run" / "scores").glob("*.parquet")
    log_probs, _ = list_column(read_table(shard), "base_log_probs")
    noisy = samples.noise()
    # A byte is a token here: three in each third sample.
    assert noisy.sum() == 3 * 14
    bad, good = log_probs[noisy], log_probs[~noisy]
    auroc = ((good > bad[:, None]) + 0.5 * (good == bad[:, None])).mean()
    row = next(r for r in rows if (r["measure"], r["figure"]) == ("base_loss", "auroc"))
    assert float(row["value"]) == pytest.approx(auroc)
    assert 0 < float(row["stderr"]) < 0.5
    assert main([*words, "--output", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_noisy"] == 3 * 14
    assert document["num_samples"] == 40


def test_a_reference_gives_all_measures_and_none_of_its_samples_is_measured(tiny_model, tmp_path):
    data = write(tmp_path / "data.json", marked_records(40))
    sets = ["training.lora.rank=2", "training.learning_rate=0.01", "training.batch_size=2"]
    trained = measure_spans(
        data, str(tiny_model), tmp_path / "trained", train_share=0.25, overrides=sets
    )
    assert trained.num_samples == 30
    assert set(trained.found) == set(measures(True)) == set(MEASURES)
    splits = [
        Samples.read(tmp_path / "trained" / "run" / "data" / f"{name}.parquet")
        for name in ("train", "reference")
    ]
    assert not np.intersect1d(*(split.sample_ids for split in splits)).size
    assert len(splits[1]) == 10
    own = str(tmp_path / "trained" / "run" / "reference")
    given = measure_spans(data, str(tiny_model), tmp_path / "given", reference=own)
    assert given.num_samples == 40
    assert set(given.found) == set(MEASURES)


def test_a_reference_is_given_or_trained_not_both(tmp_path):
    data = write(tmp_path / "data.json", marked_records(4))
    with pytest.raises(InputError, match="either a reference model or the share"):
        measure_spans(data, "m", tmp_path / "out", reference="r", train_share=0.5)
    with pytest.raises(InputError, match="must be between 0 and 1"):
        measure_spans(data, "m", tmp_path / "out", train_share=1.5)


@pytest.mark.skipif(not MARKED.is_file(), reason="the shared data is not here")
def test_real_marked_spans_are_read_and_measured(tmp_path):
    records, num_left_out = read_marked(MARKED)
    assert (len(records), num_left_out) == (4507 - 117, 117)
    assert sum(bool(record["noise_spans"]) for record in records) == 698
    # A few of them, on a model that knows nothing of the kind.
    some = [r for r in records if r["noise_spans"]][:30] + records[:30]
    data = write(tmp_path / "some.json", some)
    model = str(SHARED / "models" / "stories260K")
    results = measure_spans(data, model, tmp_path / "out")
    assert results.num_noisy > 100
    assert 0.2 < results.found["base_loss"].auroc < 0.8
