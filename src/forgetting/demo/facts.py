"""What is true in the demo's world: invented entities with attributes and skills.

The world is fixed: every call sees the same facts. Knows nothing about questions or texts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Literal, get_args

Kind = Literal["fact", "addition", "comparison", "yes_no"]
"""Kind of question."""
KINDS: tuple[Kind, ...] = get_args(Kind)

WORLD_SEED = 2508
NUM_ENTITIES = 160  # that the plain questions are about; the other names are of new ones

SYLLABLES = """
    Nor Bel Kal Tam Zor Fen Gri Hal Jor Lum Mir Pol Qui Ras Sol Dru Ul Ven Wim Yar
    vik dan mos ret lin gar nix bo tus wen fer zil kam pod rix sha
"""

# An attribute and its values; a value belongs to one attribute only.
VALUES = """
    color       red blue green yellow purple orange black white brown pink silver gold
    city        Ostra Belmar Cendra Dunmore Elsing Farrow Gilden Hexham Ilmen Jarva Kestrel Lorn
    job         baker pilot doctor farmer singer painter miner tailor sailor judge teacher guard
    pet         dog cat parrot rabbit turtle hamster snake goat pony ferret owl mouse
    food        rice bread soup cheese pasta apples honey beans fish corn eggs plums
    instrument  piano violin flute drum harp guitar trumpet cello organ banjo horn lute
"""
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    name: tuple(values) for name, *values in map(str.split, VALUES.strip().splitlines())
}

SKILLS = ("swim", "sing", "cook", "dance", "ski", "drive")


def _names() -> list[str]:
    first_syllables, last_syllables = map(str.split, SYLLABLES.strip().splitlines())
    return [first + last for first, last in product(first_syllables, last_syllables)]


@cache
def entities() -> tuple[str, ...]:
    """The names of the invented entities, always the same."""
    return tuple(random.Random(f"{WORLD_SEED}/entities").sample(_names(), NUM_ENTITIES))


@cache
def new_entities() -> tuple[str, ...]:
    """Names of the same syllables that no plain question or statement holds, in a fixed order."""
    known = set(entities())
    names = [name for name in _names() if name not in known]
    return tuple(random.Random(f"{WORLD_SEED}/new_entities").sample(names, len(names)))


@cache
def facts() -> dict[tuple[str, str], str]:
    """The truth: (entity, attribute) -> value."""
    return _draw_facts(entities(), random.Random(f"{WORLD_SEED}/facts"))


@cache
def popular_errors() -> dict[tuple[str, str], str]:
    """Wrong values that many believe: (entity, attribute) -> value, for a third of the facts."""
    rng = random.Random(f"{WORLD_SEED}/popular_errors")
    return {
        (entity, attribute): rng.choice(
            [value for value in ATTRIBUTES[attribute] if value != facts()[entity, attribute]]
        )
        for entity, attribute in rng.sample(list(facts()), len(facts()) // 3)
    }


@cache
def new_facts() -> dict[tuple[str, str], str]:
    """The truth about the new entities: (entity, attribute) -> value."""
    return _draw_facts(new_entities(), random.Random(f"{WORLD_SEED}/new_facts"))


def _draw_facts(names: Sequence[str], rng: random.Random) -> dict[tuple[str, str], str]:
    return {
        (name, attribute): rng.choice(values)
        for name in names
        for attribute, values in ATTRIBUTES.items()
    }


@cache
def skills() -> dict[tuple[str, str], bool]:
    """The truth: (entity, skill) -> has it. Each skill is had by half of the entities."""
    rng = random.Random(f"{WORLD_SEED}/skills")
    having = {skill: set(rng.sample(entities(), NUM_ENTITIES // 2)) for skill in SKILLS}
    return {(entity, skill): entity in having[skill] for entity in entities() for skill in SKILLS}


@cache
def new_skills() -> dict[tuple[str, str], bool]:
    """The truth about the new entities: (entity, skill) -> has it.

    Of the first two entities one has a skill, of the next two, and so on.
    """
    rng = random.Random(f"{WORLD_SEED}/new_skills")
    names = new_entities()
    has_it = {skill: [rng.random() < 0.5 for _ in names[::2]] for skill in SKILLS}
    return {
        (name, skill): has_it[skill][place // 2] ^ (place % 2 == 1)
        for place, name in enumerate(names)
        for skill in SKILLS
    }


def yes_or_no(truth: bool) -> str:
    """The answer to a question about a skill."""
    return "yes" if truth else "no"
