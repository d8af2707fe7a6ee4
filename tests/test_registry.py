"""Registries: names, refusals, and entries of installed packages."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from forgetting.errors import InputError
from forgetting.registry import Registry
from tests.packages import install

GROUP = "forgetting.test_things"


@dataclass(frozen=True)
class Thing:
    name: str


@pytest.fixture
def things():
    """A registry with two built-in entries, which packages of a test reach by `sys.things`."""
    registry = Registry("thing", GROUP, [Thing("hammer"), Thing("tongs")])
    sys.things, sys.Thing = registry, Thing
    yield registry
    del sys.things, sys.Thing


def test_entries_are_found_by_name_in_order_of_registration(things):
    things.register(Thing("anvil"))
    assert list(things) == ["hammer", "tongs", "anvil"]
    assert len(things) == 3
    assert things["anvil"] == Thing("anvil")
    assert things.get("bellows") is None


def test_an_unknown_name_is_named_with_the_closest_one(things):
    with pytest.raises(InputError) as caught:
        things["hamer"]
    assert str(caught.value) == ("unknown thing 'hamer'. Did you mean hammer? Known: hammer, tongs")
    with pytest.raises(KeyError):
        things["x"]
    assert "Did you mean" not in things.unknown("x")


@pytest.mark.parametrize("name", ["", "Anvil", "an vil", "1st", "a-b", "x" * 51, None, "../x"])
def test_names_that_no_recipe_could_hold_are_refused(things, name):
    with pytest.raises(ValueError, match="cannot name a thing"):
        things.register(Thing(name))


def test_a_name_is_taken_once(things):
    with pytest.raises(ValueError, match="'tongs' is already registered"):
        things.register(Thing("tongs"))


def test_only_what_was_registered_can_be_removed(things):
    things.register(Thing("anvil"))
    things.remove("anvil")
    things.register(Thing("anvil"))
    with pytest.raises(ValueError, match="built in"):
        things.remove("tongs")
    with pytest.raises(InputError, match="unknown thing"):
        things.remove("bellows")


def register(*names):
    return "import sys\n" + "".join(f"sys.things.register(sys.Thing({n!r}))\n" for n in names)


def test_a_package_is_imported_when_its_entry_is_looked_up(things, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "smithy", {GROUP: ["anvil", "bellows"]},
            register("anvil", "bellows"))  # fmt: skip
    assert list(things) == ["hammer", "tongs", "anvil", "bellows"]
    assert "anvil" in things
    assert "smithy" not in sys.modules
    assert things["bellows"] == Thing("bellows")
    assert "smithy" in sys.modules
    assert things["anvil"] == Thing("anvil")
    assert len(things) == 4


def test_only_what_others_can_import_is_installed(things, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "smithy", {GROUP: ["anvil"]}, register("anvil"))
    things.register(Thing("bellows"))
    assert [name for name in things if things.is_installed(name)] == ["hammer", "tongs", "anvil"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nothing_of_this_name", "cannot be loaded: ModuleNotFoundError"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("pass", "registers no thing of that name"),
        (register("tongs"), "'tongs' is already registered"),
    ],
)
def test_a_broken_package_is_named_and_harms_no_other_entry(
    things, tmp_path, monkeypatch, code, reason
):
    install(tmp_path, monkeypatch, "rusty", {GROUP: ["anvil"]}, code)
    assert things["tongs"] == Thing("tongs")
    for _ in range(2):
        with pytest.raises(InputError, match=f"anvil of the package rusty .*{reason}"):
            things["anvil"]


def test_two_packages_that_declare_a_name_are_both_named(things, tmp_path, monkeypatch):
    for name in ("smithy", "forge"):
        install(tmp_path, monkeypatch, name, {GROUP: ["anvil"]}, register("anvil"))
    with pytest.raises(InputError, match="package forge and the package smithy both declare"):
        things["anvil"]
