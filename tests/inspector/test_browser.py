"""The page in a real browser, as a file and served."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from forgetting.auditing.decisions import read_decisions
from forgetting.data.alignment import TokenPlace
from forgetting.data.records import Record
from forgetting.formats import Message
from forgetting.inspector import (
    Inspection,
    InspectorServer,
    open_inspection,
    static_page,
)
from forgetting.inspector.queries import Query
from forgetting.rundir import layout
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, write_table
from forgetting.rundir.train_records import TrainRecord, write_records
from tests.conftest import save_findings, write_shards
from tests.written_run import write_recipe, write_run

MINUTES = 15 * 60

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
pytestmark = pytest.mark.slow
NUM_SAMPLES = 10_000
SCRIPTS = (
    "</script><script>window.ran=1</script>",
    "<img src=x onerror='window.ran=1'>",
    "\"' onmouseover=window.ran=1 x='",
    "\u202eevil\u2066\u0007\x1b[31m",
)


class ByteTokens:
    """A tokenization in which a token of a response is an ASCII character, or its end."""

    def token_places(self, record: Record) -> list[TokenPlace]:
        length = len(record.messages[-1].content)
        return [TokenPlace(1, place, place + 1) for place in range(length + 1)]


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode()


def write_audit(run: Path, num_samples: int = 120) -> Path:
    """Write what an audit leaves, with hostile records, and return its run directory."""
    rng = np.random.default_rng(0)
    run.mkdir()
    write_recipe(run, {})
    texts = [
        "".join(rng.choice(list("abc "), 20)) + SCRIPTS[1] * (i == 6) for i in range(num_samples)
    ]
    rows, records = [], []
    for i, text in enumerate(texts):
        prompt, response = [*SCRIPTS[1].encode()], [*text.encode(), ord("|")]
        rows.append(
            {
                "sample_id": i,
                "source": "mine",
                "input_ids": prompt + response,
                "labels": [-100] * len(prompt) + response,
                "noise": None,
                "noise_kind": None,
            }
        )
        messages = (Message("user", SCRIPTS[1]), Message("assistant", text))
        records.append(TrainRecord(i, "mine", "my data.jsonl", i + 1, 2 * i + 1, messages))
    samples = Samples(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    layout.data_dir(run).mkdir()
    write_table(samples.table, layout.train_file(run))
    write_records(layout.data_dir(run), records)
    size = samples.response_ids.size
    log_probs = {"base_log_probs": -rng.gamma(2, 1, size).astype(np.float32)}
    write_shards(run, samples, log_probs, (num_samples,))
    save_findings(run, rng.beta(0.3, 1, size).astype(np.float32))
    return run


class Audited(NamedTuple):
    """The page of an audit."""

    inspection: Inspection
    url: str

    def title(self, row: int) -> str:
        return f"my data.jsonl, line {self.inspection.summary(row, 0)['origin']['line']}"

    def row(self, page: Page) -> int:
        """The row that is shown."""
        line = int(page.text("title").split(" line ")[1].split(" ")[0])
        return (line - 1) // 2


class Page:
    """The inspector in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get_log("browser")  # those of the page before
        self.driver.get(url)
        self.wait("return document.querySelectorAll('.response .t').length > 0")

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def wait(self, script: str, *values: Any) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, MINUTES, 0.02).until(lambda _: self.run(script, *values))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, MINUTES, 0.02).until(lambda _: condition())

    def text(self, name: str) -> str:
        return str(self.run("return document.getElementById(arguments[0]).textContent", name))

    def wait_for_text(self, name: str, pattern: str) -> str:
        script = (
            "const t = document.getElementById(arguments[0]).textContent;"
            "return new RegExp(arguments[1]).test(t) ? t : null"
        )
        return str(self.wait(script, name, pattern))

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def set(self, name: str, value: str, event: str = "change") -> None:
        self.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(arguments[2]))",
            name,
            value,
            event,
        )

    def rows(self) -> list[int]:
        """Identities of the samples in the list."""
        script = "return [...document.querySelectorAll('#rows button')].map(b => +b.dataset.id)"
        return list(self.run(script))

    def shown(self) -> int:
        """Identity of the sample that is shown."""
        found = re.match(r"Sample (\d+)", self.text("title"))
        assert found
        return int(found[1])

    def marked(self, kind: str) -> list[int]:
        """Places of the pieces of a class in the sample that is shown."""
        script = (
            "return [...document.querySelectorAll('.response .t')].flatMap((t, i) => "
            "t.classList.contains(arguments[0]) ? [i] : [])"
        )
        return list(self.run(script, kind))

    def hover(self, place: int) -> dict[str, str]:
        """What the page says of a token."""
        token = self.driver.find_elements("css selector", ".response .t")[place]
        webdriver.ActionChains(self.driver).move_to_element(token).perform()
        return self.token()

    def token(self) -> dict[str, str]:
        script = (
            "return Object.fromEntries([...document.querySelectorAll('#token div')].map("
            "d => [d.children[0].textContent, d.children[1].textContent]))"
        )
        return dict(self.run(script))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Page]:
    yield Page(browser)
    browser.get("about:blank")  # nothing is left to do beside the tests after these


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inspector")


