"""A table of texts as Markdown or LaTeX. The first columns are words, the others numbers."""

from __future__ import annotations

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
}


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
    """A LaTeX `table` for the package booktabs; arguments as for `as_markdown`."""

    def escape(text: str) -> str:
        return "".join(_LATEX.get(sign, sign) for sign in text)

    lines = [r"\begin{table}", r"\centering"]
    lines += [rf"\caption{{{escape(caption)}}}"]
    lines += [
        rf"\begin{{tabular}}{{{'l' * num_left}{'r' * (len(header) - num_left)}}}",
        r"\toprule",
    ]
    lines += [" & ".join(map(escape, header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escape, row)) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"
