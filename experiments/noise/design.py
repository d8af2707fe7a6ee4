"""Which corpora the noise benchmark makes, and which models it trains on each.

Goes in: `design.yaml` and `recipe.yaml` beside this file, and overrides. Comes out: cells, each
with a whole recipe and its variants. Trains nothing.
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
"""Whether D_ref has the noise of the corpus, or the right response to each of its questions."""
REFERENCES: tuple[ReferenceKind, ...] = get_args(ReferenceKind)
BASE = "base"
WHERE = {"references", "rates", "single_kinds"}
"""Fields of a variant that say where it is trained, not how."""
Rate = Annotated[float, Field(ge=0, le=1)]


class NoiseVariant(VariantSettings):
    """A model to train, and where."""

    oracle: bool = False
    """The negative tokens are those that are known to be noise, in place of a selection."""
    times_noise: Annotated[float, Field(gt=0)] | None = None
    """The negatives are so many times as many as there are noisy tokens, in place of 1 - rho."""
    references: list[ReferenceKind] = list(REFERENCES)
    rates: list[Rate] | None = None
    """Where it is trained; null: at all rates (a variant that needs noise: where there is some)."""
    single_kinds: bool = False
    """Whether it is also trained where the noise is of one kind."""

    @property
    def selects(self) -> bool:
        """Whether its negative tokens come from a selection."""
        return self.objective != "full" and not self.oracle

    def settings(self, share_noisy: float) -> VariantSettings:
        """The variant of a recipe, for a corpus of which this share of the tokens is noise."""
        selection = self.selection
        if self.times_noise is not None:
            rho = 1 - self.times_noise * share_noisy
            selection = selection.model_copy(update={"rho": rho, "threshold": "quantile"})
        return VariantSettings(
            objective=self.objective, selection=selection, forgetting=self.forgetting
        )

    def is_trained(self, rate: float, reference: ReferenceKind, kind: str) -> bool:
        """Whether it belongs to such a cell."""
        needs_noise = self.oracle or self.times_noise is not None
        return (
            reference in self.references
            and (self.rates is None or rate in self.rates)
            and (rate > 0 or not needs_noise)
            and (kind == ALL_KINDS or self.single_kinds)
        )


class QuickSettings(Section):
    """What `--quick` takes in place of the whole."""

    seeds: list[int]
    rates: list[Rate]
    references: list[ReferenceKind]
    single_kinds: bool
    variants: list[str]


class Benchmark(Section):
    """The benchmark as a file."""

    name: Name = "noise"
    """Of the folder: that of another name is refused."""
    title: str
    seeds: Annotated[list[int], Field(min_length=1)]
    worlds: Annotated[dict[Name, int], Field(min_length=1)]
    """Number of new entities in the corpus."""
    rates: Annotated[list[Rate], Field(min_length=1)]
    references: list[ReferenceKind] = list(REFERENCES)
    rate_of_single_kinds: Rate | None
    """Rate of the cells with noise of one kind; null: there are none."""
    variants: Annotated[dict[Name, NoiseVariant], Field(min_length=1)]
    quick: QuickSettings
    sets: list[str] = []
    """Overrides of the recipe."""

    def cells(self) -> list[Cell]:
        """Every cell, those of one seed after those of another.

        Raises:
            InputError: the recipe cannot be used with the overrides.
        """
        # One variant for each measure, so that every score is there.
        measures = {
            name: {"objective": "ignoring", "selection": {"quality": name}} for name in MEASURES
        }
        common = load_recipe(RECIPE, [*self.sets, f"variants={measures}"])
        return [cell for seed in self.seeds for cell in self._cells_of(seed, common)]

    def _cells_of(self, seed: int, common: Recipe) -> Iterator[Cell]:
        for world, rate, reference in product(self.worlds, self.rates, self.references):
            # Without noise the reference is clean as it is.
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
    """One corpus with one reference model, and what is trained on it."""

    name: str
    world: str
    rate: float
    kind: str
    """Of its noise; `all`: every kind alike."""
    reference: ReferenceKind
    seed: int
    recipe: Recipe
    """All of it but what is trained."""
    variants: Mapping[str, NoiseVariant]

    @property
    def is_clean(self) -> bool:
        """Whether D_ref has the right response to every question."""
        return self.reference == "clean"

    @property
    def trained(self) -> list[str]:
        """Names of all that is measured: the base where the corpus is new, and the variants."""
        return [*([BASE] if self.reference == "noisy" else []), *self.variants]


def load_benchmark(
    *, quick: bool = False, seeds: str | None = None, overrides: Sequence[str] = ()
) -> Benchmark:
    """The shipped benchmark.

    Args:
        quick: a part of it, in minutes.
        seeds: such as `1,2`, in place of its own.
        overrides: `section.field=value` of the recipe of all cells.

    Raises:
        InputError: no such seeds, or the recipe cannot be used with the overrides.
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
