"""A table of texts as Markdown or LaTeX. The first columns are words, the others numbers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from forgetting.report.result_table import plain

DIVERGED = "diverged"
NO_VALUE = "–"

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    # After a line break, LaTeX would read a bracket as an argument.
    "[": "{[}",
    "]": "{]}",
}
_SIGN = re.compile(r"(?<![\w.])([-+])(?=\d)")
"""The sign of a number, which is typeset as mathematics."""


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]], num_left: int) -> str:
    """A Markdown table, without a final line break.

    Args:
        num_left: number of columns of words, which are aligned left.
    """
    lines = ["| " + " | ".join(plain(cell) for cell in header) + " |"]
    lines += ["|" + "---|" * num_left + "---:|" * (len(header) - num_left)]
    lines += ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def as_latex(
    header: Sequence[str], rows: Sequence[Sequence[str]], num_left: int, caption: str
) -> str:
    """A LaTeX `table` for the package booktabs, small and without outer margins; arguments as for
    `as_markdown`. If several columns hold words and rows with the same first word follow each
    other, it is not repeated, and space separates the groups."""

    def escape(text: str) -> str:
        return "".join(_LATEX.get(sign, sign) for sign in text)

    def number(text: str) -> str:
        parts = _SIGN.split(text)
        # Every second part is a sign.
        return "".join(f"${part}$" if i % 2 else escape(part) for i, part in enumerate(parts))

    lines = [r"\begin{table}", r"\centering", r"\small", r"\setlength{\tabcolsep}{4pt}"]
    lines += [rf"\caption{{{escape(caption)}}}"]
    alignment = "l" * num_left + "r" * (len(header) - num_left)
    lines += [rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}", r"\toprule"]
    lines += [" & ".join(map(escape, header)) + r" \\", r"\midrule"]
    num_groups = len([word for word, _ in itertools.groupby(row[0] for row in rows)])
    is_grouped = num_left > 1 and num_groups == len({row[0] for row in rows}) < len(rows)
    last = None
    for row in rows:
        is_first = row[0] != last
        if is_grouped and is_first and last is not None:
            lines.append(r"\addlinespace")
        words = [*map(escape, row[:num_left])]
        if is_grouped and not is_first:
            words[0] = ""
        lines.append(" & ".join([*words, *map(number, row[num_left:])]) + r" \\")
        last = row[0]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"
