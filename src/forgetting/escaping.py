"""Makes text from data sets safe to look at.

The template engine escapes HTML. This module replaces characters that are invisible but change
what is shown (bidirectional marks, control characters, lone surrogates) by visible placeholders.
"""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Line breaks and tabs are laid out. Some scripts need the two joiners.
_KEPT = "\n\t\u200c\u200d"


def visible(text: str) -> str:
    """`text` with every control and formatting character shown as ⟨U+XXXX⟩."""
    return "".join(
        f"⟨U+{ord(char):04X}⟩"
        if unicodedata.category(char) in _HIDDEN and char not in _KEPT
        else char
        for char in text
    )


def shortened(text: str, length: int = 28) -> str:
    """One visible line of at most `length` characters, for labels in figures."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= length else line[: length - 1] + "…"
