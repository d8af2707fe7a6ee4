"""The site builds without a warning, loads nothing from elsewhere, and keeps to its size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer
from scipy import stats

import forgetting
from forgetting import Recipe, errors
from forgetting.cli import app
from forgetting.config.field_table import recipe_sections
from tests.documentation.conftest import DOCS, PAGES, ROOT, page_name, written

spec = spec_from_file_location("generated_pages", DOCS / "hooks" / "generated_pages.py")
assert spec is not None
generated_pages = module_from_spec(spec)
spec.loader.exec_module(generated_pages)

MAX_WORDS = 9_500
MAX_README_LINES = 150
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built(site):
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    built = {page.relative_to(site) for page in site.rglob("*.html")}
    assert built == {*pages, Path("404.html")}
    # Hooks are programs of the build, not pages.
    assert not list(site.rglob("*.py"))


class Loaded(HTMLParser):
    """The addresses from which a page loads something; links to other pages are not loaded."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        address = dict(attrs).get(LOADED.get(tag))
        if address is not None:
            self.addresses.append(address)


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        addresses = Loaded(page.read_text(encoding="utf-8")).addresses
        assert addresses
        for address in addresses:
            assert re.match(r"(?!//|\w+:)", address), f"{page.name}: {address}"
            if page.name != "404.html":
                assert (page.parent / address.split("?")[0]).exists(), f"{page.name}: {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text("utf-8")), sheet


def test_formulas_are_mathml(site):
    page = (site / "background" / "method.html").read_text(encoding="utf-8")
    source = (DOCS / "background" / "method.md").read_text(encoding="utf-8")
    displayed = source.count("\n$$\n") // 2
    inline = len(re.findall(r"\$[^$\n]+\$", source))
    assert page.count('display="block"') == displayed > 5
    assert page.count('display="inline"') == inline > 20
    assert "arithmatex" not in page
    assert "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    # The converter leaves commands that it does not know as they are.
    assert not re.search(r"\\[a-zA-Z]+", page[page.index("<article") : page.index("</article")])


def test_every_public_name_is_in_the_reference(site):
    page = (site / "reference" / "api.html").read_text(encoding="utf-8")
    for name in forgetting.__all__:
        assert f'id="forgetting.{name}"' in page, name
    for name, thing in vars(errors).items():
        if isinstance(thing, type) and thing.__module__ == errors.__name__:
            assert f'id="forgetting.errors.{name}"' in page, name


def test_every_field_of_a_recipe_is_in_the_reference(site):
    page = (site / "reference" / "recipe.html").read_text(encoding="utf-8")
    schema = Recipe.model_json_schema()
    for section in [schema, *schema["$defs"].values()]:
        names = "".join(f"<td><code>{name}</code></td>.*?" for name in section["properties"])
        assert re.search(rf"<p>{re.escape(section['description'][:20])}.*?{names}", page, re.DOTALL)


def test_every_command_and_option_is_in_the_reference(site):
    page = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    heading = r'<h2 id="forgetting-(\w+)">'
    sections = dict(re.findall(rf"{heading}(.*?)(?=<h2|</article)", page, re.DOTALL))
    commands = typer.main.get_command(app).commands
    commands = {name: each for name, each in commands.items() if not each.hidden}
    assert list(sections) == list(commands)
    for name, command in commands.items():
        for option in command.params:
            if option.param_type_name == "option":
                assert f"<code>{option.opts[0]}" in sections[name], (name, option.opts)
    # A bar between choices does not end the cell.
    assert "<code>--format parquet&#124;jsonl</code>" in sections["export"]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", written(page)):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES


def test_the_pages_are_short():
    texts = [page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md")]
    # Pages with generated parts do not count. Numbers and the lines of tables are not words.
    pages = [text.split() for text in texts if "<!-- end -->" not in text]
    words = [sum(any(map(str.isalpha, word)) for word in page) for page in pages]
    assert len(words) > len(texts) / 2
    assert sum(words) <= MAX_WORDS


@pytest.mark.parametrize("name", generated_pages.PAGES)
def test_generated_parts_are_current(name):
    page = (DOCS / "reference" / name).read_text(encoding="utf-8")
    # `make reference` writes them.
    assert page == generated_pages.generate(page)
    parts = generated_pages.PART.findall(page)
    assert parts
    assert len(parts) == page.count("<!-- end -->")


def test_generated_parts_leave_nothing_out():
    folder = DOCS / "reference"
    text = {name: (folder / name).read_text("utf-8") for name in generated_pages.PAGES}
    for name in forgetting.__all__:
        assert f"\n### {name}\n" in text["api.md"], name
        assert getattr(forgetting, name) is not None
    for section in recipe_sections().values():
        assert f"<!-- fields of {section.name} -->" in text["recipe.md"]
        assert all(f"| `{field.name}` |" in text["recipe.md"] for field in section.fields)
    for name, command in typer.main.get_command(app).commands.items():
        assert (f"\n## forgetting {name}\n" in text["commands.md"]) is not command.hidden


def test_the_readmes_figures_are_those_of_the_page():
    page = (DOCS / "background" / "when-it-does-not-help.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| all questions \(1,000\) \|(.*)$", page, re.MULTILINE)
    expected = re.findall(r"([\d.]+) \[", row)
    assert len(expected) == 6
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^\| base \|.*\n\|[-:|]+\|\n\|(.*)\|$", readme, re.MULTILINE)
    assert [cell.strip(" %") for cell in shown.split("|")] == expected


def test_the_pages_intervals_are_those_of_its_counts():
    page = (DOCS / "background" / "when-it-does-not-help.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [\w ]+ \(([\d,]+)\) \|(.*)$", page, re.MULTILINE)
    assert len(rows) == 5
    for number, row in rows:
        items = int(number.replace(",", ""))
        for value, low, high in re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", row):
            hits = round(float(value) / 100 * items)
            assert f"{100 * hits / items:.1f}" == value
            found = stats.binomtest(hits, items).proportion_ci(0.9, method="wilson")
            assert (f"{100 * found.low:.1f}", f"{100 * found.high:.1f}") == (low, high)


def test_pictures_are_small_and_shown():
    pages = [(ROOT / "README.md"), *DOCS.rglob("*.md")]
    shown = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    pictures = set(DOCS.rglob("*.png"))
    assert pictures == {path for path in shown if path.suffix == ".png"}
    assert all(picture.stat().st_size < 200_000 for picture in pictures)
