"""The errors a user can meet.

Each carries one message: what is wrong, where, and what to do. The command line turns them into
exit codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ForgettingError(Exception):
    """Something failed although the input was right (exit code 1)."""


class InputError(ForgettingError):
    """The user's input is wrong: a recipe, a file, a model, a directory (exit code 2)."""


class TooFewSamples(InputError):
    """A corpus has fewer usable samples than its splits ask for.

    Args:
        message: what to tell the user.
        num_usable: number of usable samples.
    """

    def __init__(self, message: str, num_usable: int) -> None:
        super().__init__(message)
        self.num_usable = num_usable


class UnusableRecords(InputError):
    """The records of a source have an unknown format, or too many cannot be used.

    Args:
        problem: what is wrong, and a space or a line break.
        advice: what to do in a recipe.
    """

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}{advice}")
        self.problem = problem


class DivergenceError(ForgettingError):
    """Training diverged: its numbers no longer mean anything (exit code 1)."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question with the names that are most like a word, or "" if none is like it.

    Args:
        word: what the user wrote.
        known: the names that there are.
    """
    names = sorted(set(known))
    # A name in another case, or one that the word is the beginning of, is a near match too.
    lower = {name.lower(): name for name in reversed(names)}
    found = [name for name in names if word and name.lower().startswith(word.lower())]
    found += [lower[name] for name in get_close_matches(word.lower(), lower, n=3, cutoff=0.6)]
    found = list(dict.fromkeys(found))[:3]
    return f"Did you mean {' or '.join(found)}?" if found else ""
