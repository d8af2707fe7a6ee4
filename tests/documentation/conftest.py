"""The pages, and a folder in which their examples run: stand-ins under the names that they use."""

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
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted(DOCS.rglob("*.md"))

# Instead of thousands of samples; put before the options of the page, which override them.
SMALL = (
    "data.num_reference=8",
    "data.num_train=16",
    "data.num_heldout=4",
    "data.max_length=128",
    "training.batch_size=8",
    "training.gradient_checkpointing=false",
    "training.lora.rank=4",
)


def page_name(page: Path) -> str:
    """A page's path from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


GENERATED = re.compile(r"(<!-- .*? -->)\n.*?<!-- end -->", re.DOTALL)


def written(page: Path) -> str:
    """A page without its generated parts, of which only the lines are left."""
    return GENERATED.sub(
        lambda match: match[1] + "\n" * match[0].count("\n"), page.read_text(encoding="utf-8")
    )


FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str | None
    """The name of the file that the block shows."""
    text: str

    def __str__(self) -> str:
        return f"{page_name(self.page)}:{self.line}"


def page_blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    text = written(page)
    return [
        Block(
            page, text.count("\n", 0, m.start()) + 1, m["language"] or "text", m["title"], m["text"]
        )
        for m in FENCE.finditer(text)
    ]


def blocks(language: str) -> list[Block]:
    """The blocks of a language, of all pages, apart from those that show a named file."""
    return [
        block
        for page in PAGES
        for block in page_blocks(page)
        if block.language == language and block.title is None
    ]


def code_spans(page: Path) -> Iterator[str]:
    """Text between single backticks, outside of blocks."""
    text = FENCE.sub("", written(page))
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        yield " ".join(span.split())


def read_command(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a `forgetting` command as its parser reads them; runs nothing.

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
    export_run(finished_run[1], output=folder / "exports" / "demo-forgetting-data")
    (folder / "eval-data").mkdir()
    save_benchmarks(folder / "eval-data")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder
