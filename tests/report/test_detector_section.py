"""The section on the detector: what it shows, counts and leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetting.errors import InputError
from forgetting.report import build_report
from forgetting.report.detector_section import count_likely_kinds, detector_section
from forgetting.rundir import layout
from forgetting.rundir.findings import DetectorSummary
from forgetting.rundir.reader import RunReader
from forgetting.rundir.samples import Samples
from tests.conftest import save_findings


@pytest.fixture
def posterior(run_dir: Path) -> Any:
    """A made-up posterior for each response token of `run_dir`."""
    size = Samples.read(layout.train_file(run_dir)).response_ids.size
    return np.random.default_rng(0).random(size).astype(np.float32)


def findings(run: Path) -> DetectorSummary:
    found = RunReader(run).findings
    assert found is not None
    return found


def test_likely_kinds_are_summed_by_source(
    run_dir: Path, posterior: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 80 samples in parts of 7: sources are spread over all of them.
    monkeypatch.setattr("forgetting.report.detector_section.ROWS_PER_GROUP", 7)
    save_findings(run_dir, posterior)
    samples = Samples.read(layout.train_file(run_dir))
    sources = samples.per_response_token(np.array(samples.table["source"].to_pylist()))
    kinds = np.arange(posterior.size) % 2
    counted = count_likely_kinds(run_dir, findings(run_dir))
    assert list(counted) == ["addition", "world"]
    for source, sums in counted.items():
        for kind in (0, 1):
            own = posterior[(sources == source) & (kinds == kind)].astype(np.float64)
            assert sums[kind] == pytest.approx(own.sum())


def test_tables_hold_the_findings(run_dir: Path, posterior: Any) -> None:
    save_findings(run_dir, posterior)
    summary = findings(run_dir)
    section = detector_section(run_dir, summary)
    tables = {table.key: table.to_csv().splitlines() for table in section.tables}
    assert list(tables) == ["detection", "planted-kinds", "bad-by-source", "likely-kinds"]
    assert tables["detection"][1] == "detector,0.91,0.7,0.8,0.6,0.02"
    assert tables["detection"][-1] == "chance,0.5,0.2,0.2,,"
    kinds = tables["planted-kinds"]
    assert kinds[0].endswith(',AUROC,precision,recall,"AUROC, never seen",share of D_train')
    assert kinds[1] == f"garbled word,garble,60,80,{80 / 900},0.95,0.85,0.7,0.9,0.2"
    assert kinds[2] == f"answer to another question,swap,74,100,{100 / 900},0.9,,0.6,,0.3"
    for line, source in zip(tables["bad-by-source"][1:], summary.by_source, strict=True):
        assert line.startswith(f"{source.source},{source.num_samples},{source.num_bad_samples},")
        assert line.endswith(f",{source.num_bad_tokens / source.num_tokens}")
    assert len(tables["likely-kinds"]) == 1 + 2


def test_what_the_reference_brings_is_a_row_and_a_sentence(run_dir: Path, posterior: Any) -> None:
    save_findings(run_dir, posterior)
    summary = findings(run_dir)
    assert summary.report is not None
    assert not any("reference" in each for each in detector_section(run_dir, summary).sentences)
    report = replace(
        summary.report, auroc_without_reference=0.875, average_precision_without_reference=0.625
    )
    section = detector_section(run_dir, summary.model_copy(update={"report": report}))
    assert section.tables[0].to_csv().splitlines()[2].endswith("alone,0.875,0.625,,,")
    assert section.sentences[-1].startswith("The reference model’s passes help: AUROC is 0.910 ")


def test_findings_of_nothing_are_the_verdict_and_what_was_planted(
    run_dir: Path, posterior: Any
) -> None:
    nothing = dict.fromkeys(("report", "tokens", "samples"))
    save_findings(run_dir, 0 * posterior, found=False, kinds=[], **nothing)
    section = detector_section(run_dir, findings(run_dir))
    unknown = "The share of bad tokens was not measured."
    assert (section.verdict, section.sentences) == ("Nothing found. It is hidden.", [unknown])
    assert (section.figure, section.tables) == (None, [])
    assert section.to_markdown() == (
        f"## What the detector found\n\nNothing found. It is hidden.\n\n{unknown}\n"
    )


@pytest.mark.parametrize(("auroc", "is_measured"), [(0.5, False), (0.69, False), (0.7, True)])
def test_a_detector_that_guesses_says_nothing_of_shares(
    run_dir: Path, posterior: Any, auroc: float, is_measured: bool
) -> None:
    save_findings(run_dir, 0 * posterior, found=False)
    summary = findings(run_dir)
    assert summary.report is not None
    report = replace(summary.report, auroc=auroc)
    section = detector_section(run_dir, summary.model_copy(update={"report": report}))
    kinds = next(table for table in section.tables if table.key == "planted-kinds")
    shares = [row[-1].text for row in kinds.rows]
    if is_measured:
        assert section.sentences[0].startswith("Bad tokens: 0.0% (90% interval")
        assert shares == ["20.0%", "30.0%"]
        assert section.values["tokens"] is not None
    else:
        assert section.sentences == ["The share of bad tokens was not measured."]
        assert shares == ["–", "–"]
        assert section.values["tokens"] is None
        assert [kind["share"] for kind in section.values["kinds"]] == [None, None]
        assert "Bad tokens" not in section.to_markdown()


def test_the_report_has_the_section_in_all_forms(
    run_dir: Path, posterior: Any, decode: Callable[..., str]
) -> None:
    save_findings(run_dir, posterior, verdict="A <b>tenth</b> looks bad.")
    build_report(run_dir, run_dir / "report", decode=decode)
    page = layout.report_page(run_dir / "report").read_text(encoding="utf-8")
    section = page[page.index('<h2 id="detector">') :]
    section = section[: section.index("</section>")]
    assert "A &lt;b&gt;tenth&lt;/b&gt; looks bad." in section
    assert 'aria-label="Reliability diagram of 2 bins with 900 tokens' in section
    assert section.count("<table") == 4
    text = layout.results_file(run_dir / "report", "md").read_text(encoding="utf-8")
    assert "## What the detector found" in text
    assert "| garbled word | garble | 60 | 80 |" in text
    values = json.loads(layout.results_file(run_dir / "report").read_text(encoding="utf-8"))
    found = values["detector"]
    assert found["report"]["average_precision"] == 0.7
    total = sum(sum(k.values()) for k in found["bad_tokens_by_source_and_likely_kind"].values())
    assert total == pytest.approx(posterior.sum(dtype=np.float64))


def test_a_run_without_the_detector_has_no_section(
    run_dir: Path, decode: Callable[..., str]
) -> None:
    build_report(run_dir, run_dir / "report", decode=decode)
    for file in (run_dir / "report").glob("*.*"):
        if file.name != "inspector.html":
            assert "detector" not in file.read_text(encoding="utf-8").lower(), file


def test_a_posterior_of_other_tokens_is_refused(run_dir: Path, posterior: Any) -> None:
    save_findings(run_dir, posterior)
    other = findings(run_dir).model_copy(update={"fingerprint": "0"})
    with pytest.raises(InputError, match="belongs to other tokens"):
        detector_section(run_dir, other)