@pytest.fixture(scope="module")
def small(folder: Path, decode: Callable[..., str]) -> tuple[Inspection, str]:
    """An inspection, and the address of its file."""
    inspection = open_inspection(write_run(folder / "small"), decode)
    assert inspection is not None
    file = folder / "small.html"
    file.write_text(static_page(inspection), encoding="utf-8")
    return inspection, file.as_uri()


@pytest.fixture(scope="module")
def large(folder: Path, decode: Callable[..., str]) -> Iterator[tuple[Inspection, str]]:
    """An inspection of 10,000 samples, and the address where it is served."""
    inspection = open_inspection(write_run(folder / "large", num_samples=NUM_SAMPLES), decode)
    assert inspection is not None
    with InspectorServer(inspection) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield inspection, server.url
        server.shutdown()
        thread.join()


@pytest.fixture(params=["small", "large"])
def either(request: pytest.FixtureRequest, page: Page) -> Inspection:
    """The page as a file and served, freshly opened."""
    inspection, url = request.getfixturevalue(request.param)
    page.open(url)
    return inspection


def find(inspection: Inspection, **query: Any) -> list[int]:
    while True:
        rows, num_searched = inspection.find(Query(**query))
        if num_searched == len(inspection):
            return [int(row) for row in rows]


def pieces_with(sample: dict[str, Any], tokens: Any) -> list[int]:
    """Places of the pieces that hold one of these tokens."""
    lengths = [length for _, length in sample["blocks"][-1]]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return sorted(set(owner[np.asarray(tokens)].tolist()))


def test_a_token_tells_its_numbers_when_it_is_pointed_at(page: Page, either: Inspection) -> None:
    sample = either.sample(find(either)[0], 4096)
    assert page.shown() == sample["id"]
    for place in (0, 2):
        told = page.hover(place)
        assert told["id"] == str(sample["ids"][place])
        assert float(told["base"]) == pytest.approx(sample["base"][place], rel=1e-2)
        assert float(told["reference"]) == pytest.approx(sample["reference"][place], rel=1e-2)
        quality = float(told["quality"].replace("−", "-"))
        assert quality == pytest.approx(sample["quality"][place], abs=1e-3)
        rank = f"{sample['rank'][place]:,} of {len(either.quality):,}"
        assert told["rank from the worst"].startswith(rank)
    assert page.complaints() == []


def test_tokens_are_marked_as_the_run_selected(page: Page, either: Inspection) -> None:
    row = next(row for row in find(either) if either.num_noisy[row])
    page.set("sort", "position")
    page.set("sort", "worst")
    for _ in range(find(either).index(row)):
        page.press("j")
    sample = either.sample(row, 4096)
    page.wait_for_text("title", rf"^Sample {sample['id']} ")
    assert page.marked("negative") == pieces_with(sample, np.array(sample["polarity"]) < 0)
    assert page.marked("noisy") == pieces_with(sample, np.array(sample["noise"]) > 0)


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_the_slider_moves_the_marks_without_new_scores(
    page: Page, either: Inspection, rho: float
) -> None:
    sample = either.sample(find(either)[0], 4096)
    own = page.marked("negative"), page.text("figures")
    page.set("rho", str(rho), "input")
    quality = np.sort(either.quality)
    threshold = quality[len(quality) - int(np.floor(rho * len(quality) + 0.5))]
    wanted = pieces_with(sample, np.float32(sample["quality"]) < threshold)
    assert page.marked("negative") == wanted != own[0]
    noisy, dropped = either.noise > 0, either.quality < threshold
    precision, recall = (dropped & noisy).sum() / dropped.sum(), dropped[noisy].mean()
    assert f"precision {100 * precision:.1f}%, recall {100 * recall:.1f}%" in page.text("figures")
    page.driver.find_element("id", "own").click()
    assert (page.marked("negative"), page.text("figures")) == own


