"""A hook of MkDocs: formulas become MathML when pages are built, so that no page needs a script.

Input: a page's HTML, with TeX in the elements that `pymdownx.arithmatex` makes of `$...$` and
`$$...$$`. Output: the same with MathML in their place.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **given: Any) -> str:
    """MathML in place of every formula of a page."""
    del given
    return FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return convert(html.unescape(match["tex"]).strip(), display=display)
