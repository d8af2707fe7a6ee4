"""The design of the noise benchmark: its corpora, and the models trained on each.

In: `design.yaml` and `recipe.yaml` in this folder, and overrides. Out: cells, each with a complete
recipe and its variants. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field

from forgetting.config import (
    Name,
    Recipe,
    Section,
    SourceSettings,
    VariantSettings,
    WorldSettings,
    load_recipe,
)
from forgetting.demo.noise import NOISE_KINDS, NoiseKind
from forgetting.errors import InputError
from forgetting.method import MEASURES
from forgetting.studies import ALL_KINDS

BENCHMARK = Path(__file__).parent / "design.yaml"
RECIPE = Path(__file__).parent / "recipe.yaml"
ReferenceKind = Literal["noisy", "clean"]
"""Whether D_ref has the noise of the corpus, or the right response to every question."""
REFERENCES: tuple[ReferenceKind, ...] = get_args(ReferenceKind)
BASE = "base"
WHERE = {"references", "rates", "single_kinds"}
"""Fields of a variant that say where it is trained, not how."""
Rate = Annotated[float, Field(ge=0, le=1)]


class NoiseVariant(VariantSettings):
    """A model, and the cells in which it is trained."""

    oracle: bool = False
    """Whether the negative tokens are the known noise, instead of a selection."""
    references: list[ReferenceKind] = list(REFERENCES)
    rates: list[Rate] | None = None
    """Noise rates at which it is trained; null: all rates, or all above 0 if it needs noise."""
    single_kinds: bool = False
    """Whether it is also trained on corpora with a single kind of noise."""

    @property
    def selects(self) -> bool:
        """Whether its negative tokens come from a selection."""
        return super().selects and not self.oracle

    @property
    def settings(self) -> VariantSettings:
        """The variant of a recipe."""
        return VariantSettings(
            **{name: getattr(self, name) for name in VariantSettings.model_fields}
        )

    def is_trained(self, rate: float, reference: ReferenceKind, kind: str) -> bool:
        """Whether it is trained in a cell."""
        return (
            reference in self.references
            and (self.rates is None or rate in self.rates)
            and (rate > 0 or not self.oracle)
            and (kind == ALL_KINDS or self.single_kinds)
        )


class QuickSettings(Section):
    """The part of the benchmark that `--quick` runs."""

    seeds: list[int]
    rates: list[Rate]
    references: list[ReferenceKind]
    single_kinds: bool
    variants: list[str]


class Benchmark(Section):
    """The whole benchmark, as in `design.yaml`."""

    name: Name = "noise"
    """Name of the study. A folder of another study is refused."""
    title: str
    seeds: Annotated[list[int], Field(min_length=1)]
    worlds: Annotated[dict[Name, int], Field(min_length=1)]
    """Number of new entities, by world."""
    rates: Annotated[list[Rate], Field(min_length=1)]
    references: list[ReferenceKind] = list(REFERENCES)
    rate_of_single_kinds: Rate | None
    """Noise rate of the cells with a single kind of noise; null: no such cells."""
    variants: Annotated[dict[Name, NoiseVariant], Field(min_length=1)]
    quick: QuickSettings
    sets: list[str] = []
    """Overrides of the recipe."""

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed.

        Raises:
            InputError: the recipe cannot be used with the overrides.
        """
        # One variant per measure, so that every score is computed.
        measures = {
            name: {"objective": "ignoring", "selection": {"quality": name}} for name in MEASURES
        }
        common = load_recipe(RECIPE, [*self.sets, f"variants={measures}"])
        return [cell for seed in self.seeds for cell in self._cells_of(seed, common)]

    def _cells_of(self, seed: int, common: Recipe) -> Iterator[Cell]:
        for world, rate, reference in product(self.worlds, self.rates, self.references):
            # Without noise, the noisy reference is clean as well.
            if rate > 0 or reference == self.references[0]:
                yield self._cell(world, rate, reference, ALL_KINDS, seed, common)
        if self.rate_of_single_kinds is not None:
            for world, kind in product(self.worlds, NOISE_KINDS):
                yield self._cell(world, self.rate_of_single_kinds, "noisy", kind, seed, common)

    def _cell(
        self,
        world: str,
        rate: float,
        reference: ReferenceKind,
        kind: str,
        seed: int,
        common: Recipe,
    ) -> Cell:
        name = f"{world}-{100 * rate:g}-{kind}-{reference}-{seed}"
        kinds: list[NoiseKind] = [k for k in NOISE_KINDS if kind in (k, ALL_KINDS)]
        records = WorldSettings(
            num_records=common.data.num_samples,
            noise_rate=rate,
            noise_kinds=dict.fromkeys(kinds, 1.0),
            num_new_entities=self.worlds[world],
        )
        data = common.data.model_copy(update={"sources": [SourceSettings(world=records)]})
        chosen = {
            variant: settings
            for variant, settings in self.variants.items()
            if settings.is_trained(rate, reference, kind)
        }
        own = {"name": name, "seed": seed, "data": data}
        recipe = common.model_copy(update=own)
        return Cell(name, world, rate, kind, reference, seed, recipe, chosen)


@dataclass(frozen=True)
class Cell:
    """One corpus with one reference model, and the variants trained on it."""

    name: str
    world: str
    rate: float
    kind: str
    """Kind of noise; `all`: equal parts of every kind."""
    reference: ReferenceKind
    seed: int
    recipe: Recipe
    """The recipe, without the variants."""
    variants: Mapping[str, NoiseVariant]

    @property
    def is_clean(self) -> bool:
        """Whether D_ref has the right response to every question."""
        return self.reference == "clean"

    @property
    def trained(self) -> list[str]:
        """Names of all models that are measured: the base, once per corpus, and the variants."""
        return [*([BASE] if self.reference == "noisy" else []), *self.variants]


def load_benchmark(
    *, quick: bool = False, seeds: str | None = None, overrides: Sequence[str] = ()
) -> Benchmark:
    """Read the benchmark.

    Args:
        quick: only the part that takes minutes.
        seeds: such as `1,2`; default: the seeds in `design.yaml`.
        overrides: `section.field=value`, for the recipe of every cell.

    Raises:
        InputError: the seeds are not numbers, or the recipe cannot be used with the overrides.
    """
    given = yaml.safe_load(BENCHMARK.read_text(encoding="utf-8"))
    common = load_recipe(RECIPE, overrides)
    for variant in given["variants"].values():
        for section in ("selection", "forgetting"):
            outer = getattr(common, section).model_dump(exclude_unset=True)
            variant[section] = {**outer, **variant.get(section, {})}
    benchmark = Benchmark.model_validate(given)
    update: dict[str, Any] = {"sets": list(overrides)}
    if quick:
        part = benchmark.quick
        update |= {
            "name": f"{benchmark.name}-quick",
            "seeds": part.seeds,
            "rates": part.rates,
            "references": part.references,
            "variants": {name: benchmark.variants[name] for name in part.variants},
        }
        if not part.single_kinds:
            update["rate_of_single_kinds"] = None
    if seeds is not None:
        given_seeds = list(dict.fromkeys(seeds.split(",")))
        if not all(seed.isdecimal() for seed in given_seeds):
            raise InputError(f"--seeds {seeds}: expected whole numbers of at least 0, as in 1,2,3")
        update["seeds"] = [int(seed) for seed in given_seeds]
    return benchmark.model_copy(update=update)
