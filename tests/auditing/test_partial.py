"""Ctrl-C leaves an audit that goes on, and the records that are scored are judged."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from forgetting.auditing.audit import Audit
from forgetting.auditing.partial import judge_part, progress_of
from forgetting.cli import main
from forgetting.rundir import layout
from tests.auditing.conftest import LINES, RECORDS

pytestmark = pytest.mark.usefixtures("restored_logging", "with_few_trees")
SIZE = 10


@pytest.fixture
def interrupted(tiny_model, tmp_path, monkeypatch):
    """Audits a file, with Ctrl-C instead of writing the scores of a shard; gives the exit code and
    the audit."""
    from forgetting.auditing import audit
    from forgetting.stages import corpus_scores

    monkeypatch.setattr(audit, "SAMPLES_PER_SHARD_CPU", SIZE)
    write = corpus_scores.write_scores
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")

    def do(stage="score", shard=None, *options):
        def scores(path, *arguments):
            if path.parent.name.startswith(stage) and path.name == f"base-{shard:05d}.parquet":
                raise KeyboardInterrupt
            write(path, *arguments)

        monkeypatch.setattr(corpus_scores, "write_scores", write if shard is None else scores)
        output = tmp_path / "audit"
        code = main(
            ["audit", str(data), "--model", str(tiny_model), "--output", str(output), *options]
        )
        return code, Audit(output)

    return do


def test_what_is_scored_is_judged_and_the_audit_goes_on(interrupted, capsys):
    code, audit = interrupted("score", 2)
    assert code == 130
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Judged so far: 20 of {len(RECORDS)} records, a random part." in shown
    part = Audit(audit.partial)
    first = _rows(part)
    assert len(first) == part.num_judged == 20
    assert "<html" in part.page.read_text(encoding="utf-8")
    assert not layout.score_files(layout.scores_dir(audit.run))
    # Nothing of what is scored is scored again.
    shards = list((audit.run / layout.WORK).glob("score-*/base-*"))
    times = {file.name: file.stat().st_mtime_ns for file in shards}
    assert len(times) == 2
    capsys.readouterr()
    code, _ = interrupted("score", 2, "--json")
    assert code == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["num_judged"], found["num_usable"]) == (20, len(RECORDS))
    assert {file.name: file.stat().st_mtime_ns for file in shards} == times
    code, _ = interrupted()
    assert code == 0
    assert "Judged so far" not in capsys.readouterr().out
    assert audit.num_judged == len(RECORDS)
    assert not audit.partial.exists()
    # The part had the scores that the whole has.
    for mine, own in zip(first, _rows(audit), strict=False):
        for name in ("sample_id", "row", "log_probs"):
            assert mine[name] == own[name]


def _rows(audit):
    return pq.read_table(audit.scores).to_pylist()


@pytest.mark.parametrize(("stage", "shard"), [("probe", 1), ("score", 0)])
def test_before_anything_is_scored_it_says_only_how_to_continue(interrupted, stage, shard, capsys):
    code, audit = interrupted(stage, shard)
    assert code == 130
    told = " ".join(capsys.readouterr().err.split())
    assert "Run the same command again to continue." in told
    assert ("0 of 24 records were scored." in told) == (stage == "score")
    assert not audit.partial.exists()


def test_a_part_is_not_cleaned(interrupted, tmp_path, capsys):
    _, audit = interrupted("score", 1)
    arguments = ["clean", str(tmp_path / "mine.jsonl"), "--output", str(tmp_path / "cleaned")]
    assert main([*arguments, "--from", str(audit.partial)]) == 2
    assert f"pass {audit.folder}" in capsys.readouterr().err.replace("\n", "")
    assert main([*arguments, "--from", str(audit.folder)]) == 2
    assert "unfinished" in capsys.readouterr().err


def test_scores_of_other_data_are_not_judged(interrupted, tmp_path):
    _, audit = interrupted("score", 1)
    assert progress_of(Audit(audit.folder)) is not None
    judge_part(audit, progress_of(audit))
    with (tmp_path / "mine.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "More?", "completion": "No."}) + "\n")
    assert progress_of(Audit(audit.folder)) is None
