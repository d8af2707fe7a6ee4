"""The errors a user can meet.

Each carries one message for a person: what is wrong, where, and what to do. Only the command
line turns them into exit codes; nothing else catches them.
"""

from __future__ import annotations


class ForgettingError(Exception):
    """Something failed while the input was right (exit code 1)."""


class InputError(ForgettingError):
    """The user's input is wrong: a recipe, a file, a model, a directory (exit code 2)."""


class TooFewSamples(InputError):
    """A corpus has fewer usable samples than its splits ask for.

    Args:
        message: for a person.
        num_usable: how many there are.
    """

    def __init__(self, message: str, num_usable: int) -> None:
        super().__init__(message)
        self.num_usable = num_usable


class DivergenceError(ForgettingError):
    """Training left the range in which its numbers mean anything (exit code 1)."""
