"""Jinja with limits on what a template may do, because a template comes with a model.

A sandboxed environment keeps a template from the system, but not from looping for days or from
filling the memory. Here every round of a loop and every call of a macro is a step, of which there
are so many, and no text or number grows without bounds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 200_000
STEPS_PER_TURN = 1000
MAX_CHARACTERS = 100_000_000
MAX_BITS = 100_000
"""Bits of the largest number that a template may compute."""
MAX_VALUES = 1_000_000
"""Values, nested ones included, of the largest list or dictionary that may become text."""
# A width of more than seven digits, or one that is an argument, in either kind of format.
_WIDE = re.compile(r"%[-+ #0]*(\*|\.?\d{8})|\{[^{}]*(\d{8}|:[^{}]*\{)")


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
            finalize=self.printed,
        )
        self.filters.update(like.filters)
        for check, names in _CHECKED_FILTERS.items():
            for name in names:
                self.filters[name] = _checked(self.filters[name], check)
        self.globals.update(like.globals)
        # Text of any length, and another one each time.
        self.globals.pop("lipsum", None)
        self.begin(0)

    def begin(self, num_turns: int) -> None:
        """Allow a rendering the steps that a conversation of this many turns may need."""
        self.steps_left = MAX_STEPS + STEPS_PER_TURN * num_turns
        self.characters_left = MAX_CHARACTERS

    def step(self, num_characters: int) -> str:
        """Count a round of a loop, or a call of a macro, which print so much fixed text."""
        self.steps_left -= 1
        if self.steps_left < 0:
            raise LimitError(f"it takes more than {MAX_STEPS:,} steps for one conversation")
        self._count(num_characters)
        return ""

    def printed(self, value: Any) -> Any:
        """Count a value that is printed."""
        _check_nested(value)
        self._count(len(value) if isinstance(value, str) else 0)
        return value

    def _count(self, num_characters: int) -> None:
        self.characters_left -= num_characters
        if self.characters_left < 0:
            _check_size(MAX_CHARACTERS + 1)

    def joined(self, *parts: Any) -> str:
        """The texts of some values, one after the other: what `~` does."""
        _check_nested(parts)
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
        """Call a function; a method of a text or number whose result is not too large."""
        own, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(own, (str, int)):
            _check_widths((*args, *kwargs.values()))
        if isinstance(own, str) and args and name == "replace":
            _check_replaced(own, *args)
        if isinstance(own, str) and args and name == "join":
            args = (_check_joined(args[0], own), *args[1:])
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
        fixed = sum(len(part.data) for part in node.find_all(nodes.TemplateData))
        step = _call("step", [nodes.Const(fixed, lineno=node.lineno)], node.lineno)
        node.body.insert(0, nodes.Output([step], lineno=node.lineno))
        return node


def _call(name: str, arguments: list[Any], line: int) -> nodes.Call:
    method = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(method, arguments, [], None, None, lineno=line)


def _checked(function: Callable[..., Any], check: Callable[..., Any | None]) -> Callable[..., Any]:
    """A filter whose arguments are checked first.

    Args:
        check: takes what the filter is written with, and returns the first in another form or None.
    """
    passes_context = hasattr(function, "jinja_pass_arg")

    # Its attributes say what else Jinja passes, and come first.
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        begin = int(passes_context)
        value = check(*args[begin:], *kwargs.values())
        if value is not None:
            args = (*args[:begin], value, *args[begin + 1 :])
        return function(*args, **kwargs)

    return checked


def _check_filter_widths(value: Any, *others: Any) -> None:
    del value
    _check_widths(others)


def _check_parts(value: Any, *others: Any) -> None:
    del value
    for number in others:
        if isinstance(number, int) and number > MAX_STEPS:
            raise LimitError(f"it divides a list into more than {MAX_STEPS:,} parts")


def _check_text_format(value: Any, *others: Any) -> None:
    del others
    _check_format(str(value))


def _check_nested_filter(value: Any, *others: Any) -> Any:
    value = value if isinstance(value, (str, Mapping)) else _listed(value)
    _check_nested((value, *others))
    return value


def _check_joined(value: Any, separator: Any = "", *others: Any) -> list[Any]:
    """The values to join, which may be there only once."""
    del others
    values = list(value)
    _check_nested(values)
    size = sum(len(each) for each in values if isinstance(each, str))
    _check_size(size + len(values) * len(str(separator)))
    return values


def _check_replaced(text: Any, old: Any = "", new: Any = "", *others: Any) -> None:
    del others
    text, old, new = str(text), str(old), str(new)
    _check_size(len(text) + text.count(old) * (len(new) - len(old)))


_CHECKED_FILTERS: dict[Callable[..., Any], tuple[str, ...]] = {
    _check_filter_widths: ("center", "indent"),
    _check_parts: ("batch", "slice"),
    _check_text_format: ("format",),
    _check_nested_filter: ("tojson", "string", "sum", "pprint"),
    _check_joined: ("join",),
    _check_replaced: ("replace",),
}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value


def _check_nested(value: Any) -> None:
    """Refuse a value whose text would be too long, because of what is inside of it."""
    waiting, num_values, size = [value], 0, 0
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            size += len(each)
        elif isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple)):
            waiting += each
        num_values += 1
        if num_values + len(waiting) > MAX_VALUES:
            raise LimitError(f"it writes a list of more than {MAX_VALUES:,} values as text")
        _check_size(size)


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
    # Doubled braces stand for themselves.
    if _WIDE.search(text.replace("{{", "").replace("}}", "")):
        raise LimitError("it formats a value with a width of more than seven digits")
