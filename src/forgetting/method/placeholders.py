"""What forms, exports and templates leave where there is no text.

Input: a random generator. Output: a placeholder, such as "N/A" or "[insert text]". Knows nothing of
responses or labels.
"""

from __future__ import annotations

import numpy as np

_MISSING = (
    "no output",
    "no input",
    "no answer",
    "no data",
    "not applicable",
    "insert text",
    "answer here",
    "your text here",
    "to do",
    "none",
    "null",
    "nan",
    "n/a",
    "tbd",
    "missing",
    "empty",
    "unknown",
    "undefined",
    "placeholder",
)
_ENCLOSED = ("{}", "{}.", "<{}>", "[{}]", "({})", "{{{}}}", "[[{}]]", "__{}__", "<{} />")
_FILLERS = ("...", "…", "-", "--", "???", "_____", "xxx", "[...]", "[]", "{}", "<>", "#", "*")


def draw_placeholder(rng: np.random.Generator) -> str:
    """Words for missing text, in some case and brackets; one time in four, only marks."""
    if rng.random() < 0.25:
        return _FILLERS[int(rng.integers(len(_FILLERS)))]
    words = _MISSING[int(rng.integers(len(_MISSING)))]
    words = (words, words.upper(), words.capitalize(), words.title())[int(rng.integers(4))]
    words = words.replace(" ", (" ", " ", "", "_")[int(rng.integers(4))])
    return _ENCLOSED[int(rng.integers(len(_ENCLOSED)))].format(words)
