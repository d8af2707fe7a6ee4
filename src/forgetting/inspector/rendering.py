"""The inspector's page: one front end that holds its samples or asks a server for them.

Input: an `Inspection`. Output: HTML with inline style and script and a content security policy
that allows nothing else. The data is JSON that cannot close its script element; the script inserts
it as text. Knows nothing of run directories.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from forgetting.inspector.colors import COLOR_LEVELS
from forgetting.inspector.corpus import LIKELY_BAD, Inspection, Ints
from forgetting.inspector.overview import whole
from forgetting.method.measures import DETECTOR
from forgetting.rundir.storage import json_text

NUM_WORST, NUM_BEST, NUM_RANDOM = 20, 20, 200
NUM_SUSPECTED = 500
"""Samples of a page without a selection, which is for looking at what is suspected."""
# With 240 whole samples of 2,048 tokens, the page would have 100 MB.
MAX_TOKENS_IN_FILE = 512
MAX_EXPLAINED = 200
"""Tokens of the file whose telling features are in it; each costs tens of milliseconds."""
SCRIPTS = (
    *("basics", "spans", "marks", "address", "sources", "chart"),
    *("list", "sample", "decisions", "token", "inspector"),
)
"""Parts of the script, in order; a page that is mailed can load none."""


def static_page(inspection: Inspection, seed: int = 0) -> str:
    """The page as one file: with the worst, the best and random samples or, without a selection,
    with the samples that are suspected most.

    Args:
        inspection: the corpus.
        seed: for the choice of random samples. The same run and seed give the same bytes.
    """
    facts = whole(inspection)
    if inspection.selection.variant is None:
        rows = suspected_samples(inspection)
        if len(rows) < len(inspection):
            facts["about"] += (
                f" This page holds the {len(rows)} most suspicious records; "
                "forgetting inspect shows all."
            )
    else:
        chosen = choose_samples(inspection, seed)
        rows = np.concatenate(chosen)
        worst, best, random = (len(rows) for rows in chosen)
        facts["about"] += (
            f" This page has the {worst} worst, the {best} best and {random} random samples; "
            "forgetting inspect shows all samples."
        )
    samples = [inspection.sample(int(row), MAX_TOKENS_IN_FILE) for row in rows]
    _explain(inspection, samples)
    return _render({**facts, "samples": samples}, is_served=False)


def _explain(inspection: Inspection, samples: Sequence[dict[str, Any]]) -> None:
    """Add the telling features of the tokens that are most likely bad."""
    if inspection.explain is None:
        return
    found = [
        (-posterior, place, token)
        for place, sample in enumerate(samples)
        for token, posterior in enumerate(sample["posterior"])
        if posterior >= LIKELY_BAD
    ]
    tokens_of: dict[int, list[int]] = {}
    for _, place, token in sorted(found)[:MAX_EXPLAINED]:
        tokens_of.setdefault(place, []).append(token)
    # In the order of the corpus, because features are read a shard at a time.
    for place in sorted(tokens_of, key=lambda place: samples[place]["row"]):
        sample, tokens = samples[place], tokens_of[place]
        told = inspection.telling(sample["row"], tokens)
        sample["telling"] = dict(zip(map(str, tokens), told, strict=True))


def served_page(inspection: Inspection) -> str:
    """The page that asks its server for samples."""
    return _render({**whole(inspection), "samples": None}, is_served=True)


def suspected_samples(inspection: Inspection) -> Ints:
    """Rows of the samples that are suspected most, most suspicious first.

    Half are those with the most bad tokens. The others have the worst spans, so that a short bad
    record is among them; then again those with the most bad tokens.
    """
    by_number, by_span = (
        np.argsort(-values, kind="stable")
        for values in (inspection.expected_bad, inspection.worst_span)
    )
    half = NUM_SUSPECTED // 2
    chosen = dict.fromkeys([*by_number[:half], *by_span[:half], *by_number])
    kept = np.fromiter(chosen, np.int64)[:NUM_SUSPECTED]
    return kept[np.argsort(-inspection.expected_bad[kept], kind="stable")]


def ranked_samples(inspection: Inspection) -> Ints:
    """Rows of the samples with response tokens, worst first: those with the most bad tokens or,
    where the detector found nothing, with the lowest mean quality."""
    goodness = inspection.mean_quality
    if inspection.judgment is not None and inspection.judgment.is_shown:
        goodness = -inspection.expected_bad
    order = np.argsort(goodness, kind="stable")
    return order[np.isfinite(inspection.mean_quality[order])]


def choose_samples(inspection: Inspection, seed: int) -> tuple[Ints, Ints, Ints]:
    """Rows of the worst, the best and random samples, without repetition.

    The worst have the lowest mean quality or, where the detector found something, the most bad
    tokens.

    If noise is known, half of the random samples have noisy tokens, if there are enough of them.
    """
    has_noise = inspection.num_noisy > 0
    order = ranked_samples(inspection)
    worst, rest = order[:NUM_WORST], order[NUM_WORST:]
    best, rest = rest[::-1][:NUM_BEST], rest[: max(len(rest) - NUM_BEST, 0)]
    shuffled = np.random.default_rng(seed).permutation(np.sort(rest))
    noisy, clean = shuffled[has_noise[shuffled]], shuffled[~has_noise[shuffled]]
    num_noisy = min(len(noisy), max(NUM_RANDOM // 2, NUM_RANDOM - len(clean)))
    random = np.sort(np.concatenate([noisy[:num_noisy], clean[: NUM_RANDOM - num_noisy]]))
    return worst, best, random


def content_policy(style: str, script: str, *, is_served: bool) -> str:
    """A policy that allows only this style, this script and the page's own server.

    Args:
        script: may be empty.
        is_served: whether the page has a server.
    """
    rules = [
        "default-src 'none'",
        f"style-src {_hash(style)}",
        f"script-src {_hash(script)}" if script else "script-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    ]
    if is_served:
        rules.append("connect-src 'self'")
    return "; ".join(rules)


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("forgetting.inspector"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _style() -> str:
    return _templates().get_template("inspector.css").render(levels=COLOR_LEVELS)


def served_policy() -> str:
    """The policy of the served page as a header. Only there, it can say that no page frames it."""
    rules = content_policy(_style(), _script(), is_served=True)
    return f"{rules}; frame-ancestors 'none'"


def _script() -> str:
    folder = resources.files("forgetting.inspector") / "templates"
    parts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n".join(['"use strict";', "(() => {", *parts, "})();"])


def _render(data: dict[str, Any], *, is_served: bool) -> str:
    style, script = _style(), _script()
    page = _templates().get_template("inspector.html")
    return page.render(
        name=data["name"],
        policy=Markup(content_policy(style, script, is_served=is_served)),
        style=Markup(style),
        script=Markup(script),
        data=Markup(embedded_json(data)),
        has_records=data["has_records"],
        has_base=data["has_base"],
        has_noise=data["noise"] is not None,
        has_selection=data["has_selection"],
        has_quality=data["has_selection"] or data["quality"] != DETECTOR,
        has_detector=data["detector"] is not None,
        measures=data["measures"] if is_served else {},
        rhos=data["rhos"],
    )


def compact_json(value: Any) -> str:
    """JSON without spaces; what is not JSON is an error."""
    return json_text(value, default=None, allow_nan=False, separators=(",", ":"))


def embedded_json(value: Any) -> str:
    """JSON without the characters that have a meaning in HTML, safe inside a script element."""
    text = compact_json(value)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
