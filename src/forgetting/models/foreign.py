"""Errors of the libraries that read models, as messages to the user.

Input: code that reads a model, a tokenizer or an adapter with a library. Output: its result, or an
`InputError` that names the file and gives the library's own sentence. A damaged or odd file makes a
library fail anywhere and with any kind of error, so all kinds are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from forgetting.console import failure_of
from forgetting.errors import InputError

MAX_CHARACTERS = 300


@contextmanager
def reading(problem: str, advice: str = "") -> Iterator[None]:
    """Turn whatever a library raises into a message.

    Args:
        problem: which file, and what could not be done with it.
        advice: what to do, a sentence.

    Raises:
        InputError: `problem`, the library's sentence, and `advice`. What the command line explains
            by itself, such as a full disk, and what is out of memory pass through.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if failure_of(error) is not None:
            raise
        raise InputError(f"{problem}: {sentence(error)}{advice and f'. {advice}'}") from error


def sentence(error: Exception) -> str:
    """What an error says, on one line; with its kind if that is needed to understand it."""
    text = " ".join(str(error).split())[:MAX_CHARACTERS]
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    # The whole text of these is a name or a number.
    if not text or isinstance(error, (LookupError, ArithmeticError, AttributeError)):
        return f"{type(error).__name__} {text}".rstrip()
    return text.rstrip(".")
