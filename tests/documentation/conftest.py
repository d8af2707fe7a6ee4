"""The pages, and a place where what they show can be run: stand-ins under the names they use."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from forgetting.cli import app
from forgetting.export import export_run
from tests.conftest import alpaca_records, save_tiny_model
from tests.evaluation.conftest import save_benchmarks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(language: str) -> list[Block]:
    """The blocks of a language, of all pages, in their order."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for match in fence.finditer(text)
    ]


def code_spans(page: Path) -> Iterator[str]:
    """What stands between single backticks, outside of blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        yield " ".join(span.split())


def read_command(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a command of ours, as its own parser reads them; runs nothing.

    Raises:
        click.UsageError: there is no such command or option, or an argument is missing.
    """
    group = typer.main.get_command(app)
    with group.make_context("forgetting", list(arguments)) as context:
        name, command, rest = group.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        return command.make_context(name, rest, parent=context).params


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, finished_run) -> Path:
    """A folder with the models and files that the pages name."""
    folder = tmp_path_factory.mktemp("workplace")
    for seed, name in enumerate(("Qwen/Qwen2.5-0.5B", "BASE", "REF")):
        save_tiny_model(folder / name, seed=seed)
    records = "".join(json.dumps(record) + "\n" for record in alpaca_records(60))
    (folder / "data.jsonl").write_text(records, encoding="utf-8")
    marked = [
        {"prompt": r["instruction"], "response": r["output"], "char_spans": [[0, 2]] * (i % 2)}
        for i, r in enumerate(alpaca_records(20))
    ]
    (folder / "marked.json").write_text(json.dumps(marked), encoding="utf-8")
    shutil.copytree(finished_run[1], folder / "runs" / "demo")
    export_run(finished_run[1], output=folder / "exports" / "mine-forgetting-data")
    (folder / "eval-data").mkdir()
    save_benchmarks(folder / "eval-data")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder
