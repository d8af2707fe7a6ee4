"""Plans which tasks an evaluation runs, and averages their results over suites.

Input: the recipe's settings. Output: one `Request` per task, the suites they belong to, and,
once the tasks are measured, one result per suite: the mean over its members. Runs no task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forgetting.config import EvaluationSettings, ItemLimit
from forgetting.errors import InputError
from forgetting.evaluation.benchmarks import (
    BENCHMARKS,
    LocalItems,
    check_sentences,
    find_files,
    missing_files,
    read_items,
)
from forgetting.rundir.results import Group, Metric, TaskResult
from forgetting.rundir.storage import file_sha256

AVERAGE = "average"


class Member(BaseModel):
    """One number of a suite: a metric of a task, or its mean over several tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    tasks: Annotated[list[str], Field(min_length=1)]
    metric: str
    filter: str = "none"
    num_fewshot: int | None = None
    limit: ItemLimit | None = None
    max_context_tokens: int | None = None
    """Tokens after which the `context` of an item is cut; None: not cut."""

    @property
    def label(self) -> str:
        """Name of the metric in results."""
        return metric_label(self.metric, self.filter)


class Suite(BaseModel):
    """Tasks that are reported as one average over the suite's members."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    members: Annotated[list[Member], Field(min_length=1)]


def metric_label(metric: str, filter_name: str) -> str:
    """Name of a metric in results, with its filter if it has one."""
    return metric if filter_name == "none" else f"{metric} ({filter_name})"


@dataclass(frozen=True)
class Request:
    """A task to run, and how."""

    task: str
    num_fewshot: int | None = None
    """Examples in the prompt; None: as the task sets it."""
    limits: tuple[ItemLimit, ...] = ()
    """Each is a number of items, or a share of them below 1. The smallest applies. A task that the
    recipe lists has one; a suite's member can have that of the suite, too."""
    max_context_tokens: int | None = None
    local: bool = False
    """Whether the items are in files of `data_dir`."""

    def num_items(self, total: int) -> int:
        """How many of the task's `total` items are scored."""
        return min([total, *(math.ceil(total * x) if x < 1 else math.ceil(x) for x in self.limits)])


def shipped_suites() -> dict[str, Suite]:
    """The suites of the package, by name."""
    folder = Path(str(resources.files("forgetting") / "tasks"))
    return _read_suites(folder)


def _read_suites(folder: Path) -> dict[str, Suite]:
    """The suites among the YAML files of a folder, which may also hold task files of lm-eval."""
    suites = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError):
            # Task files may hold `!function`, which only lm-eval reads.
            continue
        if not isinstance(content, dict) or "suite" not in content:
            continue
        try:
            suite = Suite.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{path} is not a valid suite: {place}: {first['msg']}") from error
        suites[suite.suite] = suite
    return suites


def plan_tasks(settings: EvaluationSettings) -> tuple[list[Request], list[Suite]]:
    """The tasks of an evaluation, each once, and the suites.

    With `data_dir`, a member of a suite that is a mean over tasks keeps those that have files.

    Raises:
        InputError: a suite cannot be read, a file is missing, or a task is listed twice with
            different settings.
    """
    known = shipped_suites()
    if settings.include_path is not None:
        known |= _read_suites(Path(settings.include_path))
    requests: dict[str, Request] = {}
    suites: list[Suite] = []

    def add(request: Request) -> None:
        if requests.setdefault(request.task, request) != request:
            raise InputError(
                f"evaluation.tasks lists {request.task} twice, with different settings. Move one "
                "of them to another recipe"
            )

    for asked in settings.tasks:
        limit = settings.limit if asked.limit is None else asked.limit
        limits = () if limit is None else (limit,)
        suite = known.get(asked.task)
        if suite is None:
            shots = settings.num_fewshot if asked.num_fewshot is None else asked.num_fewshot
            for task in _with_tag(asked.task, settings.data_dir):
                add(_located(Request(task, shots, limits), settings.data_dir))
            continue
        if asked.num_fewshot is not None:
            raise InputError(
                f"evaluation.tasks: {suite.suite} is a suite, which sets the number of examples of "
                "each of its tasks. Remove num_fewshot"
            )
        suite = _available(suite, settings.data_dir)
        suites.append(suite)
        for member in suite.members:
            of_member = limits if member.limit is None else (member.limit, *limits)
            for task in member.tasks:
                request = Request(task, member.num_fewshot, of_member, member.max_context_tokens)
                add(_located(request, settings.data_dir))
    return list(requests.values()), suites


def _with_tag(name: str, data_dir: str | None) -> list[str]:
    """The benchmarks of a tag; any other name stays as it is."""
    tagged = [task for task, benchmark in BENCHMARKS.items() if benchmark.tag == name]
    if not tagged:
        return [name]
    if data_dir is None:
        return tagged
    return _with_files(tagged, data_dir) or tagged


