"""The report as a browser reads it: sections, escaping, determinism."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from forgetting.inspector.opening import open_inspection
from forgetting.inspector.rendering import NUM_WORST, content_policy
from forgetting.method.mixture import Component
from forgetting.report import build_report, results_table, worst_samples
from forgetting.rundir import layout
from forgetting.rundir.results import read_result, write_result
from forgetting.rundir.samples import Samples
from forgetting.rundir.selections import MixtureCurve, MixtureFit, MixtureSummary
from tests.conftest import save_findings
from tests.written_run import change_selection, write_run

Decode = Callable[..., str]
MODELS = ("base", "full", "ignoring", "forgetting")
ALL_FILES = ["index.html", "inspector.html", "results.csv", "results.json", "results.md"]


class Page(HTMLParser):
    """Tags with attributes, headings and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"<{tag}> is not closed in order"

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "h2" in self._open:
            self.headings[-1] += data


def build(run_dir: Path, decode: Decode) -> Path:
    output_dir = run_dir / "report"
    build_report(run_dir, output_dir, decode=decode)
    return output_dir


def test_report_holds_all_sections(run_dir: Path, decode: Decode) -> None:
    summary = build_report(run_dir, run_dir / "report", decode=decode)
    page = Page(run_dir / "report" / "index.html")
    assert sorted(path.name for path in summary.paths) == ALL_FILES
    assert summary.sentence in page.text
    assert page.headings == [
        "Setup",
        "Worst samples",
        "Does quality find the noise?",
        "Training",
        "Selection",
        "Answers",
        "Data",
        "Recipe",
    ]


def test_the_measure_and_the_extreme_samples_are_named(run_dir: Path, decode: Decode) -> None:
    output = build(run_dir, decode)
    page = Page(output / "index.html")
    assert "lowest mean quality (influence)" in page.text
    assert "-1.250" in page.text
    assert "2.500" in page.text
    assert "(influence): l base − l reference" in (output / "inspector.html").read_text(
        encoding="utf-8"
    )


def test_a_mixture_and_its_absence_are_shown(run_dir: Path, decode: Decode) -> None:
    points = [-2.0, 0.0, 2.0]
    part = Component(0.0, 1.0, 1.0, 2.0)
    fit = MixtureFit(0.125, part, part, -1.0, 0.5, MixtureCurve(points, points, points, points))
    change_selection(run_dir, "forgetting", mixture=MixtureSummary(fit, None))
    change_selection(run_dir, "ignoring", mixture=MixtureSummary(None, "it has one peak"))
    page = Page(build(run_dir, decode) / "index.html")
    assert "the bad component, 12.5% of the tokens" in page.text
    assert "ignoring: the fit found no second component" in page.text
    assert "it has one peak" in page.text


def test_answers_of_all_models_are_side_by_side(run_dir: Path, decode: Decode) -> None:
    output = build(run_dir, decode)
    page = Page(output / "index.html")
    text = page.text[page.text.index("Greedy answers to 4") :]
    # Of the second prompt: the response of the corpus, then every model, the base first.
    second = text[text.index("sample 7") : text.index("sample 11")]
    places = [second.index(f"{name} says <script>alert(1)") for name in MODELS]
    assert places == sorted(places)
    assert second.index("response of the corpus") < places[0]
    assert "Question 7?" in second
    assert "exact, cut" in second
    assert "chrF 62" in text[: text.index("sample 7")]
    entries = json.loads((output / "results.json").read_text(encoding="utf-8"))["answers"]
    assert [entry["sample_id"] for entry in entries] == [3, 7, 11, 20]
    assert list(entries[0]["answers"]) == list(MODELS)
    own = entries[1]["answers"]["full"]
    assert own["answer"].startswith("full says <script>")
    assert (own["chrf"], own["exact_match"], own["is_cut"]) == (0.625, True, False)


def test_two_builds_are_the_same_bytes(run_dir: Path, decode: Decode, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_report(run_dir, tmp_path / name, decode=decode, seed=3)
    for name in ALL_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_ids_are_unique_and_references_resolve(run_dir: Path, decode: Decode) -> None:
    page = Page(build(run_dir, decode) / "index.html")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 5
    references = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", page.source))
    assert references
    assert {one or other for one, other in references} <= set(ids)


def test_nothing_from_the_data_runs(
    make_run: Callable[..., Path], decode: Decode, hostile: str
) -> None:
    variants = ["full", "forgetting", "<img src=x onerror=alert(1)>"]
    page = Page(build(make_run(source=hostile, variants=variants), decode) / "index.html")
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & {
        tag for tag, _ in page.tags
    }
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert "{{7*7}}" in page.text
    shown = hostile.replace("\u202e", "⟨U+202E⟩")
    assert shown in page.text
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f") & set(
        page.source
    )


