"""One command judges every usable record of a file, resumes, and tells programs what it found."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from forgetting import auditing
from forgetting.auditing.audit import Audit, audit_data, open_audit
from forgetting.auditing.suspicion import at_share
from forgetting.cli import main
from forgetting.config import ModelSettings
from forgetting.errors import InputError
from forgetting.rundir.manifest import read_manifest
from tests.auditing.conftest import BAD, RECORDS, write_findings

pytestmark = pytest.mark.usefixtures("restored_logging")


def test_every_distinct_usable_record_is_judged(fresh_audit):
    _, audit = fresh_audit
    assert sum(source.num_samples for source in audit.findings.by_source) == len(RECORDS)
    (counts,) = audit.data.sources
    assert (counts.rejected, counts.duplicates) == ({"empty response": 1}, 2)
    assert audit.findings.passes == ["base", "base_empty"]


def test_what_is_done_is_not_done_again(fresh_audit, tiny_model):
    data, audit = fresh_audit
    before = read_manifest(audit.run).stages
    audit_data(str(data), audit.folder, model=str(tiny_model))
    assert read_manifest(audit.run).stages == before


def test_a_finished_audit_is_not_replaced_by_one_with_other_options(
    fresh_audit, tiny_model, tmp_path, capsys
):
    data, audit = fresh_audit
    before = {file: file.read_bytes() for file in audit.folder.rglob("*") if file.is_file()}
    given = ["audit", str(data), "--output", str(audit.folder), "--model"]
    other = tmp_path / "other" / data.name
    other.parent.mkdir()
    other.write_bytes(data.read_bytes())
    copied = tmp_path / "judge"
    shutil.copytree(tiny_model, copied)
    cases = {
        "--limit: none there, 20 now": [*given, str(tiny_model), "--limit", "20"],
        "--field: none there, prompt=id now": [*given, str(tiny_model), "--field", "prompt=id"],
        f"--model: {tiny_model} there, {copied} now": [*given, str(copied)],
        f"data: {data} there, {other} now": ["audit", str(other), *given[2:], str(tiny_model)],
    }
    for told, command in cases.items():
        assert main(command) == 2
        shown = capsys.readouterr().err
        assert f"{audit.folder} holds a finished audit with other options ({told})" in shown
        assert "Pass another --output or the same options, or remove the folder" in shown
    assert {file: file.read_bytes() for file in before} == before


def test_fields_are_read_under_other_names(tiny_model, tmp_path, capsys):
    data = tmp_path / "own.jsonl"
    lines = [json.dumps({"frage": f"What is {i}?", "antwort": f"It is {i}."}) for i in range(8)]
    data.write_text("\n".join(lines))
    arguments = ["audit", str(data), "--model", str(tiny_model), "--output", str(tmp_path / "a")]
    assert main(arguments) == 2
    assert "--field prompt=question" in " ".join(capsys.readouterr().err.split())
    wrong = ["--field", "prompt=frag", "--field", "completion=antwort"]
    assert main([*arguments, *wrong]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "field `prompt` is null" in told
    assert "--field prompt=question" in told
    assert "data.max_rejected_share" not in told
    assert main([*arguments, "--field", "prompt"]) == 2
    assert "--field prompt: pass NAME=YOURS" in capsys.readouterr().err
    fields = ["--field", "prompt=frage", "--field", "completion=antwort"]
    assert main([*arguments, *fields, "--limit", "6", "--quiet"]) == 0
    audit = open_audit(tmp_path / "a")
    assert sum(source.num_samples for source in audit.findings.by_source) == 6


def test_a_folder_without_an_audit_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no audit.*forgetting audit DATA"):
        open_audit(tmp_path)


def test_bfloat16_is_used_where_the_processor_has_it(
    fresh_audit, tiny_model, tmp_path, monkeypatch
):
    from forgetting.auditing import audit as module

    monkeypatch.setattr(module.loading, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(module, "run_on_all", lambda recipe, *_: recipes.append(recipe))
    recipes = []
    (tmp_path / "out").mkdir()
    audit_data(str(fresh_audit[0]), tmp_path / "out", model=str(tiny_model))
    assert recipes[0].model == ModelSettings(name_or_path=str(tiny_model), dtype="bfloat16")


@pytest.fixture
def given(audited, monkeypatch):
    """The command, on an audit whose findings are known."""
    data, audit = audited
    monkeypatch.setattr(auditing, "audit_data", lambda *_, **__: audit)
    return data, audit


def test_the_exit_code_says_whether_there_is_too_much(given, capsys):
    data, audit = given
    share = audit.findings.tokens.share
    assert main(["audit", str(data), "--quiet"]) == 0
    assert main(["audit", str(data), "--quiet", "--fail-above", str(share + 0.01)]) == 0
    assert main(["audit", str(data), "--quiet", "--fail-above", str(share - 0.01)]) == 1
    assert main(["audit", str(data), "--fail-above", "2"]) == 2
    assert "--fail-above" in capsys.readouterr().err


def test_columns_are_advised_where_they_help(tiny_model, tmp_path, capsys):
    lines = [f"What is {i}?\tIt is {i}." for i in range(8)]
    (tmp_path / "tables").mkdir()
    for name in ("one.tsv", "tables/one.tsv"):
        (tmp_path / name).write_text("\n".join(lines))
    (tmp_path / "own.jsonl").write_text(json.dumps({"frage": "Why?", "antwort": "So."}))
    output = str(tmp_path / "a")

    def told(name: str, *options: str) -> str:
        command = ["audit", str(tmp_path / name), "--model", str(tiny_model), "--output", output]
        assert main([*command, *options]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "name the columns of a table without a header with `--columns`" in told("one.tsv")
    assert "Tables without a header are read one by one, with `--columns`" in told("tables")
    assert "--columns" not in told("own.jsonl")
    # What failed does not keep its folder from other data.
    columns = ["--columns", "prompt,completion"]
    command = ["audit", str(tmp_path / "one.tsv"), "--model", str(tiny_model), "--output", output]
    assert main([*command, *columns, "--quiet"]) == 0


def test_a_missing_file_is_refused_before_a_model_is_loaded(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "nowhere.jsonl"), "--model", "none/none"]) == 2
    assert "no data file" in capsys.readouterr().err


def test_the_verdict_comes_first_then_tables_then_the_worst(given, capsys):
    data, audit = given
    assert main(["audit", str(data), "--quiet"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    parts = ["tokens are bad", "garbled word", "odd", "1. mine.jsonl, line 6", "Page:"]
    assert sorted(parts, key=shown.index) == parts
    assert "Straße 🙂 [wrong]" in shown
    assert "garbled word 0.95 85.0 % 70.0 % 20.0 %" in shown
    assert "answer to another question 0.90 – 60.0 % 30.0 %" in shown
    assert "–: not measured" in shown
    assert "bad tokens (estimate) flagged records" in shown
    assert "line 6: about 4.5 of 19 tokens bad" in shown
    assert "Flagged records:" in shown
    assert "(end)" not in shown
    assert "1 record could not be used and was not judged: empty response: 1." in shown
    assert str(audit.flagged_jsonl) in shown


def test_the_end_of_a_response_is_explained(given, capsys, monkeypatch):
    data, audit = given
    text = RECORDS[5]["completion"]
    monkeypatch.setitem(BAD, 6, [(len(text) - 5, len(text) + 1, 0.9)])
    write_findings(audit)
    assert main(["audit", str(data), "--quiet"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "🙂 [wrong(end)]" in shown
    assert "(end): the response ends here" in shown
    assert "[wrong(end)]" in audit.flagged_csv.read_text("utf-8-sig")


def test_json_is_all_there_is_on_standard_output(given, capsys):
    data, audit = given
    assert main(["audit", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_flagged"] == 2
    assert found["bad_tokens"]["share"] == pytest.approx(audit.findings.tokens.share)
    assert [each["line"] for each in found["worst"]] == [6, 9]
    assert [each["precision_planted"] for each in found["kinds"]] == [0.85, None]


def test_where_nothing_is_found_the_worst_are_listed_and_nothing_is_dropped(given, capsys):
    from forgetting.auditing.cleaning import drop_records

    data, audit = given
    write_findings(audit, found=False)
    assert main(["audit", str(data), "--json", "--fail-above", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bad_tokens"] is None
    assert found["flagged_at_share"] == 0.01
    done = drop_records(str(data), Audit(audit.folder), audit.folder / "clean", 0.99)
    assert done.num_removed == 0


def test_where_nothing_is_found_everything_listed_is_named_a_suspicion(given, capsys, tmp_path):
    data, audit = given
    write_findings(audit, found=False)
    assert main(["audit", str(data), "--quiet"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "if 1% of the tokens were bad, these would be the likeliest" in shown
    assert "Suspected records:" in shown
    assert " tokens suspected, " in shown
    assert " tokens bad, " not in shown
    assert "share of your tokens" not in shown
    rows = [json.loads(line) for line in audit.flagged_jsonl.read_text("utf-8").splitlines()]
    assert rows
    assert all(row["only_suspected"] for row in rows)
    for option, word in (("--drop", "dropped"), ("--mask", "masked")):
        output = str(tmp_path / word)
        command = ["clean", str(data), "--from", str(audit.folder), "--output", output]
        assert main([*command, option, "0.99"]) == 0
        cleaned = " ".join(capsys.readouterr().out.split())
        assert f"The audit found nothing, so no record is {word}. Mark records" in cleaned


SHORT = [{"prompt": f"What is stone {i}?", "completion": f"It is {i}."} for i in range(60)]
CANNOT_BE_JUDGED = {
    "few": (SHORT[:40], "copies of 40 records; at least 50"),
    "one": (SHORT[:1], "copies of 1 record; at least 50"),
    "one token": (
        [{**row, "completion": "abcde"[i % 5]} for i, row in enumerate(SHORT)],
        "without",
    ),
    "all the same": (SHORT[:1] * 60, "copies of 1 record; at least 50"),
    # Untrained weights say nothing, but noise makes such short answers longer.
    "a model that finds nothing": (SHORT, ""),
}


@pytest.mark.usefixtures("with_few_trees")
@pytest.mark.parametrize("case", CANNOT_BE_JUDGED)
def test_what_cannot_be_judged_is_a_verdict_with_its_reason(case, tiny_model, tmp_path, capsys):
    rows, reason = CANNOT_BE_JUDGED[case]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["audit", str(data), "--model", str(tiny_model), "--output", str(tmp_path / "a")]
    assert main([*arguments, "--json", "--fail-above", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["found"]
    assert found["verdict"].startswith("Nothing found. ")
    assert reason in found["verdict"]
    assert len(found["verdict"]) > len("Nothing found. ") + 20
    assert found["bad_tokens"] is None
    assert all(source["num_bad_tokens"] == 0 for source in found["sources"])


def test_a_measure_ranks_the_records_in_place_of_the_detector(given, capsys):
    data, audit = given
    assert main(["audit", str(data), "--quiet", "--quality", "base_loss"]) == 0
    assert "Lowest mean base_loss (−l base) first." in capsys.readouterr().out
    rows = [json.loads(line) for line in audit.flagged_jsonl.read_text("utf-8").splitlines()]
    assert len(rows) == len(RECORDS)
    scores = pq.read_table(audit.scores).to_pylist()
    means = {row["row"]: np.mean(row["log_probs"], dtype=np.float64) for row in scores}
    assert [row["row"] for row in rows] == sorted(means, key=means.get)
    assert [row["mean_quality"] for row in rows] == pytest.approx(sorted(means.values()))
    # The detector's spans if there are some, else the token with the lowest quality.
    by_row = {row["row"]: row for row in rows}
    assert [span["text"] for span in by_row[6]["spans"]] == ["wrong"]
    of_first = next(row for row in scores if row["row"] == 1)
    worst = int(np.argmin(of_first["log_probs"]))
    (span,) = by_row[1]["spans"]
    assert (span["start"], span["end"]) == (of_first["start"][worst], of_first["end"][worst])
    assert "mean_quality" in audit.flagged_csv.read_text("utf-8-sig").splitlines()[0]
    assert main(["audit", str(data), "--json", "--quality", "entropy_gap"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ranked_by"], found["num_flagged"]) == ("entropy_gap", None)
    qualities = [each["mean_quality"] for each in found["worst"]]
    assert qualities == sorted(qualities)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("baseloss", "no such measure. Did you mean base_loss? Choose from base_loss, entropy_gap"),
        ("influence", "it needs reference_log_probs, which an audit does not have. Choose from"),
    ],
)
def test_a_measure_that_cannot_rank_is_refused_before_anything_is_read(name, told, capsys):
    assert main(["audit", "nowhere.jsonl", "--quality", name]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_odds_at_another_share():
    # At the share of 1/2, odds of 9 to 1 are a ratio of densities of 9.
    (found,) = at_share(np.log([9.0]), 0.5, 0.01)
    assert found == pytest.approx(9 * 0.01 / (9 * 0.01 + 0.99), rel=1e-6)
    # At 1/5, odds of 1 to 1 are a ratio of 4.
    (found,) = at_share(np.zeros(1), 0.2, 0.05)
    assert found == pytest.approx(4 * 0.05 / (4 * 0.05 + 0.95), rel=1e-6)
