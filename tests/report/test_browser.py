"""The report in a real browser, as a file."""

from __future__ import annotations

import base64
import csv
import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forgetting.report import build_report
from tests.written_run import write_run

MINUTES = 15 * 60

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror='window.ran=1'>\"'</style><script>window.ran=1</script>\u202e"
WIDTHS = (360, 800, 1400)


@pytest.fixture(scope="module")
def url(
    tmp_path_factory: pytest.TempPathFactory,
    decode: Callable[..., str],
) -> str:
    """Address of a report whose source and tokens are hostile."""
    run = write_run(tmp_path_factory.mktemp("report") / "run", source=HOSTILE)
    build_report(run, run / "report", decode=decode)
    return (run / "report" / "index.html").as_uri()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    browser.get_log("browser")  # those of the page before
    browser.get(url)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.get("about:blank")


def emulate(page: Any, media: str, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def luminance(page: Any, selector: str, prop: str) -> float:
    """From 0 to 255, of a colour as the browser shows it."""
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    found = re.findall(r"[\d.]+", page.execute_script(script, selector, prop))
    return sum(map(float, found[:3])) / 3


def test_nothing_runs_nothing_is_asked_for_and_nothing_is_refused(page: Any) -> None:
    assert page.execute_script("return window.ran") is None
    assert page.execute_script("return document.scripts.length") == 0
    assert page.execute_script("return document.images.length") == 0
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert "<img src=x" in page.execute_script("return document.body.textContent")
    # The policy would say so had it refused a style of ours, or a script of theirs.
    assert page.get_log("browser") == []
    assert page.execute_script("return document.querySelectorAll('figure > svg[role=img]').length")


def test_the_policy_stops_what_would_run(page: Any) -> None:
    """Were text ever put on the page as HTML, nothing of it would run."""
    page.execute_script(
        "try { document.body.insertAdjacentHTML('beforeend', "
        "'<img src=x onerror=window.ran=1>') } catch (e) {}"
    )
    # The policy says so once it has refused the handler.
    deadline = time.monotonic() + MINUTES
    while not page.get_log("browser"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert page.execute_script("return window.ran") is None


def test_light_dark_and_paper(page: Any) -> None:
    for media, scheme, is_dark in (
        ("screen", "light", False),
        ("screen", "dark", True),
        ("print", "dark", False),
    ):
        emulate(page, media, scheme)
        ground = luminance(page, "body", "backgroundColor")
        ink = luminance(page, "body", "color")
        # The figures follow: their titles have the ink's colour, their axes the muted one's.
        title = luminance(page, "#training ~ .figures svg text", "fill")
        assert (ground < 60) == is_dark
        assert (ink > 200) == is_dark
        assert (title > 120) == is_dark
        assert abs(title - ground) > 90


def test_on_paper_it_takes_two_pages(page: Any) -> None:
    """With results, differences, setup and training, and without what can only be clicked."""
    shown = "return document.querySelector(arguments[0]).checkVisibility()"
    on_paper = ("#results-by-variant", "#differences", "#chosen", ".paper")
    only_on_screen = ("#worst", "#splits", "#recipe", "nav", ".csv", "details", "#tokens")
    names = (*on_paper, *only_on_screen)
    on_screen = {name: page.execute_script(shown, name) for name in names}
    assert all(on_screen[name] for name in only_on_screen)
    assert not on_screen[".paper"]
    emulate(page, "print", "light")
    printed = {name: page.execute_script(shown, name) for name in names}
    assert {name for name in names if printed[name]} == {n for n in names if n in on_paper}
    assert page.execute_script(shown, "#training ~ .figures svg")
    emulate(page, "", "light")
    # On A4, as the page says, and on the other common paper.
    for given in ({"preferCSSPageSize": True}, {"paperWidth": 8.5, "paperHeight": 11.0}):
        pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", given)["data"])
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type ?/Page\b", pdf)) == 2


def test_on_a_phone_every_cell_is_on_the_screen_and_named(page: Any) -> None:
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    cells = page.execute_script(
        "return [...document.querySelectorAll('tbody td')].map(cell => {"
        "const box = cell.getBoundingClientRect();"
        "const inside = Math.max(...[...cell.children].map(c => c.getBoundingClientRect().right));"
        "return [box.left, Math.max(box.right, inside), cell.dataset.column,"
        " getComputedStyle(cell, '::before').content]; })"
    )
    assert len(cells) > 100
    for left, right, column, before in cells:
        assert 0 <= left < right <= 400
        assert column
        assert before not in ("none", "normal")


def test_a_table_that_is_too_wide_has_a_shadow_at_its_edge(page: Any) -> None:
    metrics = {"width": 660, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide = page.execute_script(
        "return [...document.querySelectorAll('.scroll')]"
        ".filter(s => s.scrollWidth > s.clientWidth).map(s => getComputedStyle(s).backgroundImage)"
    )
    assert wide
    assert all(image.count("linear-gradient") == 4 for image in wide)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_never_wider_than_the_window(page: Any, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_everything(page: Any) -> None:
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    actions = pytest.importorskip("selenium.webdriver").ActionChains
    actions(page).send_keys(keys.TAB).perform()
    box = "const b = document.activeElement.getBoundingClientRect(); return b.left >= 0 && b.width"
    assert page.execute_script("return document.activeElement.className") == "skip"
    assert page.execute_script(box)
    actions(page).send_keys(keys.ENTER).perform()
    assert page.execute_script("return document.activeElement.id") == "main"
    seen = set()
    number = page.execute_script("return document.querySelectorAll('a, summary, .scroll').length")
    for _ in range(number):
        actions(page).send_keys(keys.TAB).perform()
        seen.add(page.execute_script("return document.activeElement.className"))
        seen.add(page.execute_script("return document.activeElement.tagName"))
        outline = "return getComputedStyle(document.activeElement).outlineStyle"
        if page.execute_script("return document.activeElement.tagName") != "BODY":
            assert page.execute_script(outline) != "none"
    assert {"A", "csv", "scroll", "SUMMARY"} <= seen


def test_a_table_is_had_as_csv(page: Any, tmp_path: Path) -> None:
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    page.find_element("css selector", "a[download='by-type.csv']").click()
    target = tmp_path / "by-type.csv"
    deadline = time.monotonic() + MINUTES
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    rows = list(csv.DictReader(io.StringIO(target.read_text(encoding="utf-8"))))
    shown = page.execute_script(
        "return [...document.querySelectorAll('[aria-labelledby=by-type] tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert len(rows) == len(shown) > 3
    for row, cells in zip(rows, shown, strict=True):
        share = f"{100 * float(row['forgetting: share']):.1f}%"
        assert [row["type"], f"{int(row['tokens']):,}", share] == [*cells[:2], cells[3]]
