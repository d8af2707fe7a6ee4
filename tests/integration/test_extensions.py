"""A measure, a term and a data format of a user's own, from a recipe to a trained model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import forgetting
from forgetting.config import check_installed, dump_recipe
from forgetting.errors import InputError
from forgetting.method.terms import TERMS
from forgetting.pipeline import describe_plan
from tests.conftest import all_scores
from tests.packages import install

pytestmark = pytest.mark.usefixtures("registries")

# At most ten lines each, as the documentation promises.
MEASURE = """
import forgetting

def doubt(base_log_probs, base_entropy):
    return base_log_probs - 2 * base_entropy

forgetting.register_measure("doubt", doubt, columns=("base_log_probs", "base_entropy"))
"""
TERM = """
import forgetting

def margin(log_p, base_log_p, slack):
    return (log_p - base_log_p + slack).clamp(min=0)

forgetting.register_term("margin", margin, parameters={"slack": 1.0}, needs_base=True)
"""
FORMAT = """
import forgetting

def read(record):
    talk = record["talk"].split("|")
    return [forgetting.Message("user", talk[0]), forgetting.Message("assistant", talk[1])]

forgetting.register_format("talk", read, needs=("talk",))
"""
GROUPS = {
    "forgetting.measures": ["doubt"],
    "forgetting.terms": ["margin"],
    "forgetting.formats": ["talk"],
}
VARIANTS = {
    "mine": {
        "objective": "forgetting",
        "selection": {"quality": "doubt"},
        "forgetting": {"term": "margin", "slack": 2.5},
    }
}


@pytest.fixture
def recipe(tmp_path, write_recipe):
    """A recipe that names all three."""
    records = [{"talk": f"What is {i} times two?|It is {2 * i}."} for i in range(60)]
    (tmp_path / "talk.json").write_text(json.dumps([*records, {"talk": "no answer"}]))
    splits = {"num_reference": 16, "num_train": 24, "num_heldout": 8, "max_length": 128}
    source = {"path": str(tmp_path / "talk.json"), "format": "talk"}
    return write_recipe(data={"sources": [source], **splits}, variants=VARIANTS)


def run_and_check(recipe, folder):
    run = forgetting.run(recipe, folder)
    scores = all_scores(run)
    assert set(scores) >= {"base_log_probs", "base_entropy"}
    quality = scores["base_log_probs"] - 2 * scores["base_entropy"]
    summary = json.loads((run / "selection" / "mine" / "summary.json").read_text())
    assert summary["quality"] == "doubt"
    assert summary["threshold"] == pytest.approx(np.sort(quality)[summary["num_negative"]], 0.01)
    rejected = json.loads((run / "data" / "summary.json").read_text())["sources"]
    assert "the format talk raises IndexError" in json.dumps(rejected)
    return run


def test_names_registered_from_python_work_from_recipe_to_model(recipe, tmp_path):
    for code in (MEASURE, TERM, FORMAT):
        assert len([line for line in code.splitlines() if line]) <= 10
        exec(code, {})
    loaded = forgetting.load_recipe(recipe)
    assert loaded.variants["mine"].forgetting.term_parameters == {"slack": 2.5}
    assert loaded.forgetting.term_parameters == {}
    assert "select:mine" in [step.key for step in describe_plan(loaded, tmp_path / "run")]
    term, seen = TERMS["margin"], set()

    def spy(*tensors, slack):
        seen.add(slack)
        return term.value(*tensors, slack=slack)

    TERMS.remove("margin")
    TERMS.register(replace(term, value=spy))
    run = run_and_check(recipe, tmp_path / "run")
    assert seen == {2.5}
    # The run directory keeps the recipe, which comes back equal.
    assert forgetting.load_recipe(run / "recipe.yaml") == loaded
    with pytest.raises(InputError, match=r"mine.selection.quality: the measure doubt was regist"):
        check_installed(loaded)


def test_names_of_installed_packages_work_and_other_processes_know_them(
    recipe, tmp_path, monkeypatch
):
    site = install(tmp_path, monkeypatch, "my_measures", GROUPS, MEASURE + TERM + FORMAT)
    loaded = forgetting.load_recipe(recipe)
    check_installed(loaded)
    run_and_check(recipe, tmp_path / "run")
    code = f"import forgetting; r = forgetting.load_recipe({str(recipe)!r}); " + (
        "from forgetting.config import dump_recipe; print(dump_recipe(r))"
    )
    path = [str(site), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == dump_recipe(loaded).strip()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("variants.mine.selection.quality=doupt", "unknown measure 'doupt'. Did you mean doubt?"),
        ("variants.mine.forgetting.term=margn", "unknown term 'margn'. Did you mean margin?"),
        ("variants.mine.forgetting.slick=1", "slick: unknown field"),
        ("variants.mine.forgetting.slack=much", "slack: must be a finite number (got 'much')"),
        ("data.sources.0.format=tolk", "unknown format 'tolk'. Did you mean talk?"),
        (
            "selection={quality: doubt, rho: auto}",
            "by quality doubt, so threshold zero",
        ),
    ],
)
def test_mistakes_are_named_like_those_of_built_in_names(recipe, change, message):
    for code in (MEASURE, TERM, FORMAT):
        exec(code, {})
    with pytest.raises(InputError) as caught:
        forgetting.load_recipe(recipe, [change])
    assert message in str(caught.value)


def test_a_name_that_nobody_registered_is_refused_with_the_field(recipe):
    with pytest.raises(InputError, match=r"variants.mine.selection.quality: unknown measure"):
        forgetting.load_recipe(recipe)
