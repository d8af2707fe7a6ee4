"""A stage of a run, and a step: a stage applied to one part of a recipe.

A stage is data and functions, written down once as a `Stage` object. The plan, the order, what
is skipped, the commands and the dry run follow from the list `forgetting.stages.STAGES`.

`forgetting --help` imports every stage, so a stage's module imports torch, transformers, pyarrow
and the like inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from forgetting.config import Recipe
    from forgetting.rundir.directory import Work

T = TypeVar("T")
Reads = Sequence[str] | Callable[["Recipe", "str | None"], Collection[str]]
Facts = Mapping[str, int | None]
"""Numbers by their name for people; None: not known yet."""
ALL_EARLIER = ("all earlier stages",)
"""For `Stage.reads`: every stage that comes before this one in the list."""


def _one_step(recipe: Recipe) -> Sequence[str | None]:
    del recipe
    return (None,)


def _nothing_to_check(recipe: Recipe) -> None:
    del recipe


def _no_facts(step: Step, done: Mapping[str, Path]) -> Facts:
    del step, done
    return {}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run. To add one, write one of these and put it into the list."""

    name: str
    """Name in commands, in the manifest and in the report."""
    summary: str
    """One sentence for `forgetting --help`."""
    folder: str
    """Folder of the run directory that the stage writes. Steps with a part write a folder of that
    name in it."""
    reads: Reads
    """Names of the stages whose output it reads, or a function of recipe and part that returns
    them. A step with a part reads the steps of the same part and those without one. A step
    without a part reads all steps of these stages."""
    settings: Callable[[Step], Mapping[str, Any]]
    """Everything else that the result depends on: settings, checksums of files and weights. If
    it changes, the stage and all that read it run again. Values must be JSON."""
    run: Callable[[Step, Path, Work], None]
    """Does a step: reads from the run directory and writes into `work.output`. What it leaves in
    `work.path` survives a kill and is there when the step is resumed."""
    parts: Callable[[Recipe], Sequence[str | None]] = _one_step
    """The variants or folds that need a step each. Default: one step, whose part is None. Empty
    if the recipe does not need the stage."""
    check: Callable[[Recipe], None] = _nothing_to_check
    """Raises `InputError` at once for what would fail hours later, such as a missing file."""
    facts: Callable[[Step, Mapping[str, Path]], Facts] = _no_facts
    """What the dry run says of a step. Takes the folders of the finished steps by their keys.
    Must not load weights or write anything."""
    is_shared: bool = False
    """Whether all processes of `--processes` do a step together. Otherwise the first does it."""

    def step(self, recipe: Recipe, part: str | None = None) -> Step:
        """A step outside of any plan, to run the stage on its own."""
        return Step(self, recipe, part)


@dataclass(frozen=True)
class Step:
    """A stage for one part of a recipe: the unit that is done, skipped or resumed."""

    stage: Stage
    recipe: Recipe
    part: str | None = None
    """Variant or fold; None if the stage has one step."""
    inputs: tuple[str, ...] = ()
    """Keys of the steps whose outputs it reads."""
    kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What the steps of one plan share, see `once`."""

    @property
    def key(self) -> str:
        """Name of the step in the manifest, such as `train:forgetting`."""
        return self.stage.name if self.part is None else f"{self.stage.name}:{self.part}"

    @property
    def target(self) -> str:
        """Folder of the run directory that the step writes."""
        return self.stage.folder if self.part is None else f"{self.stage.folder}/{self.part}"

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Compute something once for all steps of the plan and keep it as long as the plan.

        For checksums of large weights, and for a model that several steps use.
        """
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def settings(self) -> Mapping[str, Any]:
        """What the result depends on, apart from the inputs."""
        return self.once(f"settings of {self.key}", lambda: self.stage.settings(self))

    def execute(self, run: Path, work: Work) -> None:
        """Do the step in the run directory `run`."""
        self.stage.run(self, run, work)


def plan_steps(recipe: Recipe, stages: Sequence[Stage]) -> list[Step]:
    """The steps that a recipe needs, each after the steps that it reads."""
    kept: dict[str, Any] = {}
    steps: list[Step] = []
    for stage in stages:
        earlier = list(steps)
        for part in stage.parts(recipe):
            reads = stage.reads(recipe, part) if callable(stage.reads) else stage.reads
            inputs = tuple(
                step.key
                for step in earlier
                if (reads is ALL_EARLIER or step.stage.name in reads)
                and (part is None or step.part in (None, part))
            )
            steps.append(Step(stage, recipe, part, inputs, kept))
    return steps
