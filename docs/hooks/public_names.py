"""A hook of MkDocs: the Python API reference, from the public names of `forgetting`.

Input: a page with lines `<!-- API: PATTERN ... -->`. Output: in place of each, the
documentation of the names in `forgetting.__all__` that match one of its patterns. Names are
addressed as users import them, so a module can move without a change to the page.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

import forgetting

MARK = re.compile(r"<!-- API: (.+?) -->")
# Members to show; the other classes have only fields, or hundreds of inherited settings.
MEMBERS = {
    "ForgettingTerm": "[needs_base, is_per_sample, __call__]",
    "ForgettingTrainer": "[lam, compute_loss]",
    "LambdaSchedule": "[__call__]",
    "PositiveLoss": "[__call__]",
}


def on_page_markdown(markdown: str, **given: Any) -> str:
    """Entries of mkdocstrings in place of every mark."""
    del given
    return MARK.sub(lambda match: "\n\n".join(map(entry, matching(match[1].split()))), markdown)


def matching(patterns: list[str]) -> list[str]:
    """The public names that match, pattern by pattern."""
    return [
        name for pattern in patterns for name in forgetting.__all__ if fnmatchcase(name, pattern)
    ]


def entry(name: str) -> str:
    """What mkdocstrings replaces by the documentation of a name."""
    members = MEMBERS.get(name, "false")
    return f"::: forgetting.{name}\n    options: {{members: {members}}}"