def test_page_asks_for_nothing(run_dir: Path, decode: Decode) -> None:
    page = Page(build(run_dir, decode) / "index.html")
    policies = [a["content"] for _, a in page.tags if "http-equiv" in a]
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert policies == [content_policy(style, "", is_served=False)]
    assert "'unsafe" not in policies[0]
    assert "script-src 'none'" in policies[0]
    assert not [a for _, a in page.tags if "style" in a]
    links = {a["href"] or "" for tag, a in page.tags if tag == "a"}
    # The page may be mailed, so that no file lies beside it.
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)|\ssrc=", page.source)


def remove_heldout(run_dir: Path) -> None:
    for path in run_dir.glob("evaluation/*/heldout.json"):
        path.unlink()


def remove_noise(run_dir: Path) -> None:
    for variant in ("ignoring", "forgetting"):
        change_selection(run_dir, variant, noise=None)


def keep_only(*names: str) -> Callable[[Path], None]:
    def remove(run_dir: Path) -> None:
        for path in run_dir.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, decode: Decode) -> Path:
    """The report of a whole run, for tests that change nothing."""
    return build(write_run(tmp_path_factory.mktemp("whole") / "run"), decode)


@pytest.fixture(scope="module")
def whole(output: Path) -> str:
    """Text of the page of a whole run."""
    return Page(output / "index.html").text


@pytest.mark.parametrize(
    ("remove", "gone", "has_tokens"),
    [
        (remove_heldout, "exact match", True),
        (remove_noise, "Does quality find the noise?", True),
        (lambda run: shutil.rmtree(run / "selection"), "Selection", False),
        (lambda run: shutil.rmtree(run / "scores"), "Worst samples", False),
        (lambda run: shutil.rmtree(run / "models"), "Training", True),
        (lambda run: (run / "manifest.json").unlink(), "Time, tokens and memory", True),
        (keep_only("recipe.yaml"), "↑ higher is better", False),
        (keep_only("recipe.yaml", "data"), "↑ higher is better", False),
    ],
)
def test_missing_parts_leave_their_section_out(
    run_dir: Path,
    decode: Decode,
    remove: Callable[[Path], Any],
    gone: str,
    has_tokens: bool,
    whole: str,
) -> None:
    assert gone in whole
    remove(run_dir)
    output_dir = build(run_dir, decode)
    page = Page(output_dir / "index.html")
    assert gone not in page.text
    assert "Recipe" in page.headings
    assert (output_dir / "inspector.html").exists() == has_tokens
    assert ("inspector.html" in page.source) == has_tokens


def test_run_with_only_the_full_variant(make_run: Callable[..., Path], decode: Decode) -> None:
    page = Page(build(make_run(variants=["full"]), decode) / "index.html")
    assert "full tokens" not in page.text
    assert "training on all tokens is 54.4 points above the base model" in page.text
    assert page.headings == ["Setup", "Training", "Answers", "Data", "Recipe"]


def test_stages_are_in_the_order_of_a_run(run_dir: Path, decode: Decode) -> None:
    text = Page(build(run_dir, decode) / "index.html").text
    table = text[text.index("Time, tokens and memory") :]
    table = table[: table.index("total")]
    stages = ["prepare", "reference", "score", "select:forgetting", "train:full", "evaluate:full"]
    places = [table.index(stage) for stage in stages]
    assert places == sorted(places)
    assert "report" not in table


def test_every_table_is_there_as_csv(run_dir: Path, decode: Decode) -> None:
    """Each link holds a line for each row that is shown, named alike, and its numbers."""
    page = Page(build(run_dir, decode) / "index.html")
    source = page.source
    links = [a["href"] or "" for tag, a in page.tags if tag == "a" and a.get("class") == "csv"]
    tables = re.findall(r"<table.*?</table>", source, flags=re.DOTALL)
    assert len(tables) == len(links) > 10
    for table, link in zip(tables, links, strict=True):
        csv_rows = list(csv.reader(io.StringIO(unquote(link.partition(",")[2]))))
        body = table[table.index("<tbody>") :]
        heads = [unescape(h) for h in re.findall(r'<th scope="row">(.*?)</th>', body, re.DOTALL)]
        assert len(csv_rows) - 1 == len(heads) == body.count("<tr>")
        assert len({len(row) for row in csv_rows}) == 1
        for head, row in zip(heads, csv_rows[1:], strict=True):
            # The first cell is what names the row, but for the results, where three do.
            assert head == row[0] or "<small>" in body


def test_a_variant_that_is_not_significantly_best_is_not_marked(
    run_dir: Path, decode: Decode
) -> None:
    """0.75 against 0.744 with errors of 0.018 is no difference; 0.8 against 0.744 is one."""
    assert "<strong>" not in (build(run_dir, decode) / "index.html").read_text(encoding="utf-8")
    folder = layout.evaluation_dir(run_dir, "ignoring")
    result = read_result(layout.result_file(folder, "heldout"))
    result.metrics["exact_match"].value = 0.8
    write_result(folder, "ignoring", result)
    marked = re.findall(
        r"<strong>(.*?)</strong>", (build(run_dir, decode) / "index.html").read_text("utf-8")
    )
    assert marked == ["80.0"]