def test_keys_walk_through_samples_and_tokens(page: Page, either: Inspection) -> None:
    ids = page.rows()
    for keys, place in ((["j"], 1), ([Keys.ARROW_DOWN], 2), (["k"], 1), ([Keys.ARROW_UP], 0)):
        page.press(*keys)
        page.wait_for_text("title", rf"^Sample {ids[place]} ")
    sample = either.sample(find(either)[0], 4096)
    page.press(Keys.ARROW_RIGHT)
    assert page.token()["id"] == str(sample["ids"][0])
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.token()["id"] == str(sample["ids"][1])
    assert page.run("return document.activeElement.classList.contains('t')")
    page.press("/")
    page.press("jk")  # letters in a field are text
    assert page.run("return document.getElementById('text').value") == "jk"
    page.wait_for_text("place", "no matching sample")
    assert page.text("title") == "No matching sample"


def test_filters_and_order(page: Page, either: Inspection) -> None:
    source = either.source_names.index("addition")
    page.set("source", str(source))
    page.set("min", "0.25")
    page.set("text", "SEVEN", "input")
    page.set("sort", "best")
    rows = find(either, source=source, min_negative=0.25, text="seven", sort="best")
    assert 0 < len(rows) < len(either)
    page.wait_for_text("place", f"of {len(rows):,}$")
    wanted = [either.summary(row, 0)["id"] for row in rows[:50]]
    assert page.rows() == wanted
    assert page.shown() == wanted[0]
    page.set("rho", "0.2", "input")  # more is negative: more samples have enough of it
    rows = find(either, source=source, min_negative=0.25, text="seven", sort="best", rho=0.2)
    page.wait_for_text("place", f"of {len(rows):,}$")


@pytest.fixture(params=[(served, selects) for served in (False, True) for selects in (False, True)])
def judged(
    request: pytest.FixtureRequest, page: Page, tmp_path: Path, decode: Callable[..., str]
) -> Iterator[Inspection]:
    """A run in which the detector has run, with and without a selection, as a file and served."""
    served, selects = request.param
    run = tmp_path / "run"
    write_run(run, variants=["full", "forgetting"] if selects else ["full"])
    size = Samples.read(layout.train_file(run)).response_ids.size
    save_findings(run, np.random.default_rng(0).beta(0.3, 1, size).astype(np.float32))

    def explain(row: int, tokens: Any) -> list[list[tuple[str, float]]]:
        return [[(f"row {row}", 2.5), (f"token {token}", 0.25)] for token in tokens]

    inspection = open_inspection(run, decode, explain=explain)
    assert inspection is not None
    file = tmp_path / "judged.html"
    file.write_text(static_page(inspection), encoding="utf-8")
    server = InspectorServer(inspection)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    page.open(server.url if served else file.as_uri())
    yield inspection
    server.shutdown()
    thread.join()
    server.server_close()


def test_tokens_are_colored_by_the_posterior_and_say_why(page: Page, judged: Inspection) -> None:
    rows = find(judged, sort="bad")
    assert page.rows() == rows[:50]
    sample = judged.sample(rows[0], 4096)
    levels = [level for level in range(1, 11) for _ in page.marked(f"b{level}")]
    pieces = np.split(
        np.array(sample["posterior"]), np.cumsum([n for _, n in sample["blocks"][-1]])
    )
    wanted = [round(10 * piece.max() + 1e-9) for piece in pieces[:-1]]
    assert levels == sorted(level for level in wanted if level)
    assert page.marked("g10") == []
    worst = int(np.argmax(sample["posterior"]))
    (place,) = pieces_with(sample, [worst])
    told = page.hover(place)
    assert told["probability of being bad"] == f"{100 * sample['posterior'][worst]:.1f}%"
    assert (
        told["likely kind, if bad"]
        == ("garbled word", "answer to another question")[sample["kind"][worst]]
    )
    assert ("quality" in told) == (judged.selection.variant is not None)
    page.wait_for_text("telling", rf"row {rows[0]} \(\+2\.5\) · token {worst} \(\+0\.3\)$")
    assert f"estimate: about {sample['num_bad']:.1f} bad" in page.text("note")
    assert page.complaints() == []