def _with_files(tasks: Sequence[str], data_dir: str) -> list[str]:
    folder = Path(data_dir)
    return [t for t in tasks if t not in BENCHMARKS or find_files(BENCHMARKS[t], folder)]


def _available(suite: Suite, data_dir: str | None) -> Suite:
    if data_dir is None:
        return suite
    members = [
        # If no task has files, the message names the first one.
        m.model_copy(update={"tasks": _with_files(m.tasks, data_dir) or m.tasks[:1]})
        for m in suite.members
    ]
    return suite.model_copy(update={"members": members})


def _located(request: Request, data_dir: str | None) -> Request:
    if data_dir is None or request.task not in BENCHMARKS:
        return request
    benchmark = BENCHMARKS[request.task]
    if not find_files(benchmark, Path(data_dir)):
        raise InputError(missing_files(benchmark, Path(data_dir)))
    return replace(request, local=True)


def check_tasks(settings: EvaluationSettings) -> None:
    """Refuse settings and local files on which an evaluation would fail after hours of training.

    Raises:
        InputError: the message names the setting, or the file and the record.
    """
    requests, _ = plan_tasks(settings)
    for request in requests:
        read_request(request, settings.data_dir)


def read_request(request: Request, data_dir: str | None) -> LocalItems | None:
    """The local items of a task; None if it uses its own dataset.

    Raises:
        InputError: a file is broken, or IFEval's sentence data is not on this machine.
    """
    if not request.local:
        return None
    assert data_dir is not None
    benchmark = BENCHMARKS[request.task]
    items = read_items(benchmark, Path(data_dir))
    if request.task == "ifeval":
        scored = items.splits[benchmark.scored]
        check_sentences(scored[: request.num_items(len(scored))], Path(data_dir))
    return items


def planned_items(settings: EvaluationSettings) -> dict[str, int | None]:
    """Number of items of each task, at most; None: not known before its data set is loaded."""
    requests, _ = plan_tasks(settings)
    found: dict[str, int | None] = {}
    for request in requests:
        items = read_request(request, settings.data_dir)
        if items is not None:
            scored = BENCHMARKS[request.task].scored
            found[request.task] = request.num_items(len(items.splits[scored]))
        else:
            counts = [int(limit) for limit in request.limits if limit >= 1]
            found[request.task] = min(counts, default=None)
    return found


def evaluation_fingerprint(settings: EvaluationSettings) -> dict[str, Any]:
    """What results depend on apart from the settings: suites and local files, by content."""
    requests, suites = plan_tasks(settings)
    files = {}
    for request in requests:
        if request.local and settings.data_dir is not None:
            found = find_files(BENCHMARKS[request.task], Path(settings.data_dir))
            files[request.task] = {split: file_sha256(path) for split, (_, path) in found.items()}
    return {"suites": [suite.model_dump() for suite in suites], "files": files}


def suite_result(suite: Suite, results: Mapping[str, TaskResult]) -> TaskResult:
    """The unweighted mean over a suite's members, each the unweighted mean over its tasks.

    The standard error is that of a mean of independent figures; None if one of them has none.

    Args:
        results: by task; all tasks of the suite are among them.

    Raises:
        InputError: a task has no such metric.
    """
    groups = {member.name: _member_group(member, results) for member in suite.members}
    figures = [group.metrics[AVERAGE] for group in groups.values()]
    measured = [results[task] for member in suite.members for task in member.tasks]
    notes = [
        f"{m.name}: mean of {m.label} over {', '.join(m.tasks)}"
        for m in suite.members
        if len(m.tasks) > 1
    ]
    return TaskResult(
        task=suite.suite,
        num_items=sum(group.num_items for group in groups.values()),
        metrics={AVERAGE: _mean(figures)},
        local=any(result.local for result in measured),
        notes=notes + [f"{r.task}: {note}" for r in measured for note in r.notes],
        groups=groups,
        members={m.name: [f"{task}/{m.label}" for task in m.tasks] for m in suite.members},
    )


def _member_group(member: Member, results: Mapping[str, TaskResult]) -> Group:
    figures = []
    for task in member.tasks:
        metrics = results[task].metrics
        if member.label not in metrics:
            raise InputError(
                f"the task {task} has no metric {member.label}; it has {', '.join(metrics)}"
            )
        figures.append(metrics[member.label])
    return Group(
        num_items=sum(results[task].num_items for task in member.tasks),
        metrics={AVERAGE: _mean(figures)},
    )


def _mean(figures: Iterable[Metric]) -> Metric:
    figures = list(figures)
    errors = [f.stderr for f in figures]
    known: list[float] = [error for error in errors if error is not None]
    return Metric(
        value=math.fsum(f.value for f in figures) / len(figures),
        stderr=math.hypot(*known) / len(figures) if len(known) == len(figures) else None,
        higher_is_better=all(f.higher_is_better for f in figures),
    )