def test_a_recipe_that_is_not_read_is_shown_all_the_same(run_dir: Path, decode: Decode) -> None:
    assert "“forgetting” learns the best 70%" in Page(build(run_dir, decode) / "index.html").text
    (run_dir / "recipe.yaml").write_text("{name: demo, from_the_future: 1}")
    page = Page(build(run_dir, decode) / "index.html")
    assert "from_the_future" in page.text
    assert "learns the best" not in page.text


def test_the_results_are_in_the_page_as_files(output: Path) -> None:
    page = Page(output / "index.html")
    files = {a["download"]: a["href"] or "" for tag, a in page.tags if "download" in a}
    for name in ("results.csv", "results.json", "results.md"):
        kind, _, text = files[name].partition(",")
        assert re.fullmatch(r"data:[a-z/]+;charset=utf-8", kind)
        assert unquote(text) == (output / name).read_text(encoding="utf-8")


def test_differences_from_full_are_a_table_and_a_figure(output: Path) -> None:
    page = Page(output / "index.html")
    table = results_table(output.parent)
    assert table.headline is not None
    found = table.difference("forgetting", table.headline)
    assert found is not None
    assert found.num_pairs == 80
    assert "Minus full, paired" in page.text
    value, _, interval = table.headline.difference(found).partition(" ")
    assert f"{value}<small> {interval}</small>" in page.source
    # In the figure, the untrained base is left out: it is no choice.
    assert "exact match minus full (points), right is better" in page.text
    figure = page.source[page.source.index("results-bars") :].split("</figure>")[0]
    assert table.headline.difference(found) in figure
    assert re.findall(r"</svg>(\w+)</li>", figure) == ["ignoring", "forgetting"]


def test_without_pairs_the_values_are_drawn(run_dir: Path, decode: Decode) -> None:
    for file in run_dir.glob("evaluation/*/heldout.parquet"):
        file.unlink()
    page = Page(build(run_dir, decode) / "index.html")
    assert "Minus full" not in page.text
    assert "held-out: exact match (%)" in page.text


def test_the_worst_samples_are_shown_as_text(
    make_run: Callable[..., Path], decode: Decode, hostile: str
) -> None:
    run = make_run(source=hostile)
    page = Page(build(run, decode) / "index.html")
    table = page.source[page.source.index('aria-labelledby="worst"') :]
    table = table[: table.index("</table>")]
    rows = table.split("<tr>")[2:]
    assert len(rows) == NUM_WORST
    means = [float(re.findall('"mean quality"><span>(.*?)<', row)[0]) for row in rows]
    assert means == sorted(means)
    assert all("Question: what?" in row for row in rows)
    assert any("<mark>" in row for row in rows)
    # The text of tokens is hostile, too.
    assert "&lt;script&gt;alert(1)" in table
    assert "<script" not in table


def test_a_long_prompt_and_a_long_response_are_cut() -> None:
    sample = {
        "blocks": ["a" * 300 + " the end", [["one", 1], [" two", 1], [" three", 2]], " more "],
        "polarity": [1, -1, 1, 0],
        "posterior": [0.1, 0.5, 0.6, 0.4],
        "num_left_out": 5,
    }
    prompt = worst_samples.shown_prompt(sample)
    assert prompt.startswith("…a")
    assert prompt.endswith("the end more")
    assert len(prompt) == worst_samples.MAX_PROMPT_CHARS
    marked = [("one", False), (" two three", True), (" …", False)]
    assert worst_samples.shown_response(sample, by_detector=False) == marked
    assert worst_samples.shown_response(sample, by_detector=True) == marked
    assert worst_samples.shown_prompt({"blocks": ["Hi\n there"]}) == "Hi there"


def test_samples_that_nothing_tells_apart_are_not_called_the_worst(
    make_run: Callable[..., Path], decode: Decode
) -> None:
    run = make_run(variants=["full"])
    size = Samples.read(layout.train_file(run)).response_ids.size
    posterior = np.zeros(size, np.float32)
    save_findings(run, posterior, found=False, tokens=None, samples=None)
    page = Page(build(run, decode) / "index.html")
    assert "Worst samples" not in page.text
    assert "Bad tokens" not in page.text
    assert "The share of bad tokens was not measured." in page.text
    inspection = open_inspection(run, decode)
    assert inspection is not None
    # With other qualities the list is shown; the note only where a token is marked.
    inspection.mean_quality = np.linspace(0, 1, len(inspection.mean_quality))
    table = worst_samples.worst_samples(inspection)
    assert table is not None
    assert table.note == ""
    inspection.polarity[0] = -1
    table = worst_samples.worst_samples(inspection)
    assert table is not None
    assert table.note == "Marked are the tokens that are not learned."
