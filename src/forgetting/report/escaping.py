"""Text from data sets, made safe to look at.

HTML escaping is the template engine's work; here, characters that nobody sees but that change
what is seen (bidirectional marks, controls, lone surrogates) become visible placeholders.
"""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Line breaks and tabs are laid out; the two joiners are part of how some scripts are written.
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
