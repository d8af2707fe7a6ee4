"""Nothing that was derived from other tokens is ever used or shown: each consumer refuses it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from forgetting.cli import main
from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.export import export_run
from forgetting.export.conversations import sample_quality
from forgetting.export.tokens import token_tables
from forgetting.inspecting import open_run
from forgetting.models import loading
from forgetting.pipeline import run as run_stages
from forgetting.report import build_report
from forgetting.report.counts import count_negatives
from forgetting.rundir import layout
from forgetting.rundir.reader import RunReader
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.scores import ScoredCorpus
from forgetting.rundir.selections import read_selection, selected_parts

pytestmark = pytest.mark.usefixtures("restored_logging")
COLUMNS = ("sample_id", "polarity")
STALE = "belongs to other tokens"


@pytest.fixture(scope="module")
def stale(finished_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose records were changed, after which `prepare` alone was run again.

    Every response is as long as before, so that all counts fit.
    """
    recipe = load_recipe(finished_run[0])
    folder = tmp_path_factory.mktemp("stale")
    run = Path(shutil.copytree(finished_run[1], folder / "run"))
    source = recipe.data.sources[0]
    records = json.loads(Path(str(source.path)).read_text(encoding="utf-8"))
    for record in records:
        record["output"] = record["output"].replace("number", "NUMBER")
    file = folder / "records.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    moved = source.model_copy(update={"path": str(file)})
    data = recipe.data.model_copy(update={"sources": [moved]})
    run_stages(recipe.model_copy(update={"data": data}), run, stages=["prepare"])
    return run


def decode(ids: object) -> str:
    return str(ids)


READERS = {
    "select": lambda run: list(ScoredCorpus(run).scores(["base_log_probs"])),
    "train": lambda run: list(selected_parts(run, "ignoring")),
    "train with scores": lambda run: list(selected_parts(run, "forgetting", ["base_log_probs"])),
    "summary": lambda run: read_selection(
        run, "forgetting", SampleFile(layout.train_file(run)).fingerprint
    ),
    "study": lambda run: RunReader(run).selections,
    "token counts of the report": lambda run: count_negatives(run, "forgetting", decode),
    "report": lambda run: build_report(run, run / "elsewhere", decode=decode),
    "inspector": open_run,
    "exported tokens": lambda run: list(token_tables(run, "forgetting", "influence", decode)),
    "exported records": lambda run: sample_quality(run, "forgetting", "influence"),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_what_belongs_to_other_tokens(stale: Path, name: str) -> None:
    with pytest.raises(InputError, match=STALE):
        READERS[name](stale)


@pytest.mark.parametrize("variant", ["ignoring", "forgetting"])
def test_scores_are_refused_where_the_summary_would_fit(
    stale: Path, variant: str, tmp_path: Path
) -> None:
    """The summary alone does not vouch for scores and polarity."""
    run = Path(shutil.copytree(stale, tmp_path / "run"))
    fingerprint = SampleFile(layout.train_file(run)).fingerprint
    file = layout.summary_file(layout.selection_dir(run, variant))
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r'("fingerprint": ")[0-9a-f]+', rf"\g<1>{fingerprint}", text))
    with pytest.raises(InputError, match=rf"(scores-|polarity).*{STALE}"):
        open_run(run, variant)


@pytest.mark.parametrize("stage", ["select", "train", "report"])
def test_every_stage_refuses_to_go_on(stale: Path, stage: str) -> None:
    recipe = load_recipe(layout.recipe_file(stale))
    with pytest.raises(InputError, match="is not done for this recipe"):
        run_stages(recipe, stale, stages=[stage])


def test_the_commands_refuse_it_with_exit_code_2(
    stale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(stale), "--terminal"]) == 2
    assert STALE in capsys.readouterr().err
    assert main(["export", str(stale), "--output", str(tmp_path / "out")]) == 2
    assert "is not done" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_fits_is_read(finished_run: tuple[Path, Path]) -> None:
    """The readers above refuse for no other reason."""
    run = finished_run[1]
    recipe = load_recipe(layout.recipe_file(run))
    text = loading.decoder(recipe.model)
    assert len(open_run(run)) == sum(len(part.samples) for part in selected_parts(run, "ignoring"))
    assert count_negatives(run, "forgetting", text) is not None
    assert list(RunReader(run).selections) == ["ignoring", "forgetting"]
    assert len(list(token_tables(run, "forgetting", "influence", text, COLUMNS))) == 3


@pytest.mark.parametrize("version", [0, 1])
def test_a_run_of_an_older_version_is_refused_by_all(
    finished_run: tuple[Path, Path], tmp_path: Path, version: int
) -> None:
    run = Path(shutil.copytree(finished_run[1], tmp_path / "run"))
    file = layout.manifest_file(run)
    content = json.loads(file.read_text()) | {"version": version}
    # Older versions wrote none.
    del content["checksum"]
    file.write_text(json.dumps(content))
    recipe = load_recipe(layout.recipe_file(run))
    for read in (
        lambda: open_run(run),
        lambda: build_report(run, run / "elsewhere", decode=decode),
        lambda: export_run(run, output=tmp_path / "out"),
        lambda: run_stages(recipe, run),
    ):
        with pytest.raises(InputError, match=r"older version of forgetting.*--run-dir"):
            read()
    assert json.loads(file.read_text()) == content