def test_without_a_selection_there_is_nothing_to_slide(page: Page, judged: Inspection) -> None:
    selects = judged.selection.variant is not None
    names = ("rho", "color", "threshold", "chart")
    shown = "return arguments[0].map(name => document.getElementById(name).checkVisibility())"
    assert page.run(shown, names) == [selects, selects, not selects, not selects]
    assert page.text("figures").startswith("At or above 50%") != selects
    if selects:
        page.set("color", "quality")
        sample = judged.sample(page.shown(), 4096)
        good = sum(quality > 0.5 * judged.scale.high for quality in sample["quality"])
        assert sum(len(page.marked(f"g{level}")) for level in range(1, 11)) >= good > 0
        assert page.text("high") == f"+{judged.scale.high:.2f}"


def test_ten_thousand_samples_are_listed_a_page_at_a_time(
    page: Page, large: tuple[Inspection, str]
) -> None:
    inspection, url = large
    page.open(url)
    assert page.text("place") == "1–50 of 10,000"
    rows = find(inspection)
    for offset in (50, 100):
        page.driver.find_element("id", "on").click()
        page.wait_for_text("place", f"^{offset + 1}–")
        wanted = [inspection.summary(row, 0)["id"] for row in rows[offset : offset + 50]]
        assert page.rows() == wanted
        page.wait_for_text("title", rf"^Sample {wanted[0]} ")
    page.press("k")  # the last of the page before
    page.wait_for_text("title", rf"^Sample {rows[99]} ")
    assert page.text("place").startswith("51–100")
    asked = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked
    assert all(name.startswith(url) for name in asked)


def test_the_file_asks_for_nothing(page: Page, small: tuple[Inspection, str]) -> None:
    page.open(small[1])
    page.press("j")
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    assert page.run("return document.querySelectorAll('#rows li').length") == 50


@pytest.mark.parametrize("served", [False, True])
def test_hostile_text_is_shown_and_nothing_of_it_runs(
    page: Page, folder: Path, served: bool
) -> None:
    run = folder / f"hostile-{served}"
    write_run(run, source=SCRIPTS[0])
    write_recipe(run, {"forgetting": {}}, name=SCRIPTS[1])
    hostile = "".join(SCRIPTS)
    inspection = open_inspection(run, lambda ids: "".join(f"{hostile}{i} " for i in ids))
    assert inspection is not None
    file = folder / "hostile.html"
    file.write_text(static_page(inspection), encoding="utf-8")
    server = InspectorServer(inspection)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        page.open(server.url if served else file.as_uri())
        page.hover(0)
        second = page.rows()[1]
        page.press("j")
        page.wait_for_text("title", rf"^Sample {second} ")
        page.hover(1)
        assert SCRIPTS[1] in page.run("return document.querySelector('h1').textContent")
        assert SCRIPTS[0] in page.run("return document.getElementById('source').textContent")
        token = page.run("return document.querySelector('.response .t').textContent")
        assert token.startswith("".join(SCRIPTS[:3]) + "⟨U+202E⟩evil⟨U+2066⟩⟨U+0007⟩⟨U+001B⟩[31m")
        assert SCRIPTS[1] in page.text("token").replace("␣", " ")
        assert page.run("return window.ran") is None
        assert page.run("return document.querySelectorAll('img, iframe, object').length") == 0
        assert page.run("return document.scripts.length") == 2
        # The policy would say so had anything tried.
        assert page.complaints() == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_policy_stops_what_would_run(page: Page, small: tuple[Inspection, str]) -> None:
    """Were text ever put on the page as HTML, nothing of it would run."""
    page.open(small[1])
    page.run(
        "try { document.body.insertAdjacentHTML('beforeend', arguments[0]) } catch (e) {}"
        "try { document.body.setAttribute('onclick', 'window.ran=1') } catch (e) {}"
        "document.body.click()",
        SCRIPTS[1],
    )
    assert page.run("return window.ran") is None
    assert page.complaints() != []


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_is_wider_than_the_window(
    page: Page, small: tuple[Inspection, str], width: int
) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open(small[1])
        page.hover(0)
        assert page.run("return document.documentElement.scrollWidth") <= width
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(params=[False, True], ids=["file", "served"])
def audited(request: pytest.FixtureRequest, page: Page, tmp_path: Path) -> Iterator[Audited]:
    """The page of hostile records as a file and served, without marks."""
    inspection = open_inspection(
        write_audit(tmp_path / "run"), decode_bytes, tokenization=ByteTokens()
    )
    assert inspection is not None
    assert inspection.texts is not None
    fields = {"id": "r7", SCRIPTS[0]: "".join(SCRIPTS)}
    inspection.texts.add_fields("mine", [(7, fields)])
    file = tmp_path / "index.html"
    file.write_text(static_page(inspection), encoding="utf-8")
    server = InspectorServer(inspection)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = server.url if request.param else file.as_uri()
    page.open(url)
    page.run("localStorage.clear()")
    page.driver.refresh()
    page.open(url)
    yield Audited(inspection, url)
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_slider_counts_what_is_at_or_above_it(page: Page, audited: Audited) -> None:
    inspection = audited.inspection
    assert inspection.judgment is not None
    posterior = inspection.judgment.posterior
    samples = np.split(posterior, inspection.starts[1:-1])
    assert page.text("verdict").startswith("About half of the tokens look bad.")
    for step in ("0.3", "0.75"):
        page.set("threshold", step, "input")
        tokens = int((posterior >= np.float32(step)).sum())
        flagged = [bool((part >= np.float32(step)).any()) for part in samples]
        share = f"{100 * tokens / len(posterior):.1f}%"
        line = f"At or above {float(step):.0%}: {tokens:,} tokens ({share})"
        assert page.text("figures").startswith(line)
        assert f"in {sum(flagged):,} records" in page.text("figures")
        sample = inspection.sample(audited.row(page), 4096)
        is_bad = np.array(sample["posterior"], np.float32) >= np.float32(step)
        assert page.marked("negative") == np.flatnonzero(is_bad).tolist()
        spans = np.flatnonzero(np.diff(np.r_[0, is_bad, 0]) == 1)
        assert page.run("return document.querySelectorAll('#spans .span').length") == len(spans)
    page.set("show", "flagged")
    page.wait_for_text("place", rf"of {sum(flagged)}$")
    assert page.complaints() == []


