"""An audit is opened with its records, and its page shows what flagged.jsonl holds."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from forgetting.auditing import suspicion
from forgetting.auditing.audit import Audit
from forgetting.auditing.browsing import browse_audit, browse_folder, is_audit
from forgetting.auditing.flagged import write_files
from forgetting.auditing.judged import judged_records
from forgetting.cli import main
from forgetting.inspector.overview import whole
from forgetting.inspector.queries import Query
from forgetting.rundir import layout
from tests.auditing.conftest import LINES, write_findings
from tests.conftest import count_decodings

pytestmark = pytest.mark.usefixtures("restored_logging")


def test_records_have_their_place_their_messages_and_their_fields(audited):
    _, audit = audited
    assert is_audit(audit.folder)
    assert not is_audit(audit.run)
    inspection = browse_folder(audit.folder)
    row = int(inspection.find(Query(sort="bad"))[0][0])
    sample = inspection.sample(row, 4096)
    assert sample["origin"] == {"file": "mine.jsonl", "line": 6, "row": 6}
    assert sample["messages"] == [["user", "Which is number 5?"], ["assistant", "Straße 🙂 wrong"]]
    assert sample["fields"] == [["id", "r5"]]
    assert inspection.find(Query(text="id: R5"))[0].tolist() == [row]
    lines = [
        inspection.summary(int(each), 0)["origin"]["line"]
        for each in inspection.find(Query(sort="position"))[0]
    ]
    assert lines == list(range(1, 25))
    assert whole(inspection)["detector"]["verdict"].endswith("hold a token that is probably bad.")
    assert "Judged by" in whole(inspection)["about"]


def test_places_of_tokens_are_those_of_the_spans(audited):
    _, audit = audited
    inspection = browse_audit(audit)
    for row, judged in enumerate(judged_records(audit)):
        sample = inspection.sample(row, 4096)
        places = [tuple(place) for place in np.reshape(sample["places"], (-1, 3)).tolist()]
        assert places == [tuple(place) for place in judged.places]
        assert sample["ends"] == [len(places) - 1]
        most = [span.num_bad_tokens for span in judged.spans] or [judged.highest]
        assert sample["span"] == pytest.approx(max(most))
        kinds = [kind.kind for kind in audit.findings.kinds]
        assert sample["kind_of_all"] == kinds.index(judged.kind)


def test_data_that_changed_since_lend_no_fields(audited):
    data, audit = audited
    changed = [{**line, "id": "other"} for line in LINES]
    before = data.read_text(encoding="utf-8")
    try:
        data.write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
        assert browse_audit(audit).sample(0, 99)["fields"] == []
        data.unlink()
        assert browse_audit(audit).sample(0, 99)["fields"] == []
    finally:
        data.write_text(before, encoding="utf-8")


def test_where_nothing_is_found_the_page_shows_what_would_look_worst(audited, monkeypatch):
    _, audit = audited
    write_findings(audit, found=False)
    audit = Audit(audit.folder)
    decoded = count_decodings(monkeypatch, suspicion)
    first = browse_audit(audit).judgment  # computed
    assert first is not None
    assert first.suspected
    assert "if 1% of the tokens were bad" in first.verdict
    assert first.posterior.max() > 0
    assert len(decoded) == 1
    found = write_files(audit)
    second = browse_audit(audit).judgment  # read from the scores
    assert second is not None
    assert second.posterior.tolist() == first.posterior.tolist()
    assert second.kind.tolist() == first.kind.tolist()
    (data,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>',
        audit.page.read_text(encoding="utf-8"),
    )
    shown = json.loads(data)
    assert len(shown["samples"]) == shown["num_samples"] == 24
    flagged = [each["row"] - 1 for each in shown_origins(shown) if each["highest"] >= 0.5]
    assert sorted(flagged) == sorted(each.record.record - 1 for each in found if each.is_flagged)


def shown_origins(shown):
    return [{**each["origin"], "highest": each["highest"]} for each in shown["samples"]]


def test_a_terminal_and_json_show_file_and_line(audited, capsys):
    _, audit = audited
    assert main(["inspect", str(audit.folder), "--terminal", "--samples", "1"]) == 0
    (title,) = re.findall(r"Sample \d+ · .*", capsys.readouterr().out)
    # The line with the most bad tokens; the source has the name of the file.
    assert re.fullmatch(r"Sample \d+ · mine.jsonl, line 6  1 of 24", title)
    assert main(["inspect", str(audit.folder), "--json", "--samples", "1"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["samples"]
    assert (shown["file"], shown["line"], shown["row"]) == ("mine.jsonl", 6, 6)


def test_the_command_opens_an_audit_as_it_is(audited, capsys):
    _, audit = audited
    write_findings(audit, found=False)
    assert main(["inspect", str(audit.folder), "--terminal"]) == 0
    assert "tokens only suspected (50% or more) · estimate: about" in capsys.readouterr().out
    layout.summary_file(layout.detector_dir(audit.run)).unlink()
    assert main(["inspect", str(audit.folder), "--terminal"]) == 2
    assert "unfinished audit" in capsys.readouterr().err
