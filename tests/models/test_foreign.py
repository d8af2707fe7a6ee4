"""Whatever a library raises while it reads a file becomes one message."""

from __future__ import annotations

import errno

import pytest
import torch

from forgetting.errors import DivergenceError, InputError
from forgetting.models.foreign import reading


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("It is\n  wrong."), "It is wrong"),
        (KeyError("nope"), "KeyError 'nope'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError division by zero"),
        (AssertionError(), "AssertionError"),
        (AttributeError("no attribute x"), "AttributeError no attribute x"),
        (ImportError("No module named 'x'"), "No module named 'x'"),
        (RecursionError("maximum depth"), "it is nested too deeply"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), "No such file: 'a/b'"),
        (RuntimeError("x" * 1000), "x" * 300),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_every_kind_are_told_with_the_file(error, said):
    with pytest.raises(InputError) as caught, reading("model: it cannot be read", "Correct it"):
        raise error
    assert str(caught.value).startswith("model: it cannot be read: ")
    assert str(caught.value).endswith(f"{said}. Correct it")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        InputError("told already"),
        DivergenceError("told already"),
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ENAMETOOLONG, "File name too long"),
        torch.OutOfMemoryError("too large"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_explained_elsewhere_passes(error):
    with pytest.raises(type(error)) as caught, reading("model"):
        raise error
    assert caught.value is error