def test_marks_survive_and_are_saved_in_the_form_that_is_read(
    page: Page, audited: Audited, tmp_path: Path
) -> None:
    inspection, url = audited
    rows = find(inspection, sort="bad")
    page.press("r")
    page.press("j")
    page.wait_for_text("title", f"^{audited.title(rows[1])}")
    page.press("e", "]", "a")  # the record, then its first span
    page.driver.get("about:blank")
    page.open(url)
    page.wait_for_text("tally", "^3 marks: 1 accepted, 1 rejected, 1 to edit$")
    pressed = "return [...document.querySelectorAll('#decide button')].map(b => b.ariaPressed)"
    page.wait(f"return ({pressed.removeprefix('return ')})[1] === 'true'")
    page.set("show", "reject")
    page.wait_for_text("place", "^1–1 of 1$")
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.driver.find_element("id", "download").click()
    file = tmp_path / "decisions.json"
    page.wait_for(file.is_file)
    found = read_decisions(file, inspection.run.fingerprint)
    first, second = (inspection.summary(row, 0) for row in rows[:2])
    assert found.of_records == {first["id"]: "reject", second["id"]: "edit"}
    (span,) = found.of_spans[second["id"]]
    sample = inspection.sample(rows[1], 4096)
    is_bad = np.array(sample["posterior"]) >= 0.5
    begin = int(np.argmax(is_bad))
    end = begin + int(np.argmin(np.r_[is_bad[begin:], False]))
    assert (span.decision, span.turn, span.span) == ("accept", 1, (begin, end))
    assert (span.file, span.line, span.row) == ("my data.jsonl", 2 * span.row - 1, second["id"] + 1)
    # Marks come back from the file.
    page.run("localStorage.clear()")
    page.open(url)
    page.driver.find_element("id", "file").send_keys(str(file))
    page.wait_for_text("tally", "^3 marks")
    page.press("r")  # the same mark again removes it
    page.wait_for_text("tally", "^2 marks: 1 accepted, 0 rejected, 1 to edit$")
    file.write_text(file.read_text(encoding="utf-8").replace(found.run, "0" * 64), encoding="utf-8")
    page.driver.find_element("id", "file").send_keys(str(file))
    page.wait_for_text("tally", "about another run")
    assert page.complaints() == []


