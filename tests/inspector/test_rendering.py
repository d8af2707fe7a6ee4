"""Which samples the file holds, and that its data cannot leave its element."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.inspector import open_inspection, rendering
from forgetting.inspector.rendering import (
    choose_samples,
    embedded_json,
    served_page,
    static_page,
    suspected_samples,
)

Decode = Callable[..., str]


class Means:
    """As much of an inspection as the choice looks at."""

    judgment = None

    def __init__(self, mean_quality: np.ndarray, has_noise: np.ndarray) -> None:
        self.mean_quality, self.num_noisy = mean_quality, has_noise.astype(int)


def choose(mean_quality: Any, has_noise: Any, seed: int = 0) -> list[np.ndarray]:
    return list(choose_samples(Means(np.asarray(mean_quality), np.asarray(has_noise)), seed))  # type: ignore[arg-type]


def test_worst_and_best_are_chosen_and_no_row_twice() -> None:
    mean_quality = np.random.default_rng(1).normal(size=500)
    worst, best, random = choose(mean_quality, np.zeros(500, dtype=bool))
    order = np.argsort(mean_quality)
    assert worst.tolist() == order[: rendering.NUM_WORST].tolist()
    assert best.tolist() == order[::-1][: rendering.NUM_BEST].tolist()
    assert len(random) == rendering.NUM_RANDOM
    assert (
        len({*worst, *best, *random})
        == rendering.NUM_WORST + rendering.NUM_BEST + rendering.NUM_RANDOM
    )


@pytest.mark.parametrize(("share", "num_noisy"), [(0.5, 100), (0.03, 30), (1.0, 200), (0.0, 0)])
def test_half_of_the_random_samples_hold_noise(share: float, num_noisy: int) -> None:
    has_noise = np.zeros(1040, dtype=bool)
    first = rendering.NUM_WORST  # by quality: the worst, the 1,000 to draw from, the best
    has_noise[first : first + round(share * 1000)] = True
    random = choose(np.arange(1040.0), has_noise)[2]
    assert has_noise[random].sum() == num_noisy
    assert len(random) == rendering.NUM_RANDOM


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), max_size=60), st.integers(0, 9))
def test_small_corpora_are_shown_whole(mean_quality: list[float], seed: int) -> None:
    quality = np.array(mean_quality)
    rows = np.concatenate(choose(quality, quality < 0, seed))
    assert len(set(rows.tolist())) == len(rows) == np.isfinite(quality).sum()


def test_seed_chooses_the_random_samples_and_nothing_else() -> None:
    mean_quality, clean = np.random.default_rng(1).normal(size=900), np.zeros(900, dtype=bool)
    one, other = (choose(mean_quality, clean, seed) for seed in (0, 1))
    assert [rows.tolist() for rows in one[:2]] == [rows.tolist() for rows in other[:2]]
    assert one[2].tolist() != other[2].tolist()


def test_half_of_the_suspected_have_the_worst_spans() -> None:
    rng = np.random.default_rng(0)
    number, span = (rng.permutation(2000).astype(float) for _ in range(2))
    rows = suspected_samples(SimpleNamespace(expected_bad=number, worst_span=span))  # type: ignore[arg-type]
    assert len(set(rows.tolist())) == len(rows) == rendering.NUM_SUSPECTED
    assert (np.diff(number[rows]) <= 0).all()
    half = rendering.NUM_SUSPECTED // 2
    for values in (number, span):
        assert set(np.argsort(-values)[:half].tolist()) <= set(rows.tolist())
    few = suspected_samples(SimpleNamespace(expected_bad=number[:9], worst_span=span[:9]))  # type: ignore[arg-type]
    assert sorted(few.tolist()) == list(range(9))


# With the halves of surrogate pairs, which JSON files can hold as escapes.
any_text = st.text(st.characters(codec=None, exclude_categories=()))


@given(st.recursive(any_text, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner)))
def test_embedded_json_is_itself_and_holds_no_character_of_html(value: Any) -> None:
    text = embedded_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert text.encode().decode() == text
    assert json.loads(text) == value


@pytest.mark.parametrize("render", [static_page, served_page])
def test_the_policy_allows_this_style_and_script_alone(
    run_dir: Path, decode: Decode, render: Callable[[Any], str]
) -> None:
    inspection = open_inspection(run_dir, decode)
    html = render(inspection)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert rules.pop("connect-src", "'self'") == "'self'"
    assert rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    ids = re.findall(r'\sid="([^"]*)"', html.split("<script")[0])
    assert len(ids) == len(set(ids)) > 20
    assert not re.search(r"@import|url\(|\s(src|style|on\w+)=", html.split("<script")[0])


def test_hostile_text_stays_data(
    make_run: Callable[..., Path], decode: Decode, hostile: str
) -> None:
    inspection = open_inspection(make_run(source=hostile), decode)
    assert inspection is not None
    html = static_page(inspection)
    assert html.count("<script") == html.count("</script") == 2
    assert "alert(1)<" not in html
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f") & set(html)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    texts = [piece for s in json.loads(data)["samples"] for piece, _ in s["blocks"][-1]]
    assert hostile.replace("\u202e", "⟨U+202E⟩") in texts
