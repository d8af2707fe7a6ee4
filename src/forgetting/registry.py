"""Named tables of choices that users can extend: measures, terms, formats.

A `Registry` maps a name to an entry: what it is in words, what it needs, and the function. Entries
come from three places: the package itself, a call of `register` in the running program, and the
entry points of installed packages. An entry point names a module whose import registers the entry,
so a package registers its entries with the same call as a script. Knows nothing of what the
entries do.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TypeVar

from forgetting.errors import InputError

NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")


class Entry(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """The name that recipes use."""


EntryT = TypeVar("EntryT", bound=Entry)


class UnknownName(InputError, KeyError):
    """A registry has no entry of this name."""

    # KeyError would show the message in quotes.
    __str__ = Exception.__str__


class Registry(Mapping[str, EntryT]):
    """A mapping from names to entries, in order of registration.

    Listing the names imports nothing. An installed package is imported when one of its entries is
    first looked up.

    Args:
        kind: what an entry is called in messages, such as "measure".
        group: entry-point group of installed packages, such as "forgetting.measures".
        entries: the built-in entries.
    """

    def __init__(self, kind: str, group: str, entries: Iterable[EntryT] = ()) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, EntryT] = {}
        for entry in entries:
            self.register(entry)
        self.built_in = tuple(self._entries.values())
        """Entries of the package itself."""

    @property
    def loaded(self) -> tuple[EntryT, ...]:
        """Entries in memory: without those of packages that have not been imported yet."""
        return tuple(self._entries.values())

    def register(self, entry: EntryT) -> None:
        """Add an entry.

        Raises:
            ValueError: the name is malformed or taken.
        """
        if not isinstance(entry.name, str) or not NAME.fullmatch(entry.name):
            raise ValueError(
                f"{entry.name!r} cannot name a {self.kind}. Use at most 50 lowercase letters, "
                "digits and underscores, starting with a letter"
            )
        if entry.name in self._entries:
            raise ValueError(f"a {self.kind} named {entry.name!r} is already registered")
        self._entries[entry.name] = entry

    def remove(self, name: str) -> None:
        """Remove an entry that was registered, for example to register it again in a notebook.

        Raises:
            ValueError: the entry is built in.
            UnknownName: there is none.
        """
        if self._is_built_in(name):
            raise ValueError(f"the {self.kind} {name} is built in and cannot be removed")
        if self._entries.pop(name, None) is None:
            raise UnknownName(self.unknown(name))

    def __getitem__(self, name: str) -> EntryT:
        """The entry of a name.

        Raises:
            UnknownName: there is none; the message lists the names and the closest one.
            InputError: the package that declares it is broken; the message names the package.
        """
        if name not in self._entries:
            declared = self._declared().get(name)
            if declared is None:
                raise UnknownName(self.unknown(name))
            self._load(name, declared)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._entries, *(n for n in self._declared() if n not in self._entries)])

    def __len__(self) -> int:
        return len({*self._entries, *self._declared()})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._declared()

    def unknown(self, name: object) -> str:
        """The message for a name that is not registered."""
        closest = difflib.get_close_matches(str(name), list(self), n=1)
        hint = f" Did you mean {closest[0]}?" if closest else ""
        return f"unknown {self.kind} {name!r}.{hint} Known: {', '.join(self)}"

    def is_installed(self, name: str) -> bool:
        """Whether another process knows the entry as well: built in, or from a package."""
        return self._is_built_in(name) or name in self._declared()

    def _is_built_in(self, name: str) -> bool:
        return any(entry.name == name for entry in self.built_in)

    def _declared(self) -> Mapping[str, tuple[EntryPoint, ...]]:
        return _entry_points(self.group, tuple(sys.path))

    def _load(self, name: str, declared: tuple[EntryPoint, ...]) -> None:
        packages = " and ".join(sorted(_package(point) for point in declared))
        if len(declared) > 1:
            raise InputError(
                f"{packages} both declare the {self.kind} {name}. Uninstall one of them"
            )
        (point,) = declared
        what = f"the {self.kind} {name} of {packages} ({point.value})"
        try:
            point.load()
        except Exception as error:
            raise InputError(
                f"{what} cannot be loaded: {type(error).__name__}: {error}. Fix or uninstall the "
                "package"
            ) from error
        if name not in self._entries:
            raise InputError(
                f"{what} was imported, but it registers no {self.kind} of that name. Fix or "
                "uninstall the package"
            )


@functools.lru_cache(maxsize=32)
def _entry_points(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    """The declared entry points by name; read once for each state of `sys.path`."""
    del path
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=group):
        found[point.name] = (*found.get(point.name, ()), point)
    return dict(sorted(found.items()))


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist is not None else "a package"
