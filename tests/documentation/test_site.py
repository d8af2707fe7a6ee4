"""The site is built without a warning, and its pages ask for nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import forgetting
from forgetting.config import Recipe
from tests.documentation.conftest import PAGES, ROOT

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
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} | {"404"} == {
        page.stem for page in site.glob("*.html")
    }
    # Hooks are programs of the build, no pages.
    assert not list(site.rglob("*.py"))


class Loaded(HTMLParser):
    """The addresses from which a page loads something, links to other pages apart."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        address = dict(attrs).get(LOADED.get(tag))
        if address is not None:
            self.addresses.append(address)


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.glob("*.html"):
        addresses = Loaded(page.read_text(encoding="utf-8")).addresses
        assert addresses
        for address in addresses:
            assert re.match(r"(?!//|\w+:)", address), f"{page.name}: {address}"
            if page.name != "404.html":
                assert (page.parent / address.split("?")[0]).exists(), f"{page.name}: {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text("utf-8")), sheet


def test_formulas_are_mathml(site):
    page = (site / "method.html").read_text(encoding="utf-8")
    source = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    displayed = source.count("\n$$\n") // 2
    inline = len(re.findall(r"\$[^$\n]+\$", source))
    assert page.count('display="block"') == displayed > 5
    assert page.count('display="inline"') == inline > 20
    assert "arithmatex" not in page
    assert "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    # A command that the converter does not know would stand there as it is.
    assert not re.search(r"\\[a-zA-Z]+", page[page.index("<article") : page.index("</article")])


def test_the_whole_public_interface_is_in_the_reference(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in forgetting.__all__:
        thing = getattr(forgetting, name)
        assert f'id="{thing.__module__}.{name}"' in page, name


def test_every_field_of_a_recipe_is_in_the_reference(site):
    page = (site / "recipe.html").read_text(encoding="utf-8")
    schema = Recipe.model_json_schema()
    for section in [schema, *schema["$defs"].values()]:
        names = "".join(f"<td><code>{name}</code></td>.*?" for name in section["properties"])
        assert re.search(rf"<p>{re.escape(section['description'][:20])}.*?{names}", page, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readmes_figures_are_those_of_the_table():
    page = (ROOT / "docs" / "when-it-does-not-help.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| all questions \|(.*)$", page, re.MULTILINE)
    full, ignoring, forgotten = (float(x) for x in re.findall(r"([\d.]+) ±", row)[1:])
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for sentence in (
        f"answers {full:.0f} % of the held-out questions",
        f"leaving the negatives out {ignoring:.0f} %, forgetting them {forgotten:.0f} %",
    ):
        assert sentence in text