def test_a_link_opens_the_same_view_and_back_goes_back(page: Page, audited: Audited) -> None:
    inspection, _ = audited
    first = page.run("return location.href")
    page.set("kind", "1")
    page.set("sort", "span")
    page.set("text", "bb", "input")
    page.set("threshold", "0.35", "input")
    rows = find(inspection, kind=1, sort="span", text="bb")
    assert 2 < len(rows) < len(find(inspection, kind=1))
    page.wait_for_text("place", f"of {len(rows)}$")
    page.wait("return /at=0.35.*text=bb/.test(location.hash)")
    page.press("j")
    page.wait_for_text("title", f"^{audited.title(rows[1])}")
    link = page.run("return location.href")
    page.driver.get("about:blank")
    page.open(link)
    page.wait_for_text("title", f"^{audited.title(rows[1])}")
    wanted = [inspection.summary(row, 0)["id"] for row in rows[:50]]
    assert page.rows() == wanted
    names = ("kind", "sort", "text", "threshold")
    values = "return arguments[0].map(name => document.getElementById(name).value)"
    assert page.run(values, names) == ["1", "span", "bb", "0.35"]
    assert page.text("figures").startswith("At or above 35%")
    page.press("j")
    page.wait_for_text("title", f"^{audited.title(rows[2])}")
    page.driver.back()
    page.wait_for_text("title", f"^{audited.title(rows[1])}")
    page.driver.forward()
    page.wait_for_text("title", f"^{audited.title(rows[2])}")
    # A record that its filters leave out, and fields that are not valid.
    page.driver.get("about:blank")
    page.open(f"{first.split('#')[0]}#record={rows[0]}&kind=0&order=x&at=7&source=99&min=x")
    page.wait_for_text("title", f"^{audited.title(rows[0])}")
    assert page.run(values, names) == ["0", "bad", "", "0.5"]
    assert page.complaints() == []


def test_another_measure_shows_the_same_record_and_keeps_the_marks(
    page: Page, audited: Audited
) -> None:
    if audited.url.startswith("file:"):
        assert not page.run("return document.getElementById('measure')")
        return
    inspection = audited.inspection
    options = "return [...document.querySelectorAll('#measure option')].map((o) => o.value)"
    assert set(page.run(options)) == {"base_loss", "detector"} == set(inspection.measures)
    row = audited.row(page)
    page.press("r")
    page.wait_for_text("tally", "1 rejected")
    page.set("measure", "base_loss")
    page.wait(
        "return location.search === '?measure=base_loss' && document.readyState === 'complete'"
    )
    page.wait("return document.querySelectorAll('.response .t').length > 0")
    assert audited.row(page) == row
    assert "1 rejected" in page.text("tally")
    assert page.run("return document.getElementById('sort').value") == "worst"
    other = inspection.measured_by("base_loss")
    worst = [audited.title(each).split(", ")[1] for each in find(other, sort="worst")[:3]]
    listed = (
        "return [...document.querySelectorAll('#rows b')].slice(0, 3).map((b) => b.textContent)"
    )
    assert page.run(listed) == worst
    mean = f"{abs(other.mean_quality[row]):.3f}"
    assert page.text("note").startswith(f"mean quality −{mean}")
    assert page.complaints() == []


def test_hostile_records_are_shown_as_text(page: Page, audited: Audited) -> None:
    page.set("text", "id: r7", "input")
    page.wait_for_text("place", "^1–1 of 1$")
    page.wait("return location.hash.includes('record=6&text=')")
    assert page.text("title") == "my data.jsonl, line 13 · mine"
    told = page.text("record")
    assert told.startswith("idr7" + SCRIPTS[0])
    assert "⟨U+202E⟩evil" in told
    assert page.text("blocks").startswith(f"user\n{SCRIPTS[1]}")
    page.press("]", "e")
    page.wait_for_text("tally", "1 to edit$")
    assert page.run("return window.ran") is None
    assert page.run("return document.querySelectorAll('img, iframe, object').length") == 0
    assert page.complaints() == []


def test_the_answer_is_near_the_top_of_a_small_screen(page: Page, audited: Audited) -> None:
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open(audited.url)
        box = "return document.querySelector('.response').getBoundingClientRect().top"
        assert page.run(box) < 500
        assert page.run("return document.documentElement.scrollWidth") <= 400
        position = "return getComputedStyle(document.querySelector('.dock')).position"
        assert page.run(position) == "static"
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
