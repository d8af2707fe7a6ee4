"""An audit of a small file by a tiny model, with findings that are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetting.auditing.audit import Audit, audit_data
from forgetting.rundir.train_records import train_records
from tests.conftest import save_findings

RECORDS: list[dict[str, Any]] = [
    {"id": f"r{i}", "prompt": f"Which is number {i}?", "completion": f"It is {i * i}."}
    for i in range(24)
]
RECORDS[5]["completion"] = "Straße 🙂 wrong"
# The first record again, then one without a response, then a bad one again.
EXTRA = [{**RECORDS[0], "id": "again"}, {"id": "empty", "prompt": "a", "completion": ""}]
LINES = [*RECORDS, *EXTRA, {**RECORDS[5], "id": "bad again"}]
# Bad characters by line, and their probability; the character after the last one is the end.
BAD: Mapping[int, Sequence[tuple[int, int, float]]] = {
    6: [(9, 14, 0.9)],
    9: [(0, 2, 0.6), (6, 9, 0.95)],
    12: [(0, 1, 0.4)],
}


def write_findings(audit: Audit, **changes: Any) -> None:
    """Write the findings of `BAD` into an audit; a token of the tiny model is a byte."""
    posteriors = []
    for part in train_records(audit.run, audit.fingerprint):
        for record in part:
            text = record.messages[-1].content
            posterior = np.full(len(text) + 1, 0.001, np.float32)
            for start, end, value in BAD.get(record.record, ()):
                posterior[start:end] = value
            # Each byte of a character, and one token for the end.
            sizes = [len(char.encode()) for char in text]
            posteriors.append(np.repeat(posterior, [*sizes, 1]))
    save_findings(audit.run, np.concatenate(posteriors), **changes)


@pytest.fixture(scope="session")
def fresh_audit(tmp_path_factory, tiny_model) -> tuple[Path, Audit]:
    """A data file, and its audit as it is."""
    folder = tmp_path_factory.mktemp("auditing")
    data = folder / "mine.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return data, audit_data(str(data), folder / "audit", model=str(tiny_model))


@pytest.fixture
def audited(fresh_audit, tmp_path) -> tuple[Path, Audit]:
    """The data file, and a copy of the audit with the findings of `BAD`."""
    data, audit = fresh_audit
    shutil.copytree(audit.folder, tmp_path / "audit")
    copy = Audit(tmp_path / "audit")
    write_findings(copy)
    return data, copy
