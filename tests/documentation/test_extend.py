"""The page "Extend it": its files form a package whose measure, term and format a run uses."""

from __future__ import annotations

import json
import tomllib

import pytest
import yaml

from tests.documentation.conftest import DOCS, SMALL, page_blocks
from tests.forked import run_python

pytestmark = pytest.mark.slow

SHOWN = {block.title: block.text for block in page_blocks(DOCS / "how-to" / "extend.md")}
MODULES = [name for name in SHOWN if name.startswith("tickets/")]


@pytest.fixture
def folder(tmp_path, tiny_model):
    """The files of the page, with a small model and data for the recipe."""
    for name, text in SHOWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    recipe = yaml.safe_load(SHOWN["tickets.yaml"])
    recipe["model"] = {"name_or_path": str(tiny_model)}
    for override in SMALL:
        keys, value = override.split("=")
        *sections, field = keys.split(".")
        section = recipe
        for name in sections:
            section = section.setdefault(name, {})
        section[field] = yaml.safe_load(value)
    (tmp_path / "tickets.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    records = [{"ask": f"Is {i} even?", "reply": ("Yes.", "No.")[i % 2]} for i in range(40)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "tickets.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def install(folder):
    """What pip leaves of a package for those who look for its entry points."""
    project = tomllib.loads(SHOWN["pyproject.toml"])["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head, encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_script_runs_the_recipe(folder):
    done = run_python("run.py", folder=folder)
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "tickets"
    assert (run / "report" / "index.html").is_file()
    saved = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert saved["data"]["sources"][0]["format"] == "ticket"
    # The variants inherit both.
    assert saved["selection"]["quality"] == "max_loss"
    assert saved["forgetting"]["term"] == "power"


def test_the_command_knows_the_names_of_an_installed_package(folder):
    install(folder)
    # A whole run by such names is in tests/integration/test_extensions.py.
    done = run_python("-m", "forgetting", "run", "tickets.yaml", "--dry-run", folder=folder)
    assert done.returncode == 0, done.stderr


def test_a_recipe_that_names_what_nobody_registered_is_refused(folder):
    done = run_python("-m", "forgetting", "run", "tickets.yaml", "--dry-run", folder=folder)
    assert done.returncode == 2
    assert "max_loss" in done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_an_extension_takes_ten_lines(name):
    assert len(SHOWN[name].splitlines()) <= 10


def test_there_is_an_extension_of_each_kind():
    assert len(MODULES) == 3
