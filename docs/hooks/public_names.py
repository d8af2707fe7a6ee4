"""A hook of MkDocs: what mkdocstrings makes of the public names, in place of their generated parts.

Input: a page with parts `<!-- API: PATTERN ... -->` or `<!-- errors -->` to `<!-- end -->`, see
`generated_pages`. Output: in their place, entries of mkdocstrings for the names that match. Names
are addressed as users import them, so a module can move without a change to the page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from generated_pages import MEMBERS, matching

PART = re.compile(r"<!-- (API: .+?|errors) -->\n.*?<!-- end -->", re.DOTALL)
ERRORS = (
    "::: forgetting.errors\n    options: {show_root_heading: false, show_root_toc_entry: false, "
    "show_docstring_description: false}"
)


def on_page_markdown(markdown: str, **given: Any) -> str:
    """Entries of mkdocstrings in place of every part."""
    del given
    return PART.sub(_entries, markdown)


def _entries(match: re.Match[str]) -> str:
    if match[1] == "errors":
        return ERRORS
    names = matching(match[1].removeprefix("API: ").split())
    return "\n\n".join(map(entry, names))


def entry(name: str) -> str:
    """What mkdocstrings replaces by the documentation of a name."""
    members = f"[{', '.join(MEMBERS[name])}]" if name in MEMBERS else "false"
    return f"::: forgetting.{name}\n    options: {{members: {members}}}"
