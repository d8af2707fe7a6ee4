"""The blind reading: the worst records by each ranking, without a sign of which one chose them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.real.blind_reading import draw, influence_ranking, unblind
from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples
from forgetting.rundir.train_records import train_records
from tests.conftest import all_scores


@pytest.fixture
def audit(detected_run, tmp_path, with_few_trees) -> Path:
    """An audit of records some of which `finished_run` has scored with a reference model."""
    shutil.copytree(detected_run[1], tmp_path / "audit" / "run")
    return tmp_path / "audit"


def influence_by_row(run: Path) -> dict[int, float]:
    """Computed token by token."""
    scores = all_scores(run)
    pairs = iter(zip(scores["reference_log_probs"], scores["base_log_probs"], strict=True))
    lengths = Samples.read(layout.train_file(run)).num_response_tokens
    gains = [[float(r) - float(b) for r, b in islice(pairs, int(length))] for length in lengths]
    return {row: sum(gain) / len(gain) for row, gain in zip(rows(run), gains, strict=True)}


def rows(run: Path) -> list[int]:
    fingerprint = Samples.read(layout.train_file(run)).fingerprint
    return [record.record for part in train_records(run, fingerprint) for record in part]


def test_influence_chooses_what_the_reference_learned_least(audit, finished_run, tmp_path, capsys):
    run = finished_run[1]
    draw(audit, tmp_path / "reading", 4, 0, run)
    origins = json.loads((tmp_path / "reading" / "origins.json").read_text("utf-8"))
    assert list(origins) == ["detector", "influence", "base loss", "IFD", "random"]
    influence = influence_by_row(run)
    judged = rows(audit / "run")
    both = [row for row in judged if row in influence]
    lowest = sorted(both, key=lambda row: influence[row])[:4]
    assert [entry["row"] for entry in origins["influence"]] == lowest
    assert origins["influence"][0]["influence"] == pytest.approx(-influence[lowest[0]], abs=1e-5)
    said = f"influence does not rank {len(judged) - len(both)} of the {len(judged)} records"
    assert said in capsys.readouterr().out


def test_each_record_is_read_once_without_its_origin(audit, tmp_path):
    reading = tmp_path / "reading"
    draw(audit, reading, 10, 0)
    records = json.loads((reading / "records.json").read_text("utf-8"))
    origins = json.loads((reading / "origins.json").read_text("utf-8"))
    assert [record["id"] for record in records] == list(range(len(records)))
    assert all(set(record) == {"id", "messages"} for record in records)
    assert {e["id"] for entries in origins.values() for e in entries} == set(range(len(records)))
    assert "influence" not in origins


def test_a_run_with_too_few_of_the_records_is_refused(audit, finished_run, tmp_path):
    with pytest.raises(InputError, match=r"influence ranks \d+ records, fewer than --size 50"):
        draw(audit, tmp_path / "reading", 50, 0, finished_run[1])


def test_a_run_of_other_texts_is_refused(finished_run):
    run = finished_run[1]
    fingerprint = Samples.read(layout.train_file(run)).fingerprint
    record = next(train_records(run, fingerprint))[0]
    judged = SimpleNamespace(record=replace(record, messages=record.messages[:1]))
    with pytest.raises(InputError, match=f"record {record.record} of records has another text"):
        influence_ranking([judged], run)


def test_the_table_counts_verdicts_by_ranking(tmp_path, capsys):
    origins = {"detector": [{"id": 0}, {"id": 1}], "random": [{"id": 1}, {"id": 2}]}
    (tmp_path / "origins.json").write_text(json.dumps(origins))
    verdicts = {"0": "broken", "1": "doubtful", "2": "fine"}
    (tmp_path / "verdicts.json").write_text(json.dumps(verdicts))
    unblind(tmp_path)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| detector | 1 | 1 | 0 | 0.50 (0.01 to 0.99) |",
        "| random | 0 | 1 | 1 | 0.00 (0.00 to 0.84) |",
    ]
