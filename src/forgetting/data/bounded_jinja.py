"""Jinja with limits on what a template may do, because a template comes with a model.

A sandboxed environment keeps a template from the system, but not from looping for days or from
filling the memory. Here every round of a loop and every call of a macro is a step, of which there
are so many, and no text or number grows without bounds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 200_000
STEPS_PER_TURN = 1000
MAX_CHARACTERS = 100_000_000
MAX_BITS = 100_000
"""Of a number."""
# A width of more than seven digits, or one that is an argument, in either kind of format.
_WIDE = re.compile(r"%[-+ #0]*(\*|\.?\d{8})|\{[^{}]*\d{8}")


class LimitError(Exception):
    """A template does more than any that has an end; the text says of what."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """An environment whose templates raise `LimitError` instead of running on.

    Args:
        like: an environment, whose syntax, filters and globals this one has.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, like: ImmutableSandboxedEnvironment) -> None:
        super().__init__(
            trim_blocks=like.trim_blocks,
            lstrip_blocks=like.lstrip_blocks,
            extensions=[type(extension) for extension in like.extensions.values()],
        )
        self.filters.update(like.filters)
        for name in ("center", "indent"):
            self.filters[name] = _of_bounded_width(self.filters[name])
        self.filters["format"] = _of_bounded_format(self.filters["format"])
        self.globals.update(like.globals)
        self.steps_left = MAX_STEPS

    def begin(self, num_turns: int) -> None:
        """Allow a rendering the steps that a conversation of this many turns may need."""
        self.steps_left = MAX_STEPS + STEPS_PER_TURN * num_turns

    def step(self) -> str:
        """Count a round of a loop, or a call of a macro."""
        self.steps_left -= 1
        if self.steps_left < 0:
            raise LimitError(f"it takes more than {MAX_STEPS:,} steps for one conversation")
        return ""

    def joined(self, *parts: Any) -> str:
        """The texts of some values, one after the other: what `~` does."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counted().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute with two values whose result is not too large."""
        if operator == "+" and all(hasattr(value, "__len__") for value in (left, right)):
            _check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if hasattr(value, "__len__") and isinstance(times, int):
                    _check_size(len(value) * times)
            _check_bits(_bits(left) + _bits(right))
        elif operator == "**" and isinstance(right, int):
            _check_bits(_bits(left) * abs(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function; a method of a text with a width that is not too large."""
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_widths(args)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """As the parent, for formats without a width that is too large."""
        if isinstance(getattr(value, "__self__", None), str):
            _check_format(value.__self__)
        return super().wrap_str_format(value)


class _Counted(NodeTransformer):
    """Puts a step at the start of each loop and macro, and checks the length of joined text."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        return self._with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._with_step(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def _with_step(self, node: Any) -> Any:
        self.generic_visit(node)
        # Printed, because Jinja leaves a statement in a macro out; it prints nothing.
        node.body.insert(0, nodes.Output([_call("step", [], node.lineno)], lineno=node.lineno))
        return node


def _call(name: str, arguments: list[Any], line: int) -> nodes.Call:
    method = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(method, arguments, [], None, None, lineno=line)


def _of_bounded_width(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_widths((*args[1:], *kwargs.values()))
        return function(*args, **kwargs)

    return bounded


def _of_bounded_format(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(text: Any, *args: Any, **kwargs: Any) -> Any:
        _check_format(str(text))
        return function(text, *args, **kwargs)

    return bounded


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(number: int) -> None:
    if number > MAX_BITS:
        raise LimitError(f"it computes a number of more than {MAX_BITS:,} bits")


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise LimitError(f"it makes a text or a list of more than {MAX_CHARACTERS:,} items")


def _check_widths(values: tuple[Any, ...]) -> None:
    for value in values:
        if isinstance(value, int):
            _check_size(value)


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise LimitError("it formats a value with a width of more than seven digits")
